"""The running service takes new keys and authorities up: all of it at once, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aggregator import authorities as rollover
from aggregator.authority import Callers, der_to_pem
from aggregator.config import Settings, load
from aggregator.enrollment import ticket_ring
from aggregator.founding import Ports, found_fleet
from aggregator.reload import Held, Reload, read, renew_servers
from fedless.protocol import identity
from fedless.protocol.crypto import ed25519_public, ed25519_verify
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Endpoints
from fedless.protocol.signed import verify_ticket

NOW_MS = 1_790_000_000_000
YEAR_MS = 365 * 86_400_000
BOUND = Endpoints(("127.0.0.1:1",), ("127.0.0.1:2",), ("127.0.0.1:3",))


class Service:
    """A holder with a part that hears, and one that is awaited."""

    def __init__(self, folder: Path) -> None:
        found_fleet(folder, "home", "127.0.0.1", Ports(0, 0, 0), NOW_MS)
        self.now_ms = NOW_MS
        self.settings: Settings = load(folder / "aggregator.toml")
        held = read(self.settings, NOW_MS)
        self.holder = Reload(
            self.settings, replace(held, terms=replace(held.terms, endpoints=BOUND)), lambda: self.now_ms
        )
        self.heard: list[Held] = []
        self.awaited: list[Held] = []
        self.holder.tell(self.heard.append)
        self.holder.wait_for(self.slow)

    async def slow(self, now: Held) -> None:
        await asyncio.sleep(0)
        assert self.heard[-1] is now, "who takes time comes last"
        self.awaited.append(now)

    def take_up(self) -> list[str]:
        return asyncio.run(self.holder.take_up())

    def step(self, number: int) -> None:
        folder = self.settings.authority.directory
        steps: list[Callable[[], object]] = [
            lambda: rollover.begin(folder, "home", NOW_MS),
            lambda: rollover.issue(folder, "home"),
            lambda: rollover.retire(folder, "home", NOW_MS),
        ]
        steps[number]()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "home")


def test_nothing_new_disturbs_nobody(service: Service) -> None:
    assert service.take_up() == []
    assert service.heard == service.awaited == []


def test_rotated_ticket_key_signs_without_a_restart(service: Service) -> None:
    ring = ticket_ring(service.settings)
    old = service.holder.held.terms.ticket_keys
    ring.begin(NOW_MS)
    assert service.take_up() == ["ticket"]
    told = service.heard[-1].terms
    assert [key.public_key for key in told.ticket_keys] == list(ring.members())
    assert told.endpoints == BOUND, "ports were chosen at the start"
    assert verify_ticket(service.holder.sign_ticket(b"wake up"), old) == b"wake up"
    ring.end(NOW_MS)
    assert service.take_up() == ["ticket"]
    new = service.holder.held.terms.ticket_keys
    assert verify_ticket(service.holder.sign_ticket(b"wake up"), new) == b"wake up"
    assert ed25519_verify(ed25519_public(ring.secret()), service.holder.sign(b"roster"), b"roster")
    with pytest.raises(PeerError) as caught:
        verify_ticket(service.holder.sign_ticket(b"wake up"), old)
    assert caught.value.code is Code.TICKET_UNKNOWN_KEY


def test_damaged_files_change_nothing(service: Service) -> None:
    service.step(0)
    ring = ticket_ring(service.settings)
    ring.lists.write_text("{")
    before = service.holder.held
    with pytest.raises(LocalError) as caught:
        service.take_up()
    assert caught.value.code is Code.STATE_CORRUPT
    assert service.holder.held is before
    assert service.heard == []
    asyncio.run(service.holder.try_to())  # where nobody waits for the answer, it goes on
    ring.lists.unlink()
    assert service.take_up() == ["authority"]


def test_roll_over_is_taken_up_step_by_step(service: Service) -> None:
    certificate = service.settings.listen.directory / "cert.pem"
    first = certificate.read_bytes()
    for number, changed in enumerate((["authority"], ["authority"], ["authority", "servers"])):
        assert certificate.read_bytes() == first, "servers keep theirs until the old authority is dropped"
        service.step(number)
        assert service.take_up() == changed
        now = service.heard[-1].authorities
        assert now.ders == rollover.Authorities.load(service.settings.authority.directory, "home").ders
    assert certificate.read_bytes() != first
    assert service.awaited == service.heard


def test_servers_certificates_are_renewed_while_the_service_runs(service: Service) -> None:
    service.now_ms = NOW_MS + YEAR_MS
    assert service.take_up() == []
    service.now_ms = NOW_MS + 4 * YEAR_MS
    assert service.take_up() == ["servers"]
    assert renew_servers(service.settings, service.holder.held.authorities, service.now_ms) == []


def test_once_a_day_it_looks_by_itself(service: Service) -> None:
    async def days() -> None:
        passed = 0

        async def sleep(duration_ms: int) -> None:
            nonlocal passed
            passed += 1
            service.now_ms += 4 * YEAR_MS if passed == 1 else duration_ms
            if passed > 2:
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await service.holder.daily(sleep)

    asyncio.run(days())
    assert len(service.heard) == 1


def test_caller_of_a_dropped_authority_is_refused_on_the_next_call(service: Service) -> None:
    authorities = service.holder.held.authorities
    name = identity.Name("home", identity.Role.DEVICE, "dev-1")
    csr = identity.make_csr(identity.new_key())
    pem = der_to_pem(authorities.issuing.issue(name, csr, NOW_MS, 90).chain_der[0])
    callers = Callers(authorities.ders, "home")
    service.holder.tell(lambda now: callers.follow(now.authorities.ders))
    for number in range(3):
        assert callers.admit(pem, NOW_MS).name == name
        service.step(number)
        service.take_up()
    with pytest.raises(PeerError) as caught:
        callers.admit(pem, NOW_MS)
    assert caught.value.code is Code.FOREIGN_CERTIFICATE
