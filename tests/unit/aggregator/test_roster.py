"""The list of clients: names, labels, forgetting one; and that joining again keeps a client's history."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator
from pathlib import Path

import pytest

from aggregator.roster import Roster
from aggregator.store import fleet as store
from aggregator.store import history
from fedless.protocol.errors import Code, PeerError
from tests.unit.aggregator.test_enrollment import Fleet, request_for


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "fedless.db")
    yield made
    made.database.close()


async def join(fleet: Fleet, name: str, **labels: str) -> None:
    (claim,) = await fleet.registrar.issue_claims(1, client_ids=[name], labels=labels)
    await fleet.registrar.enroll(request_for(claim.text), "192.0.2.1")


async def refusal(call: Awaitable[object]) -> Code:
    with pytest.raises(PeerError) as caught:
        await call
    return caught.value.code


async def test_a_name_stands_for_its_client_and_for_nobody_else(fleet: Fleet) -> None:
    roster = Roster(fleet.database, fleet.registrar)
    await join(fleet, "pi-1")
    await join(fleet, "pi-2")
    assert await roster.rename("pi-1", "Greenhouse, north") == "pi-1"
    assert await roster.find("Greenhouse, north") == "pi-1"
    assert (await roster.show("Greenhouse, north")).row.client_id == "pi-1"
    assert await refusal(roster.rename("pi-2", "Greenhouse, north")) is Code.WRONG_STATE
    assert await refusal(roster.rename("pi-2", "pi-1")) is Code.WRONG_STATE, "another client's id"
    for bad in ("x" * 65, "line\nbreak", " edge"):
        assert await refusal(roster.rename("pi-2", bad)) is Code.RESERVED_NAME
    await roster.rename("pi-1", "")
    assert await refusal(roster.find("Greenhouse, north")) is Code.UNKNOWN_CLIENT
    assert await refusal(roster.find("")) is Code.UNKNOWN_CLIENT


async def test_labels_are_set_and_taken_and_bounded(fleet: Fleet) -> None:
    roster = Roster(fleet.database, fleet.registrar)
    await join(fleet, "pi-1", site="a", gpu="no")
    assert await roster.label("pi-1", {"site": "b"}, ["gpu", "absent"]) == {"site": "b"}
    (record,) = await fleet.registrar.eligible()
    assert record.labels == {"site": "b"}
    many = {f"key-{number}": "x" for number in range(33)}
    assert await refusal(roster.label("pi-1", many, [])) is Code.OUT_OF_RANGE
    assert await refusal(roster.label("pi-1", {"key": "x" * 129}, [])) is Code.OUT_OF_RANGE
    assert await refusal(roster.label("nobody", {}, [])) is Code.UNKNOWN_CLIENT


async def test_joining_again_keeps_a_clients_history(fleet: Fleet) -> None:
    roster = Roster(fleet.database, fleet.registrar)
    await join(fleet, "pi-1", site="a")
    await roster.rename("pi-1", "attic")
    await fleet.database.run(lambda c: history.count(c, "pi-1", "reports", fleet.now_ms))
    first = await roster.show("pi-1")
    await fleet.registrar.revoke("pi-1", "stolen")
    fleet.now_ms += 1000
    await join(fleet, "pi-1")
    again = await roster.show("attic")
    assert again.counts == first.counts == {"reports": 1}
    assert (again.row.state, again.row.labels, again.row.revoked_reason) == (
        store.ENROLLED,
        {"site": "a"},
        "",
    )
    newest, oldest = again.certificates
    assert (newest[3], oldest[3]) == (0, fleet.now_ms - 1000)
    assert oldest == (*first.certificates[0][:3], oldest[3])


async def test_a_removed_client_is_in_no_list_and_its_certificate_stays_refused(fleet: Fleet) -> None:
    roster = Roster(fleet.database, fleet.registrar)
    cut: list[str] = []
    fleet.registrar.on_revoked = cut.append
    await join(fleet, "pi-1", site="a")
    await roster.rename("pi-1", "attic")
    ((serial, *_),) = (await roster.show("pi-1")).certificates
    assert await roster.remove("attic") == "pi-1"
    assert cut == ["pi-1"]
    assert await fleet.database.run(store.all_clients) == []
    for call in (roster.show("pi-1"), roster.find("attic"), roster.remove("pi-1")):
        assert await refusal(call) is Code.UNKNOWN_CLIENT
    await fleet.restart()
    assert serial in fleet.registrar.callers.denied
    assert await fleet.registrar.gone("pi-1")
    await join(fleet, "pi-1")
    roster = Roster(fleet.database, fleet.registrar)
    known = await roster.show("pi-1")
    assert (known.row.labels, known.row.name, known.row.state) == ({}, "", store.ENROLLED)
    assert not await fleet.registrar.gone("pi-1")
