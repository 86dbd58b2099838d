"""What the service holds of keys and authorities, and takes up again from the fleet's folder while it runs.

All files are read and checked before anything changes, so that what cannot be read changes nothing. Then every part
that holds something (callers, doors, broker, signing) hears of it at one moment of the event loop. Open connections
stay; their next call is judged by what is believed by then. Asked for by the Operator service, by a SIGHUP, and once a
day, for the servers' own certificates. Composed by `main`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from aggregator.authorities import Authorities
from aggregator.config import BrokerKind, Settings
from aggregator.enrollment import Terms, read_ticket_key, terms_of
from aggregator.founding import renew_server
from aggregator.interfaces import Clock, Sleep
from aggregator.link import SecondParty, read_second_party
from fedless.protocol.crypto import ed25519_sign
from fedless.protocol.errors import FedlessError
from fedless.protocol.identity import Role
from fedless.protocol.messages import SignedTicket
from fedless.protocol.signed import sign_ticket
from fedless.protocol.trust import TrustKind, TrustList

DAY_MS = 86_400_000
SERVERS, HELPER = "servers", TrustKind.HELPER.value
_log = structlog.get_logger("reload")


@dataclass(frozen=True)
class Held:
    """The fleet's keys and authorities at one moment, as files say them; `ticket_key` is a secret (32 raw bytes)."""

    authorities: Authorities
    terms: Terms
    ticket_key: bytes = field(repr=False)
    party: SecondParty | None = None

    def differs(self, other: Held) -> list[str]:
        """What is another in the other one: kinds of trust, and the helper."""
        mine, its = self._parts(), other._parts()
        return [name for name, value in mine.items() if value != its[name]]

    def _parts(self) -> dict[str, object]:
        terms, who = self.terms, self.authorities
        parts: dict[str, object] = {
            TrustKind.AUTHORITY.value: (who.phase, who.ders, who.lists),
            TrustKind.TICKET.value: (self.ticket_key, terms.ticket_keys),
            TrustKind.PUBLISHER.value: terms.publisher_keys,
            HELPER: (self.party, terms.policy.helper_signing_key, self._lists(TrustKind.HELPER)),
        }
        return parts

    def _lists(self, kind: TrustKind) -> tuple[TrustList, ...]:
        return tuple(each for each in self.terms.lists if each.kind is kind)


def read(settings: Settings, now_ms: int) -> Held:
    """What the files say, all of it checked. Raises `LocalError`: missing, damaged, or not of this fleet."""
    authorities = Authorities.load(settings.authority.directory, settings.fleet.name)
    party = None
    if settings.helper.exists:
        party = read_second_party(settings.helper, authorities.ders, settings.fleet.name, now_ms)
    return Held(authorities, terms_of(settings), read_ticket_key(settings), party)


def renew_servers(settings: Settings, authorities: Authorities, now_ms: int) -> list[str]:
    """Gives our servers new certificates where it is time, or where the authority is another; the roles renewed."""
    servers = [(settings.listen.directory, Role.AGGREGATOR)]
    if settings.broker.kind is BrokerKind.CHILD:
        servers.append((settings.broker.directory, Role.BROKER))
    renewed = [
        role.value
        for directory, role in servers
        if renew_server(directory, authorities.serving, role, now_ms)
    ]
    for role in renewed:
        _log.info("server_certificate_renewed", role=role)
    return renewed


class Reload:
    """Of one running service. `held` is what counts now; whoever keeps a part of it is told by `tell`."""

    def __init__(self, settings: Settings, held: Held, clock: Clock) -> None:
        self.held = held
        self._settings = settings
        self._clock = clock
        self._told: list[Callable[[Held], None]] = []
        self._awaited: list[Callable[[Held], Awaitable[None]]] = []
        self._one = asyncio.Lock()

    def tell(self, part: Callable[[Held], None]) -> None:
        """From now on `part` hears what counts, each time that it has changed."""
        self._told.append(part)

    def wait_for(self, part: Callable[[Held], Awaitable[None]]) -> None:
        """The same for a part that takes its time (a child process), after all that take none."""
        self._awaited.append(part)

    def sign(self, message: bytes) -> bytes:
        """Ed25519 by the ticket key of now."""
        return ed25519_sign(self.held.ticket_key, message)

    def sign_ticket(self, ticket: bytes) -> SignedTicket:
        """A wake-up signed by the ticket key of now."""
        return sign_ticket(ticket, self.held.ticket_key)

    def publishers(self) -> Mapping[bytes, bytes]:
        """Whose bundles are taken now: key id -> raw public key."""
        return {key.key_id: key.public_key for key in self.held.terms.publisher_keys}

    async def take_up(self) -> list[str]:
        """Read everything again; what has changed since ("ticket", "authority", ...).

        Raises `LocalError`, and nothing has changed then; but BROKER_UNREACHABLE and the like once all else has.
        """
        async with self._one:
            found = await asyncio.to_thread(read, self._settings, self._clock())
            endpoints = self.held.terms.endpoints
            found = replace(found, terms=replace(found.terms, endpoints=endpoints))
            renewed = await asyncio.to_thread(renew_servers, self._settings, found.authorities, self._clock())
            changed = [*found.differs(self.held), *([SERVERS] if renewed else [])]
            if not changed:
                return []
            self.held = found
            for part in self._told:
                part(found)
            for slow in self._awaited:
                await slow(found)
        _log.info("taken_up", changed=changed, phase=found.authorities.phase.value)
        return changed

    async def try_to(self) -> None:
        """The same where nobody waits for the answer: it is in the log."""
        try:
            if not await self.take_up():
                _log.info("nothing_to_take_up")
        except FedlessError as error:
            _log.error("not_taken_up", code=error.code.value, detail=error.detail, fix=error.fix)

    async def daily(self, sleep: Sleep) -> None:
        """Once a day, for as long as the service runs: its own certificates end some time."""
        while True:
            await sleep(DAY_MS)
            await self.try_to()
