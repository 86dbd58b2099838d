"""Keys and authorities follow one another: the fleet's registrar and real devices' keystores, phase by phase."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from aggregator import authorities as rollover
from aggregator.authorities import Authorities, mark
from aggregator.authority import der_to_pem
from aggregator.backup import back_up
from aggregator.config import load
from aggregator.enrollment import Registrar, publisher_ring, terms_of, ticket_ring
from aggregator.founding import Ports, found_fleet
from aggregator.keyring import Keyring
from aggregator.orders import Orders, Wish
from aggregator.restore import restore
from aggregator.rollout import Rollout
from aggregator.store import fleet as store
from aggregator.store.engine import Database
from edge_runtime.keystore import Identity, Keystore
from edge_runtime.link import Link, Renewal
from edge_runtime.renew import renew
from fedless.protocol import identity
from fedless.protocol.claim import parse_claim
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import DeviceStatus, EnrollRequest
from fedless.protocol.secagg.policy import from_enrollment
from fedless.protocol.trust import TrustKind

NOW_MS = 1_790_000_000_000
T = TypeVar("T")


class Site:
    """A fleet whose service can be started again, and its devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found_fleet(folder / "home", "home", "127.0.0.1", Ports(7443, 7444, 8883), NOW_MS)
        self.settings = load(folder / "home" / "aggregator.toml")
        self.database = Database.open(f"sqlite:///{folder / 'fedless.db'}")
        self.restart()

    def restart(self) -> None:
        self.authorities = Authorities.load(self.settings.authority.directory, "home")
        terms = terms_of(self.settings)
        self.registrar = Registrar(self.database, self.authorities, terms, lambda: NOW_MS, os.urandom)

    def step(self, take: Callable[..., object], *given: object) -> None:
        """One step of the authority's roll-over, and the service's next start."""
        take(self.settings.authority.directory, "home", *given)
        self.restart()

    def rotate(self, ring: Keyring) -> None:
        ring.begin(NOW_MS)
        ring.end(NOW_MS)
        self.restart()

    def enroll(self, client_id: str) -> Device:
        (claim,) = run(self.registrar.issue_claims(1, client_ids=[client_id]))
        keys = Keystore(self.folder / client_id)
        request = EnrollRequest(parse_claim(claim.text).secret, identity.make_csr(keys.make_key()))
        reply = run(self.registrar.enroll(request, "192.0.2.1"))
        newest = {each.kind: each for each in reply.trust_lists}
        followed = newest.get(TrustKind.AUTHORITY)
        roots = followed.members if followed else reply.chain_der[-1:]
        numbers = {kind.value: each.number for kind, each in newest.items()}
        keys.store(reply, roots, from_enrollment(reply.policy), numbers)
        return Device(self, keys)

    def lacks(self) -> dict[str, list[str]]:
        return {row.client_id: lacking for row, lacking in run(self.registrar.behind())}

    def eligible(self) -> list[str]:
        return [record.client_id for record in run(self.registrar.eligible())]


class Device:
    """An enrolled device that renews by the runtime's own code; its calls reach the registrar as the service does."""

    def __init__(self, site: Site, keys: Keystore) -> None:
        self.site = site
        self.keys = keys
        self.lists_dropped = 0

    @property
    def own(self) -> Identity:
        return self.keys.load()

    def renew(self, csr_der: bytes, numbers: dict[str, int]) -> Renewal:
        registrar = self.site.registrar
        registrar.callers.admit(der_to_pem(self.own.certificate_der), NOW_MS)
        issued = run(registrar.renew(self.own.client_id, csr_der))
        lists = registrar.trust_lists(numbers)[self.lists_dropped :]
        terms = registrar.terms
        return Renewal(issued.chain_der, terms.endpoints, lists, terms.policy, NOW_MS)

    def comes(self) -> Identity:
        """It renews and tells its status."""
        own = renew(cast("Link", self), self.keys, self.own)
        status = DeviceStatus(
            "1", "", "", 1, 1, 1, 1, 1.0, NOW_MS, trusts=own.trusts, issued_by=own.issued_by
        )
        profile = asdict(status)
        self.site.database.run_now(lambda c: store.set_profile(c, own.client_id, profile, NOW_MS))
        return own


def run(work: Awaitable[T]) -> T:
    async def wait() -> T:
        return await work

    return asyncio.run(wait())


@pytest.fixture
def site(tmp_path: Path) -> Any:
    found = Site(tmp_path)
    yield found
    found.database.close()


def test_nothing_is_lacking_in_a_fleet_that_never_changed(site: Site) -> None:
    device = site.enroll("there")
    assert site.lacks() == {}
    before = device.own
    after = device.comes()
    assert (after.trusts, after.trust_numbers) == (before.trusts, {})
    assert not site.registrar.changed


def test_authority_rolls_over_while_one_device_is_away(site: Site) -> None:
    there, away = site.enroll("there"), site.enroll("away")
    old, pinned = site.authorities.issuing, there.own.policy
    site.step(rollover.begin, NOW_MS)
    new = site.authorities.believed[1]
    assert there.comes().authorities == (old.der, new.der)
    assert there.own.issued_by == mark(old)
    assert site.lacks() == {"away": ["authority"]}
    assert site.eligible() == ["away", "there"]

    site.step(rollover.issue)
    assert there.comes().issued_by == mark(new)
    assert site.lacks() == {"away": ["authority", "certificate"]}
    assert site.eligible() == ["there"], "it would not believe what the others sign"
    assert away.comes().authorities == (old.der, new.der)
    assert away.own.issued_by == mark(new)
    assert site.lacks() == {}
    assert site.eligible() == ["away", "there"]

    site.step(rollover.retire, NOW_MS)
    assert there.comes().authorities == away.comes().authorities == (new.der,)
    assert there.own.policy == pinned


def test_device_that_is_left_behind_is_refused_and_joins_again(site: Site) -> None:
    away = site.enroll("away")
    for take, given in ((rollover.begin, (NOW_MS,)), (rollover.issue, ()), (rollover.retire, (NOW_MS,))):
        site.step(cast("Callable[..., object]", take), *given)
    with pytest.raises(PeerError) as caught:
        away.comes()
    assert caught.value.code is Code.FOREIGN_CERTIFICATE
    run(site.registrar.revoke("away", "left behind"))
    away.keys.forget()
    assert site.enroll("away").own.authorities == (site.authorities.issuing.der,)


@pytest.mark.parametrize("steps", range(4))
def test_device_that_joins_in_any_phase_needs_nothing_more(site: Site, steps: int) -> None:
    every = ((rollover.begin, (NOW_MS,)), (rollover.issue, ()), (rollover.retire, (NOW_MS,)))
    for take, given in every[:steps]:
        site.step(cast("Callable[..., object]", take), *given)
    device = site.enroll("new")
    assert device.own.authorities == site.authorities.ders
    assert device.own.issued_by == mark(site.authorities.issuing)
    before = device.own
    assert device.comes().trust_numbers == before.trust_numbers
    assert site.lacks() == {}


def test_device_that_missed_two_rotations_follows_the_chain(site: Site) -> None:
    device = site.enroll("away")
    first = device.own
    for ring in (ticket_ring(site.settings), publisher_ring(site.settings)) * 2:
        site.rotate(ring)
    assert site.lacks() == {"away": ["publisher", "ticket"]}
    after = device.comes()
    assert after.ticket_keys == site.registrar.terms.ticket_keys != first.ticket_keys
    assert after.publisher_keys == site.registrar.terms.publisher_keys != first.publisher_keys
    assert site.lacks() == {}


def test_list_withheld_from_a_device_changes_nothing_on_it(site: Site) -> None:
    """Whoever stands between cannot let it skip the list that would have told it of the next signer."""
    device = site.enroll("there")
    site.rotate(ticket_ring(site.settings))
    device.lists_dropped = 1
    before = device.own
    with pytest.raises(PeerError) as caught:
        device.comes()
    assert caught.value.code is Code.BAD_SIGNATURE
    assert device.own == before


@pytest.mark.parametrize("with_keys", [True, False])
def test_back_up_holds_phase_lists_and_both_authorities(tmp_path: Path, with_keys: bool) -> None:
    found_fleet(tmp_path / "home", "home", "127.0.0.1", Ports(7443, 7444, 8883), NOW_MS)
    configuration = tmp_path / "home" / "aggregator.toml"
    settings = load(configuration)
    Database.open(settings.database_url).close()
    before = rollover.begin(settings.authority.directory, "home", NOW_MS)
    ticket_ring(settings).begin(NOW_MS)
    contents = back_up(configuration, tmp_path / "home.tar", NOW_MS, with_keys=with_keys)
    restore(tmp_path / "home.tar", tmp_path / "again", NOW_MS)
    again = load(tmp_path / "again" / "aggregator.toml")
    assert ("authority/next.key" in contents.keys_left_out) is not with_keys
    if with_keys:
        after = Authorities.load(again.authority.directory, "home")
        assert (after.phase, after.ders, after.lists) == (before.phase, before.ders, before.lists)
        assert ticket_ring(again).rotating
        assert terms_of(again).lists == terms_of(settings).lists


async def test_devices_that_are_behind_are_asked_when_they_come(tmp_path: Path) -> None:
    site = await asyncio.to_thread(Site, tmp_path)
    asked: list[Wish] = []

    class Asking(Orders):
        def __init__(self) -> None:
            pass

        async def give(self, wish: Wish) -> Any:
            asked.append(wish)
            if len(asked) == 1:  # while this one is asked, another comes
                await site.database.run(lambda c: store.saw(c, "pi-3", NOW_MS, online=True))
                site.registrar.came("pi-3")

    await asyncio.to_thread(lambda: [site.enroll(name) for name in ("pi-1", "pi-2", "pi-3")])
    await asyncio.to_thread(site.rotate, ticket_ring(site.settings))
    rollout = Rollout(site.registrar, Asking(), lambda: NOW_MS, os.urandom, gather_s=0.0)

    async def come(client_id: str) -> None:
        await site.database.run(lambda c: store.saw(c, client_id, NOW_MS, online=True))
        site.registrar.came(client_id)
        await gathered()

    async def gathered() -> None:
        assert rollout._task is not None
        await rollout._task

    try:
        rollout.begin()
        await gathered()
        assert asked == [], "nobody is there"
        for client_id in ("pi-1", "pi-1", "pi-2", "pi-1"):
            await come(client_id)
        assert [wish.client_ids for wish in asked] == [["pi-1"], ["pi-3"], ["pi-2"]], "once an hour"
    finally:
        await rollout.close()
        site.database.close()
