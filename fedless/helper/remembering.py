"""What a helper's memory must do, wherever it is; `memory`, `postgresql` and `objects` do it, `opening` chooses.

A round is closed once, a seed is used once, a client is summed over one model once, and a call is answered once: also
when two instances of a function are asked at the same moment. Of two that race, one records and the other is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg.helper import Closed, Closing, RefusedReports


@dataclass(frozen=True)
class Remembered:
    """A closed round, and when it was closed (Unix ms)."""

    closed: Closed
    at_ms: int


class Remembering(Protocol):
    """The helper's memory. Raises `PeerError(BUSY)` where a server that holds it is away: nothing was recorded then."""

    def remembered(self, context: bytes) -> Remembered | None:
        """What is known of a context, if it was closed."""
        ...

    def record(self, closing: Closing, noise_seed: bytes, at_ms: int) -> Closed | RefusedReports:
        """Record a set before it is answered, unless something in it was summed before.

        The same set again gives what was recorded first. Raises `PeerError(CONFLICTING_REPEAT)` if the context was
        closed with another set.
        """
        ...

    def take_call(self, call_id: bytes, expires_at_ms: int, now_ms: int) -> bool:
        """Whether this is the first call with that id; ids are kept until they have expired (Unix ms)."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def same_set(known: Closed, closing: Closing) -> Closed:
    """What was recorded, if it was this set. Raises `PeerError(CONFLICTING_REPEAT)`."""
    if known.set_digest != closing.set_digest:
        raise PeerError(Code.CONFLICTING_REPEAT, "The round was closed with another set.")
    return known
