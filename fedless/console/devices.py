"""`fedless function push|list|invoke|rollback|result`: functions on devices, from the operator's place."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedless.console import link, orders
from fedless.console.orders import AllOption, ClientOption, LabelOption, Whom
from fedless.console.terminal import FleetOption, moment, print_table
from fedless.protocol import update as container
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import EVENT_BYTES_MAX, Action

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the function.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Answers as JSON.")]
NoWaitOption = Annotated[bool, typer.Option("--no-wait", help="Do not wait for the answers.")]
ValidOption = Annotated[str, typer.Option(help="How long devices may take to begin: 60s, 30m, 24h, 7d.")]


def push(
    bundle: Annotated[Path, typer.Argument(metavar="FILE.bundle", help="A signed bundle.")],
    fleet: FleetOption = None,
    client: ClientOption = None,
    label: LabelOption = None,
    every: AllOption = False,  # noqa: FBT002 - a flag
    valid: ValidOption = "24h",
    no_wait: NoWaitOption = False,  # noqa: FBT002
) -> None:
    """Upload a bundle as the newest version of its function; with --client, --label or --all install it there, too."""
    whom = Whom(client, label, every)
    try:
        data = bundle.read_bytes()
    except OSError as error:
        raise LocalError(Code.BUNDLE_MALFORMED, f"{bundle} cannot be read: {error}.") from error
    with link.open_link(link.find_fleet(fleet)) as operator:
        pushed = operator.push_function(operator.put(data))
        typer.echo(f"{pushed.name} version {pushed.version} is pushed.")
        if whom.anybody:
            given = orders.give(operator, Action.INSTALL, whom, function=pushed.name, valid=valid)
            orders.finish(operator, given, as_json=False, no_wait=no_wait)


def list_functions(fleet: FleetOption = None) -> None:
    """List the pushed functions, and how many devices have which version."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        found = operator.functions()
    table = Table("function", "version", "state", "devices", "gave it up", "pushed (UTC)", "digest", box=None)
    for item in found:
        state = "rolled back" if item.given_up else "serves" if item.serves else "kept"
        table.add_row(
            item.name, str(item.version), state, str(item.devices), str(item.gave_up),
            moment(item.pushed_at_ms), item.bundle_digest.hex()[:12],
        )  # fmt: skip
    if found:
        print_table(table)
    typer.echo(f"{len({item.name for item in found})} functions", err=True)


def invoke(  # noqa: PLR0913, PLR0917
    name: NameArgument,
    fleet: FleetOption = None,
    client: ClientOption = None,
    label: LabelOption = None,
    every: AllOption = False,  # noqa: FBT002
    event: Annotated[str, typer.Option(help="The event, JSON; -: standard input.")] = "null",
    version: Annotated[int, typer.Option(min=0, help="0: the newest that is not rolled back.")] = 0,
    timeout: Annotated[str, typer.Option(help="For the function. Default: its manifest's.")] = "",
    valid: ValidOption = "60s",
    as_json: JsonOption = False,  # noqa: FBT002
    no_wait: NoWaitOption = False,  # noqa: FBT002
) -> None:
    """Call a function on devices, which get it first if they lack it, and print what it returned."""
    data = (sys.stdin.read() if event == "-" else event).encode()
    try:
        json.loads(data)
    except ValueError as error:
        raise LocalError(Code.MALFORMED, f"The event is not JSON: {error}.") from error
    if len(data) > EVENT_BYTES_MAX:
        raise LocalError(Code.MALFORMED, f"The event has {len(data)} bytes; {EVENT_BYTES_MAX} can be sent.")
    whom = Whom(client, label, every)
    with link.open_link(link.find_fleet(fleet)) as operator:
        given = orders.give(
            operator, Action.INVOKE, whom, function=name, version=version, event=data, timeout=timeout,
            valid=valid,
        )  # fmt: skip
        orders.finish(operator, given, as_json=as_json, no_wait=no_wait)


def rollback(
    name: NameArgument,
    fleet: FleetOption = None,
    client: ClientOption = None,
    label: LabelOption = None,
    every: AllOption = False,  # noqa: FBT002
    valid: ValidOption = "24h",
    no_wait: NoWaitOption = False,  # noqa: FBT002
) -> None:
    """Give the newest version up: for further orders, or, with --client, --label or --all, on those devices only."""
    whom = Whom(client, label, every)
    with link.open_link(link.find_fleet(fleet)) as operator:
        if whom.anybody:
            given = orders.give(operator, Action.ROLL_BACK, whom, function=name, valid=valid)
            orders.finish(operator, given, as_json=False, no_wait=no_wait)
            return
        serves = operator.roll_back_function(name)
    typer.echo(f"{serves.name} version {serves.version} serves.")


def result(
    order: Annotated[int, typer.Argument(metavar="[ORDER]", help="Number of an order; none: list them.")] = 0,
    fleet: FleetOption = None,
    as_json: JsonOption = False,  # noqa: FBT002
) -> None:
    """Show what came of an order, also later."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        if order:
            orders.show(operator.order(order), as_json=as_json)
            return
        found = operator.orders()
    table = Table("order", "asks to", "function", "version", "given (UTC)", "answers", box=None)
    for item in found:
        table.add_row(
            str(item.order_id), item.action, item.function or "-", str(item.version or "-"),
            moment(item.given_at_ms), f"{item.settled} of {item.clients}",
        )  # fmt: skip
    if found:
        print_table(table)


def add_to(app: typer.Typer) -> None:
    """Makes them subcommands of `fedless function`."""
    app.command()(push)
    app.command("list")(list_functions)
    app.command()(invoke)
    app.command()(rollback)
    app.command()(result)


def update(
    file: Annotated[Path, typer.Argument(metavar="FILE.update", help="What `fedless image update` made.")],
    fleet: FleetOption = None,
    client: ClientOption = None,
    label: LabelOption = None,
    every: AllOption = False,  # noqa: FBT002
    valid: ValidOption = "24h",
    no_wait: NoWaitOption = False,  # noqa: FBT002
) -> None:
    """Update the agent of devices. One that does not reach the broker afterwards goes back to what it had."""
    whom = Whom(client, label, every)
    whom.selection()
    try:
        data = file.read_bytes()
    except OSError as error:
        raise LocalError(Code.BUNDLE_MALFORMED, f"{file} cannot be read: {error}.") from error
    container.read_head(data[: container.HEAD.size])
    with link.open_link(link.find_fleet(fleet)) as operator:
        event = json.dumps({"digest": operator.put(data).hex()}).encode()
        given = orders.give(operator, Action.UPDATE, whom, event=event, valid=valid)
        orders.finish(operator, given, as_json=False, no_wait=no_wait)
