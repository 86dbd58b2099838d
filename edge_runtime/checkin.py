"""Asking to take part: once, or again and again for a while where the aggregator says "not now".

Called by the invocation. How long a process waits is bounded by its own patience and by the ticket's end; why it waited
is in the log while it does, and in the outcome if it was in vain.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from edge_runtime.clock import unix_ms
from edge_runtime.link import Link, patiently
from edge_runtime.log import say
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import CheckIn, NotNow, Offer, Ticket

BUDGET_S = 20.0
"""For this long what failed is repeated here; then the process leaves and is started again later."""
SHORT_MS = 5_000
"""A longer pause is not slept through: the process leaves, and comes back after it."""
PATIENCE_MS = 300_000
"""For this long at most "not now" is waited for in one process; the ticket's end may come before."""
HOLDS_S = 10.0
"""For this long memory is held for a job that has not come yet."""


def _nothing() -> None:
    """Nothing is held that a wait should give back."""


def ask(
    link: Link,
    ticket: Ticket,
    mark: bytes,
    patience_ms: int = PATIENCE_MS,
    rest: Callable[[], None] = _nothing,
    holds_s: float = HOLDS_S,
) -> Offer:
    """The aggregator's offer for a ticket; `mark` as `CheckIn` has it. `rest` is called when that takes `holds_s`.

    Raises `PeerError`: what the aggregator said (NOT_NOW if it said no more), with the time to come back after where it
    named one; its detail says how often and for how long it was asked.
    """
    request = CheckIn(ticket.round_id, ticket.nonce, mark)
    began = time.monotonic()
    until = began + min(patience_ms, max(0, ticket.not_after_ms - unix_ms())) / 1000
    asked, said = 0, ""
    while True:
        reply = patiently(lambda: link.check_in(request), budget_s=BUDGET_S, link=link)
        asked += 1
        if isinstance(reply, Offer):
            return reply
        pause = reply.retry_after_ms / 1000
        if not 0 < reply.retry_after_ms <= SHORT_MS or time.monotonic() + pause > until:
            raise _not_now(reply, asked, time.monotonic() - began)
        if reply.reason != said:
            said = reply.reason
            say("participant", "waits", round=ticket.round_id, why=said, for_ms=round((until - began) * 1000))
        if time.monotonic() - began >= holds_s:
            rest()
        time.sleep(pause)


def _not_now(reply: NotNow, asked: int, waited_s: float) -> PeerError:
    code = Code.of(reply.reason) if reply.reason else Code.NOT_NOW
    waited = f", {asked} times in {waited_s:.0f} s" if asked > 1 else ""
    return PeerError(
        Code.NOT_NOW if code is Code.INTERNAL else code,
        f"The aggregator does not need this client now: it said {reply.reason or Code.NOT_NOW.value}{waited}.",
        retry_after_ms=reply.retry_after_ms or None,
    )
