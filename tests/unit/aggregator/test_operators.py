"""Operators and their certificates: who has called, and what happens to one whose certificate was taken."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aggregator.authorities import Authorities
from aggregator.authority import Authority, Caller
from aggregator.operators import SEEN_EVERY_MS, Operators, given
from aggregator.service_guard import OPERATORS, Guarded, guarded_stream
from aggregator.store import operators as store
from fedless.protocol import identity
from fedless.protocol.errors import Code, PeerError
from tests.running_fleet import Credentials
from tests.unit.aggregator.test_enrollment import NOW_MS, Fleet, request_for


class Operated(Fleet):
    """A fleet with its operators."""

    def open(self) -> None:
        super().open()
        self.operators = Operators(self.database, self.registrar, lambda: self.now_ms)
        self.registrar.callers.on_operator = self.operators.seen

    def certificate(self, name: str, role: identity.Role = identity.Role.OPERATOR) -> bytes:
        who = identity.Name("home", role, name)
        return Credentials.issued(self.authority, who, NOW_MS, days=365).chain

    def call(self, pem: bytes) -> Caller:
        return self.registrar.callers.admit(pem, self.now_ms)

    async def revoke(self, by: bytes, operator: str = "", pem: bytes = b"") -> list[str]:
        return await self.operators.revoke(operator, pem, "left", self.call(by))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Operated]:
    made = Operated(tmp_path / "fedless.db")
    yield made
    made.database.close()


async def refused(call: Awaitable[object]) -> Code:
    with pytest.raises(PeerError) as caught:
        await call
    return caught.value.code


def refusal(fleet: Operated, pem: bytes) -> Code:
    with pytest.raises(PeerError) as caught:
        fleet.call(pem)
    return caught.value.code


async def test_revoked_operator_is_refused_on_the_next_call(fleet: Operated) -> None:
    anna, ben = fleet.certificate("anna"), fleet.certificate("ben")
    told: list[frozenset[str]] = []
    fleet.registrar.on_denied = told.append
    serial = fleet.call(ben).serial
    await fleet.operators.every()
    assert await fleet.revoke(anna, "ben") == [serial]
    assert refusal(fleet, ben) is Code.CERTIFICATE_REVOKED
    assert told == [frozenset({serial})], "the broker's list has it"
    assert fleet.call(anna).name.id == "anna", "nobody else is touched"
    await fleet.restart()
    assert refusal(fleet, ben) is Code.CERTIFICATE_REVOKED
    (row,) = [row for row in await fleet.operators.every() if row.name == "ben"]
    assert (row.revoked_by, row.revoked_reason, row.revoked_at_ms) == ("anna", "left", NOW_MS)
    fleet.now_ms = row.not_after_ms
    await fleet.registrar.load()
    assert fleet.registrar.callers.denied == frozenset(), "it has ended by itself"


async def test_one_of_two_certificates_of_a_name_is_revoked_by_its_serial(fleet: Operated) -> None:
    stolen, fresh = fleet.certificate("main"), fleet.certificate("main")
    serials = [fleet.call(pem).serial for pem in (stolen, fresh)]
    await fleet.operators.every()
    assert await fleet.revoke(fresh, serials[0].upper()) == serials[:1]
    assert refusal(fleet, stolen) is Code.CERTIFICATE_REVOKED
    assert fleet.call(fresh).serial == serials[1]


async def test_certificate_that_never_called_is_revoked_by_its_file(fleet: Operated) -> None:
    leaked = fleet.certificate("carl")
    await fleet.revoke(fleet.certificate("anna"), pem=leaked)
    assert refusal(fleet, leaked) is Code.CERTIFICATE_REVOKED


async def test_nobody_locks_himself_out(fleet: Operated) -> None:
    own = fleet.certificate("main")
    for operator, pem in ((fleet.call(own).serial, b""), ("main", b""), ("", own)):
        await fleet.operators.every()
        assert await refused(fleet.revoke(own, operator, pem)) is Code.WRONG_STATE
    assert fleet.call(own).name.id == "main"


async def test_what_is_no_operators_certificate_is_not_taken(fleet: Operated) -> None:
    anna = fleet.certificate("anna")
    device = fleet.certificate("pi-1", identity.Role.DEVICE)
    foreign = Credentials.issued(
        Authority.create("home", NOW_MS), identity.Name("home", identity.Role.OPERATOR, "eve"), NOW_MS
    ).chain
    assert await refused(fleet.revoke(anna, "nobody")) is Code.UNKNOWN_CLIENT
    assert await refused(fleet.revoke(anna, pem=device)) is Code.FOREIGN_CERTIFICATE
    assert await refused(fleet.revoke(anna, pem=foreign)) is Code.FOREIGN_CERTIFICATE
    assert await refused(fleet.revoke(anna, pem=b"nonsense")) is Code.FOREIGN_CERTIFICATE


async def test_calls_are_noted_a_minute_apart(fleet: Operated) -> None:
    anna = fleet.certificate("anna")
    for passed_ms, seen in ((0, 0), (SEEN_EVERY_MS - 1, 0), (SEEN_EVERY_MS, SEEN_EVERY_MS)):
        fleet.now_ms = NOW_MS + passed_ms
        fleet.call(anna)
        (row,) = await fleet.operators.every()
        assert row.last_seen_ms == NOW_MS + seen
    assert (row.name, row.noted_at_ms) == ("anna", NOW_MS)
    (claim,) = await fleet.registrar.issue_claims(1, client_ids=["pi-1"])
    await fleet.registrar.enroll(request_for(claim.text), "192.0.2.1")
    assert len(await fleet.operators.every()) == 1, "devices are not among them"


async def test_call_that_cannot_be_noted_is_answered(fleet: Operated) -> None:
    """As when the service stops: nothing is left that nobody waits for."""
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, what: unheard.append(what))
    fleet.database.close()
    assert fleet.call(fleet.certificate("anna")).name.id == "anna"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
    assert unheard == []


async def test_given_folder_is_of_the_authority_that_issues(fleet: Operated, tmp_path: Path) -> None:
    authorities = Authorities.of(fleet.authority)
    issued = given(tmp_path / "anna", authorities, "anna", b"fleet = 'home'", NOW_MS)
    caller = fleet.call((tmp_path / "anna" / "cert.pem").read_bytes())
    assert (caller.name.role, caller.name.id, caller.serial) == (
        identity.Role.OPERATOR,
        "anna",
        issued.serial,
    )
    assert (tmp_path / "anna" / "cert.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(PeerError) as caught:
        given(tmp_path / "bad", authorities, "Anna / Ben", b"", NOW_MS)
    assert caught.value.code is Code.RESERVED_NAME
    await fleet.database.run(lambda c: store.note(c, issued.serial, "anna", issued.not_after_ms, NOW_MS))
    (row,) = await fleet.operators.every()
    assert row.serial == issued.serial


# -- a stream that is open


class Aborted(Exception):  # noqa: N818 - what it is
    """The call was ended."""


class Context:
    """What the guard needs of gRPC's."""

    def __init__(self, pem: bytes) -> None:
        self.pem = pem
        self.told = ""

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_pem_cert": [self.pem]}

    async def abort(self, code: object, details: str, trailing: object) -> None:
        self.told = details
        raise Aborted


class Watching(Guarded):
    """A service with a stream that never ends by itself."""

    @guarded_stream(OPERATORS)
    async def Watch(self, _request: object, _caller: Caller) -> AsyncIterator[int]:
        number = 0
        while True:
            await asyncio.sleep(0)
            number += 1
            yield number


async def test_open_stream_of_a_revoked_operator_ends_with_its_next_event(fleet: Operated) -> None:
    anna, ben = fleet.certificate("anna"), fleet.certificate("ben")
    context: Any = Context(ben)
    stream = Watching(fleet.registrar.callers, lambda: fleet.now_ms).Watch(None, context)
    assert await anext(stream) == 1
    await fleet.revoke(anna, pem=ben)
    with pytest.raises(Aborted):
        await anext(stream)
    assert Code.CERTIFICATE_REVOKED.sentence in context.told
