"""*Pure.* What the core of the aggregator asks of its shell: waking, the fleet, signing, time, randomness.

Implemented by `wake`, by `store.fleet`'s callers and by fakes in tests; passed to `Coordinator` and `Runs` at
one place, the service's start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedless.protocol.messages import SignedTicket

Clock = Callable[[], int]
"""Unix milliseconds now."""

Sleep = Callable[[int], Awaitable[None]]
"""Waits for this many milliseconds."""

Random = Callable[[int], bytes]
"""This many bytes of the operating system's randomness."""

TicketSigner = Callable[[bytes], SignedTicket]
"""Signs a ticket's exact bytes with the fleet's ticket key."""


@dataclass(frozen=True)
class Receipt:
    """What became of a wake-up: the broker or the cloud took it, or why not."""

    delivered: bool
    detail: str = ""


@dataclass(frozen=True)
class ClientRecord:
    """An enrolled client that is not revoked; `last_seen_ms` 0: never, `not_before_ms` 0: eligible now, `cores`
    as it told (0: not yet; a cloud function never does).
    """  # noqa: D205

    client_id: str
    online: bool = False
    last_seen_ms: int = 0
    not_before_ms: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    cores: int = 0


class Waker(Protocol):
    """Brings signed bytes to clients: MQTT for devices, an adapter's invoker for cloud functions."""

    async def wake(self, client_id: str, signed_ticket: bytes, deadline_ms: int) -> Receipt:
        """Sends a wake-up that is worthless after `deadline_ms` (Unix ms); an absent client is no error."""
        ...

    async def announce(self, signed: bytes) -> None:
        """Publishes the newest model, signed, to whom it may concern."""
        ...


class Fleet(Protocol):
    """Who could take part."""

    async def eligible(self) -> Sequence[ClientRecord]:
        """All enrolled clients that are not revoked, in the order of their ids."""
        ...
