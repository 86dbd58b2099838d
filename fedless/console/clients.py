"""`fedless fleet show|rename|label|remove|renew`: single clients, by their ids or names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from fedless.console import link, orders
from fedless.console.orders import AllOption, ClientOption, LabelOption, Whom
from fedless.console.terminal import FleetOption, moment, pair
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import Action

ClientArgument = Annotated[str, typer.Argument(metavar="CLIENT", help="Id or name of the client.")]


def show(
    client: ClientArgument,
    fleet: FleetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Show what is known of a client: state, labels, certificates, its last status."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        found = operator.client(client)
    values = _values(found)
    if as_json:
        typer.echo(json.dumps(values, indent=1))
        return
    for name, text in _lines(values):
        typer.echo(f"{name.replace('_', ' '):<13} {text}".rstrip())


def rename(
    client: ClientArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help='For people; "": no name any more.')],
    fleet: FleetOption = None,
) -> None:
    """Give a client a name, which every command then takes as well as its id. The id stays."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        client_id = operator.rename(client, name)
    typer.echo(f"{client_id} is called {name}." if name else f"{client_id} has no name.")


def label(
    client: ClientArgument,
    changes: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE|KEY-", help="Labels to set, or to take away.")
    ],
    fleet: FleetOption = None,
) -> None:
    """Set labels of a client, or take them away: `site=north`, `site-`. Tasks and orders choose by them."""
    gone = [text[:-1] for text in changes if text.endswith("-") and "=" not in text]
    labels = dict(pair(text) for text in changes if text.removesuffix("-") not in gone)
    with link.open_link(link.find_fleet(fleet)) as operator:
        every = operator.label(client, labels, gone)
    typer.echo(", ".join(f"{key}={value}" for key, value in sorted(every.items())) or "no labels")


def remove(
    client: ClientArgument,
    fleet: FleetOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,  # noqa: FBT002
) -> None:
    """Revoke a client and forget its name, labels and status; past rounds keep its id."""
    if not yes and not typer.confirm(f"Revoke {client} and forget it?"):
        raise LocalError(Code.WRONG_STATE, "Nothing was removed.")
    with link.open_link(link.find_fleet(fleet)) as operator:
        client_id = operator.remove(client)
    typer.echo(f"{client_id} is removed.")


def renew(
    fleet: FleetOption = None,
    client: ClientOption = None,
    label: LabelOption = None,
    every: AllOption = False,  # noqa: FBT002
    valid: Annotated[
        str, typer.Option(help="How long devices may take to begin: 60s, 30m, 24h, 7d.")
    ] = "24h",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the answers.")] = False,  # noqa: FBT002
) -> None:
    """Ask devices to renew their certificates now, and so to hear of the fleet's addresses: before a move."""
    with link.open_link(link.find_fleet(fleet)) as operator:
        given = orders.give(operator, Action.RENEW, Whom(client, label, every), valid=valid)
        orders.finish(operator, given, as_json=False, no_wait=no_wait)


def add_to(app: typer.Typer) -> None:
    """Makes them subcommands of `fedless fleet`."""
    for command in (show, rename, label, remove, renew):
        app.command()(command)


def _values(found: link.ShownClient) -> dict[str, object]:
    client = found.client
    waits = f"{moment(found.not_before_ms)} UTC: {found.not_before_reason}" if found.not_before_ms else ""
    return {
        "id": client.client_id,
        "name": client.name,
        "kind": f"cloud function on {found.platform}" if found.platform else "device",
        "state": f"{client.state} {found.revoked_reason}".strip(),
        "online": client.online,
        "enrolled": moment(client.enrolled_at_ms),
        "last_seen": moment(client.last_seen_ms),
        "labels": dict(sorted(client.labels.items())),
        "reports": client.reports,
        "refused": dict(sorted(client.refusals.items())),
        "not_before": waits,
        "lacks": list(client.lacks),
        "certificates": [
            {
                "serial": item.serial,
                "issued": moment(item.issued_at_ms),
                "until": moment(item.not_after_ms),
                "revoked": moment(item.revoked_at_ms) if item.revoked_at_ms else "",
            }
            for item in found.certificates
        ],
        "status": json.loads(found.profile_json),
    }


def _lines(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What `_values` gave, for people: a name and a text each."""
    for name in ("id", "name", "kind", "state"):
        yield name, values[name] or "-"
    yield "online", "yes" if values["online"] else "no"
    yield "enrolled", f"{values['enrolled']} UTC"
    yield "last seen", f"{values['last_seen']} UTC"
    yield "labels", ", ".join(f"{key}={value}" for key, value in values["labels"].items()) or "-"
    yield "reports", str(values["reports"])
    yield "refused", ", ".join(f"{key} {value}" for key, value in values["refused"].items()) or "-"
    yield "not before", values["not_before"] or "-"
    if values["lacks"]:
        yield "lacks", ", ".join(values["lacks"])
    for item in values["certificates"]:
        revoked = f", revoked {item['revoked']}" if item["revoked"] else ""
        yield "certificate", f"{item['issued']} to {item['until']} UTC{revoked}, serial {item['serial']}"
    if values["status"]:
        yield from _profile(values["status"])


def _profile(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A device's last status; one that an older agent sent lacks some of it."""
    get = told.get
    versions = (get("runtime_version"), get("tflite_runtime"), get("architecture"))
    yield "runs", ", ".join(filter(None, versions)) or "-"
    yield "processors", str(get("cores", 0) or "-")
    memory = f"{get('memory_available_mb', 0)} of {get('memory_mb', 0)} MB free"
    yield "memory", f"{memory}, its agent takes {get('agent_rss_mb', 0.0):.0f} MB"
    yield "disk", f"{get('disk_free_bytes', 0) / 1e9:.1f} GB free"
    sensors = [get("power", "")] + ([f"{told['temperature_c']:.0f} °C"] if get("temperature_c") else [])
    yield "sensors", ", ".join(filter(None, sensors)) or "-"
    for function in get("functions", []):
        state = "given up" if function["given_up"] else "serves" if function["serves"] else "kept"
        version = f"{function['name']} version {function['version']}"
        yield "function", f"{version}, {state}, {function['digest'][:12]}"
    if get("endpoints"):
        yield "calls", ", ".join(told["endpoints"])
