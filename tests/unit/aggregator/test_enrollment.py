"""Claims, enrollment, renewal and revocation over a real store; the attacks on them by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, select

from aggregator.authorities import Authorities
from aggregator.authority import Authority, der_to_pem
from aggregator.enrollment import HOUR_MS, Registrar, Terms
from aggregator.store import fleet as store
from aggregator.store.engine import Database
from fedless.protocol import identity
from fedless.protocol.claim import parse_claim, secret_hash
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Endpoints, EnrollRequest, PolicyMessage

NOW_MS = 1_790_000_000_000
TERMS = Terms(
    Endpoints(("a.example:7443",), ("a.example:8883",), ("a.example:7444",)), (), (), PolicyMessage(), 90, 24
)


class Fleet:
    """A registrar on a database file, with a clock that the test turns, and its restart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_ms = NOW_MS
        self.authority = Authority.create("home", NOW_MS)
        self.open()

    def open(self) -> None:
        self.database = Database.open(f"sqlite:///{self.path}")
        self.registrar = Registrar(
            self.database, Authorities.of(self.authority), TERMS, lambda: self.now_ms, os.urandom
        )

    async def restart(self) -> None:
        self.database.close()
        self.open()
        await self.registrar.load()

    async def claim(self, *names: str) -> str:
        issued = await self.registrar.issue_claims(max(len(names), 1), client_ids=names)
        return issued[0].text

    async def refusal(self, request: EnrollRequest) -> Code:
        with pytest.raises(PeerError) as caught:
            await self.registrar.enroll(request, "198.51.100.7")
        return caught.value.code


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "fedless.db")
    yield made
    made.database.close()


def request_for(claim: str) -> EnrollRequest:
    return EnrollRequest(parse_claim(claim).secret, identity.make_csr(identity.new_key()))


async def test_claim_becomes_a_certificate(fleet: Fleet) -> None:
    claim = await fleet.claim("dev-1")
    enrollment = await fleet.registrar.enroll(request_for(claim), "198.51.100.7")
    name, _ = identity.verify_chain(enrollment.chain_der, fleet.authority.der, "home", NOW_MS)
    assert name == identity.Name("home", identity.Role.DEVICE, "dev-1")
    assert enrollment.client_id == "dev-1"
    assert parse_claim(claim).authority == fleet.authority.digest
    assert [r.client_id for r in await fleet.registrar.eligible()] == ["dev-1"]


async def test_secret_is_stored_hashed_only(fleet: Fleet) -> None:
    claim = parse_claim(await fleet.claim("dev-1"))
    fleet.database.close()
    stored = b"".join(path.read_bytes() for path in fleet.path.parent.iterdir())
    fleet.open()
    assert claim.secret.encode() not in stored
    assert secret_hash(claim.secret) in stored


async def test_same_claim_with_same_key_gets_the_same_certificate(fleet: Fleet) -> None:
    request = request_for(await fleet.claim())
    first = await fleet.registrar.enroll(request, "198.51.100.7")
    await fleet.restart()
    fleet.now_ms += 100 * HOUR_MS  # long after the claim's end: the answer was lost, not the right to it
    again = await fleet.registrar.enroll(request, "198.51.100.8")
    assert again.chain_der == first.chain_der


async def test_claim_used_twice_is_refused_and_alarmed(fleet: Fleet) -> None:
    claim = await fleet.claim("dev-1")
    await fleet.registrar.enroll(request_for(claim), "192.0.2.1")
    assert await fleet.refusal(request_for(claim)) is Code.CLAIM_USED
    rows = fleet.database.run_now(lambda c: c.execute(select(store.alarms)).all())
    assert [(row.what, row.client_id, row.source) for row in rows] == [
        ("claim_used", "dev-1", "198.51.100.7")
    ]


async def test_expired_claim_is_refused(fleet: Fleet) -> None:
    request = request_for(await fleet.claim())
    fleet.now_ms += 24 * HOUR_MS
    assert await fleet.refusal(request) is Code.CLAIM_EXPIRED
    fleet.now_ms -= 1
    await fleet.registrar.enroll(request, "192.0.2.1")


async def test_unknown_claim_is_refused(fleet: Fleet) -> None:
    await fleet.claim()
    assert (
        await fleet.refusal(EnrollRequest("a" * 26, identity.make_csr(identity.new_key())))
        is Code.CLAIM_UNKNOWN
    )


async def test_bad_request_does_not_use_the_claim_up(fleet: Fleet) -> None:
    claim = await fleet.claim()
    assert await fleet.refusal(EnrollRequest(parse_claim(claim).secret, b"nonsense")) is Code.BAD_CSR
    await fleet.registrar.enroll(request_for(claim), "192.0.2.1")


@pytest.mark.parametrize("name", ["aggregator", "operator", "@aggregator", "Dev", "a/b", "", "-x", "x" * 65])
async def test_reserved_device_name_is_refused(fleet: Fleet, name: str) -> None:
    with pytest.raises(PeerError) as caught:
        await fleet.registrar.issue_claims(1, client_ids=[name])
    assert caught.value.code is Code.RESERVED_NAME


async def test_second_claim_for_an_enrolled_client_is_refused(fleet: Fleet) -> None:
    first, second = await fleet.claim("dev-1"), await fleet.claim("dev-1")
    await fleet.registrar.enroll(request_for(first), "192.0.2.1")
    assert await fleet.refusal(request_for(second)) is Code.CLAIM_USED
    with pytest.raises(PeerError) as caught:
        await fleet.claim("dev-1")
    assert caught.value.code is Code.WRONG_STATE


async def test_claims_are_issued_all_or_none(fleet: Fleet) -> None:
    await fleet.registrar.enroll(request_for(await fleet.claim("dev-2")), "192.0.2.1")
    with pytest.raises(PeerError):
        await fleet.registrar.issue_claims(3, client_ids=["dev-1", "dev-2", "dev-3"])
    rows = fleet.database.run_now(store.all_clients)
    assert [row.client_id for row in rows] == ["dev-2"]


@pytest.mark.parametrize(("count", "names"), [(0, []), (10_001, []), (2, ["dev-1"])])
async def test_absurd_number_of_claims_is_refused(fleet: Fleet, count: int, names: list[str]) -> None:
    with pytest.raises(PeerError) as caught:
        await fleet.registrar.issue_claims(count, client_ids=names)
    assert caught.value.code is Code.OUT_OF_RANGE


async def test_revoked_client_is_out_everywhere(fleet: Fleet) -> None:
    heard: list[frozenset[str]] = []
    fleet.registrar.on_denied = heard.append
    claim = await fleet.claim("dev-1")
    request = request_for(claim)
    enrollment = await fleet.registrar.enroll(request, "192.0.2.1")
    renewed = await fleet.registrar.renew("dev-1", request.csr_der)
    await fleet.registrar.revoke("dev-1", "stolen")
    await fleet.restart()
    for der in (enrollment.chain_der[0], renewed.chain_der[0]):
        with pytest.raises(PeerError) as caught:
            fleet.registrar.callers.admit(der_to_pem(der), NOW_MS)
        assert caught.value.code is Code.CERTIFICATE_REVOKED
    assert await fleet.refusal(request) is Code.CERTIFICATE_REVOKED
    assert await fleet.registrar.eligible() == []
    assert [len(denied) for denied in heard] == [2]
    assert renewed.serial in heard[0]
    with pytest.raises(PeerError):
        await fleet.registrar.renew("dev-1", request.csr_der)


async def test_revocation_takes_open_claims_along(fleet: Fleet) -> None:
    request = request_for(await fleet.claim("dev-1"))
    await fleet.registrar.revoke("dev-1", "lost on the way")
    assert await fleet.refusal(request) is Code.CLAIM_EXPIRED


async def test_revoked_client_joins_again_with_a_new_claim(fleet: Fleet) -> None:
    old = await fleet.registrar.enroll(request_for(await fleet.claim("dev-1")), "192.0.2.1")
    await fleet.registrar.revoke("dev-1", "repaired")
    new = await fleet.registrar.enroll(request_for(await fleet.claim("dev-1")), "192.0.2.1")
    fleet.registrar.callers.admit(der_to_pem(new.chain_der[0]), NOW_MS)
    with pytest.raises(PeerError):
        fleet.registrar.callers.admit(der_to_pem(old.chain_der[0]), NOW_MS)


async def test_ended_certificates_leave_the_deny_list(fleet: Fleet) -> None:
    await fleet.registrar.enroll(request_for(await fleet.claim("dev-1")), "192.0.2.1")
    await fleet.registrar.revoke("dev-1", "")
    assert len(fleet.registrar.callers.denied) == 1
    fleet.now_ms += 91 * 24 * HOUR_MS
    await fleet.restart()
    assert fleet.registrar.callers.denied == frozenset()


async def test_unknown_client_cannot_be_revoked(fleet: Fleet) -> None:
    with pytest.raises(PeerError) as caught:
        await fleet.registrar.revoke("nobody", "")
    assert caught.value.code is Code.UNKNOWN_CLIENT


async def test_claim_is_in_no_repr(fleet: Fleet) -> None:
    issued = (await fleet.registrar.issue_claims(1))[0]
    assert parse_claim(issued.text).secret not in repr(issued)


@pytest.mark.parametrize("statement", range(1, 8))
async def test_power_cut_inside_an_enrollment_costs_nothing(fleet: Fleet, statement: int) -> None:
    """The transaction is undone as a whole, so the claim is as good as before."""

    class PowerCut(BaseException):
        pass

    seen: list[str] = []

    def cut(_connection: object, _cursor: object, text: str, *_: object) -> None:
        seen.append(text)
        if len(seen) == statement:
            raise PowerCut

    request = request_for(await fleet.claim("dev-1"))
    event.listen(fleet.database._backend.engine, "before_cursor_execute", cut)
    try:
        await fleet.registrar.enroll(request, "192.0.2.1")
    except PowerCut:
        await fleet.restart()
        assert await fleet.registrar.eligible() == []
    else:
        assert statement > len(seen), "the cut must come unless all statements were done"
        await fleet.restart()
    first = await fleet.registrar.enroll(request, "192.0.2.1")
    assert (await fleet.registrar.enroll(request, "192.0.2.1")).chain_der == first.chain_der
