"""What an operator asks of devices beside rounds: the part that `fedless function` and `fedless fleet` share.

An order is given once, under a random request id, then its answers are waited for. Whoever stops waiting finds them
later with `fedless function result`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.table import Table

from fedless.console import link
from fedless.console.terminal import duration_ms, moment, pair, print_table
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import DONE, Action

ClientOption = Annotated[
    list[str] | None, typer.Option("--client", help="Id or name of a device; repeat for more.")
]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", help="key=value: devices that have all these labels.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Every device.")]
GRACE_S = 30.0
"""An answer may take this long to arrive after the order's end."""


@dataclass(frozen=True)
class Whom:
    """Which devices are meant."""

    clients: Sequence[str] | None
    labels: Sequence[str] | None
    every: bool

    @property
    def anybody(self) -> bool:
        """Whether anybody is named."""
        return self.every or bool(self.clients) or bool(self.labels)

    def selection(self) -> link.Selection:
        """As the service is told. Raises `LocalError` CONFIG_INVALID when nobody is named."""
        if not self.anybody:
            raise LocalError(Code.CONFIG_INVALID, "Expected --client, --label or --all: nobody is named.")
        labels = dict(pair(text) for text in self.labels or [])
        return link.Selection(client_ids=self.clients or [], labels=labels, all=self.every)


def give(
    operator: link.Link, action: Action, whom: Whom, *, function: str = "", version: int = 0,
    event: bytes = b"", timeout: str = "", valid: str = "1h",
) -> link.OrderInfo:  # fmt: skip
    """Gives an order; `timeout` and `valid` are durations such as 30s."""
    request = link.GiveOrderRequest(
        request_id=os.urandom(16),
        action=action.value,
        function=function,
        version=version,
        event=event,
        timeout_ms=duration_ms(timeout),
        valid_ms=duration_ms(valid),
        selection=whom.selection(),
    )
    return operator.give_order(request)


def wait(operator: link.Link, given: link.OrderInfo) -> link.OrderInfo:
    """The order once all have answered, or a little after its end."""
    found = operator.order(given.order_id)
    end = time.monotonic() + max(0.0, given.deadline_at_ms / 1000 - time.time()) + GRACE_S
    while found.settled < found.clients and time.monotonic() < end:
        found = operator.order(given.order_id, found.settled, wait=True)
    return found


def finish(operator: link.Link, given: link.OrderInfo, *, as_json: bool, no_wait: bool) -> None:
    """Waits, prints the answers, and ends with status 1 unless every device did what was asked."""
    if no_wait:
        typer.echo(f"Order {given.order_id} to {given.clients} devices; see it with:", err=True)
        typer.echo(f"  fedless function result {given.order_id}", err=True)
        return
    found = wait(operator, given)
    show(found, as_json=as_json)
    if any(answer.outcome != DONE for answer in found.answers):
        raise typer.Exit(1)


def show(order: link.OrderInfo, *, as_json: bool) -> None:
    """An order's answers: JSON on standard output, or one line for each device."""
    if as_json:
        typer.echo(json.dumps([answer_values(answer) for answer in order.answers], indent=1))
        return
    table = Table("device", "outcome", "version", "start", "total ms", "answer", box=None)
    for answer in order.answers:
        text = answer.answer.decode() or answer.detail
        total = answer.timings_ms.get("total")
        table.add_row(
            answer.client_id, answer.outcome or "no answer yet", str(answer.version or "-"),
            answer.start or "-", "-" if total is None else f"{total:.0f}", text,
        )  # fmt: skip
    print_table(table)
    ended = f"until {moment(order.deadline_at_ms)} UTC"
    typer.echo(f"{order.settled} of {order.clients} devices answered; they may {ended}", err=True)


def answer_values(answer: link.OrderAnswer) -> dict[str, object]:
    """One answer as JSON values."""
    return {
        "client": answer.client_id,
        "outcome": answer.outcome,
        "detail": answer.detail,
        "answer": json.loads(answer.answer) if answer.answer else None,
        "version": answer.version,
        "start": answer.start,
        "timings_ms": dict(answer.timings_ms),
        "peak_rss_mb": round(answer.peak_rss_mb, 1),
    }
