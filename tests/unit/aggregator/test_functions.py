"""Cloud functions in the registrar: short certificates for one-use claims, and what may not be done with either."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select

from aggregator.functions import CLOSE_WINDOW_MS
from aggregator.store import fleet as store
from fedless.protocol import identity
from fedless.protocol.claim import parse_claim
from fedless.protocol.cloud import deployment_from_json
from fedless.protocol.errors import Code, PeerError
from tests.unit.aggregator.test_enrollment import NOW_MS, Fleet, request_for

SETTINGS = {"memory_mb": 512, "timeout_s": 60, "url": "https://fn.example/", "mode": "http"}
MINUTE_MS = 60_000
ADDRESS = "a.example:7444"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    pytest.importorskip("httpx")
    made = Fleet(tmp_path / "fedless.db")
    yield made
    made.database.close()


async def added(fleet: Fleet, client_id: str = "fn-1", **settings: object) -> str:
    return await fleet.registrar.add_function(client_id, "knative", json.dumps({**SETTINGS, **settings}))


async def claim(fleet: Fleet, client_id: str = "fn-1") -> str:
    return await fleet.registrar.functions.claim(client_id, ADDRESS, fleet.now_ms + MINUTE_MS)


async def test_function_gets_a_certificate_for_one_invocation(fleet: Fleet) -> None:
    await added(fleet)
    text = await claim(fleet)
    assert parse_claim(text).address == ADDRESS
    for _ in range(2):  # each invocation has its own claim, key and certificate
        enrollment = await fleet.registrar.enroll(request_for(await claim(fleet)), "198.51.100.7")
        name, _ = identity.verify_chain(enrollment.chain_der, fleet.authority.der, "home", NOW_MS)
        assert name == identity.Name("home", identity.Role.FUNCTION, "fn-1")
    with pytest.raises(PeerError) as caught:
        identity.verify_chain(
            enrollment.chain_der, fleet.authority.der, "home", NOW_MS + MINUTE_MS + CLOSE_WINDOW_MS + 1000
        )
    assert caught.value.code is Code.CERTIFICATE_EXPIRED
    assert [record.client_id for record in await fleet.registrar.eligible()] == ["fn-1"]


async def test_stolen_payload_is_useless_after_use(fleet: Fleet) -> None:
    await added(fleet)
    stolen = await claim(fleet)
    await fleet.registrar.enroll(request_for(stolen), "192.0.2.1")
    assert await fleet.refusal(request_for(stolen)) is Code.CLAIM_USED
    rows = fleet.database.run_now(lambda c: c.execute(select(store.alarms)).all())
    assert [(row.what, row.client_id) for row in rows] == [("claim_used", "fn-1")]


async def test_stolen_payload_is_useless_after_expiry(fleet: Fleet) -> None:
    await added(fleet)
    stolen = await claim(fleet)
    fleet.now_ms += MINUTE_MS
    assert await fleet.refusal(request_for(stolen)) is Code.CLAIM_EXPIRED


async def test_function_cannot_renew_into_a_long_certificate(fleet: Fleet) -> None:
    """Nor become a device."""
    await added(fleet)
    with pytest.raises(PeerError) as caught:
        await fleet.registrar.renew("fn-1", identity.make_csr(identity.new_key()))
    assert caught.value.code is Code.WRONG_ROLE
    with pytest.raises(PeerError) as caught:
        await fleet.registrar.issue_claims(1, client_ids=["fn-1"])
    assert caught.value.code is Code.WRONG_STATE


async def test_device_claim_for_a_revoked_function_gives_nothing(fleet: Fleet) -> None:
    await added(fleet)
    await fleet.registrar.revoke("fn-1", "")
    issued = await fleet.registrar.issue_claims(1, client_ids=["fn-1"])
    assert await fleet.refusal(request_for(issued[0].text)) is Code.CERTIFICATE_REVOKED


async def test_revoked_function_is_neither_claimed_for_nor_admitted(fleet: Fleet) -> None:
    await added(fleet)
    open_claim = await claim(fleet)
    enrollment = await fleet.registrar.enroll(request_for(await claim(fleet)), "192.0.2.1")
    await fleet.registrar.revoke("fn-1", "lost")
    assert await fleet.refusal(request_for(open_claim)) is Code.CLAIM_EXPIRED
    with pytest.raises(PeerError) as caught:
        await claim(fleet)
    assert caught.value.code is Code.UNKNOWN_CLIENT
    assert len(fleet.registrar.callers.denied) == 1
    assert enrollment.client_id == "fn-1"
    await added(fleet)
    await claim(fleet)


async def test_a_device_does_not_become_a_function(fleet: Fleet) -> None:
    await fleet.registrar.enroll(request_for(await fleet.claim("dev-1")), "192.0.2.1")
    with pytest.raises(PeerError) as caught:
        await added(fleet, "dev-1")
    assert caught.value.code is Code.WRONG_STATE


async def test_ended_invocations_are_forgotten(fleet: Fleet) -> None:
    await added(fleet)
    for _ in range(20):
        await fleet.registrar.enroll(request_for(await claim(fleet)), "192.0.2.1")
        fleet.now_ms += 10 * MINUTE_MS
    for table in (store.claims, store.certificates):
        assert fleet.database.run_now(lambda c, t=table: c.scalar(select(func.count()).select_from(t))) <= 2  # type: ignore[misc]


async def test_deployment_holds_no_secret(fleet: Fleet) -> None:
    text = await added(fleet, data={"default": {"path": "s3://bucket/shard.npz"}}, threads=2)
    deployment = deployment_from_json(text)
    assert (deployment.fleet, deployment.client_id, deployment.threads) == ("home", "fn-1", 2)
    assert deployment.data == {"default": {"path": "s3://bucket/shard.npz"}}
    assert "PRIVATE" not in text


@pytest.mark.parametrize(
    ("platform", "settings", "code"),
    [
        ("knative", "[]", Code.CONFIG_INVALID),
        ("knative", "{", Code.CONFIG_INVALID),
        ("knative", json.dumps({**SETTINGS, "data": 1}), Code.CONFIG_INVALID),
        ("knative", json.dumps({**SETTINGS, "threads": 0}), Code.CONFIG_INVALID),
        ("knative", json.dumps({**SETTINGS, "modes": ["pairwise"]}), Code.CONFIG_INVALID),
        ("knative", json.dumps({**SETTINGS, "url": "ftp://x"}), Code.CONFIG_INVALID),
        ("lambada", json.dumps(SETTINGS), Code.CONFIG_INVALID),
    ],
)
async def test_bad_registration_is_refused(fleet: Fleet, platform: str, settings: str, code: Code) -> None:
    with pytest.raises(PeerError) as caught:
        await fleet.registrar.add_function("fn-1", platform, settings)
    assert caught.value.code is code
    with pytest.raises(PeerError):
        await fleet.registrar.add_function("Aggregator", "knative", json.dumps(SETTINGS))
