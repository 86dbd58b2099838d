"""Is a wake-up a ticket for this device, still good, and new? The participant asks before it does anything else.

One that is becomes an open round in the journal; any other is counted there with its reason, and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_runtime.log import say
from fedless.protocol.errors import Code, PeerError

if TYPE_CHECKING:
    from edge_runtime.journal import Journal
    from edge_runtime.keystore import Identity
    from edge_runtime.renewals import Renewals


@dataclass
class Judge:
    """Of one participant. `identity` is what it knows after the wake-up; `begun` the ticket that begins at once."""

    journal: Journal
    renewals: Renewals
    observe: Callable[[str, int], None]
    now_ms: Callable[[], int]
    identity: Identity
    begun: bytes = field(init=False, default=b"")

    def hear(self, data: bytes) -> None:
        """Journal a ticket, or count why it is none."""
        from fedless.protocol import signed, wire  # noqa: PLC0415  (a participant without a wake-up does without)

        round_id = 0
        try:
            content = self._verified(data)
            ticket = wire.ticket_from_bytes(content)
            round_id = ticket.round_id
            signed.judge_ticket(ticket, self.identity.fleet, self.identity.client_id, self.now_ms())
        except PeerError as error:
            detail = _with_clock_hint(error)
            self.journal.refuse(error.code, detail, round_id, self.now_ms())
            say("participant", "ticket_refused", code=error.code.value, round=round_id, why=detail)
            return
        alone = not self.journal.open_rounds()
        if self.journal.accept(ticket, content, self.now_ms(), begun=alone):
            self.begun = ticket.nonce if alone else b""
            self.observe("accepted", round_id)
        else:
            self.journal.refuse(Code.DUPLICATE, "", round_id, self.now_ms())
            say("participant", "ticket_repeated", round=round_id)

    def _verified(self, data: bytes) -> bytes:
        """The ticket's bytes; if its key is unknown, after the fleet was asked for its keys."""
        from fedless.protocol import signed, wire  # noqa: PLC0415  (as above)

        ticket = wire.signed_ticket_from_bytes(data)
        try:
            return signed.verify_ticket(ticket, self.identity.ticket_keys)
        except PeerError as error:
            if error.code is not Code.TICKET_UNKNOWN_KEY:
                raise
            self.identity = self.renewals.for_unknown_key(self.identity, self.now_ms())
        return signed.verify_ticket(ticket, self.identity.ticket_keys)


def _with_clock_hint(error: PeerError) -> str:
    """An expired ticket is seldom a day late: then the clock is the likelier trouble."""
    if error.code is not Code.TICKET_EXPIRED:
        return error.detail
    return f"{error.detail} If that is wrong, set the clock; `fedless-edge doctor` compares it with the aggregator's."
