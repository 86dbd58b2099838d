"""The called side in this process: a real instance, a fake aggregator over real gRPC and mTLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud_adapters.handlers.function import CloudFunction
from fedless.protocol.cloud import Payload, deployment_from_json, payload_to_json
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import Kind
from tests.cloud_fleet import CloudFleet
from tests.edge_fleet import FOREIGN_KEY, now_ms

CLIENT = "fn-1"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[CloudFleet]:
    fleet = CloudFleet(tmp_path)
    yield fleet
    fleet.stop()


@pytest.fixture
def function(fleet: CloudFleet, tmp_path: Path) -> CloudFunction:
    return CloudFunction(deployment_from_json(fleet.deployment(CLIENT)), tmp_path / "scratch")


async def test_an_invocation_trains_and_reports(fleet: CloudFleet, function: CloudFunction) -> None:
    for start in ("cold", "warm"):
        ticket = fleet.open_round(CLIENT)
        answer = function.run(payload_to_json(Payload(fleet.wake_bytes(ticket), await fleet.claim(CLIENT))))
        assert (answer["outcome"], answer["detail"]) == ("reported", "")
        assert fleet.reported(ticket.round_id)
        assert answer["start"] == start
        assert answer["bytes_up"] == len(fleet.fleet.model)
    assert [metrics.outcome for metrics in fleet.aggregator.metrics] == ["reported", "reported"]


async def test_an_evaluation_reports_sums(fleet: CloudFleet, function: CloudFunction) -> None:
    ticket = fleet.open_round(CLIENT, kind=Kind.EVALUATE)
    answer = function.run(payload_to_json(Payload(fleet.wake_bytes(ticket), await fleet.claim(CLIENT))))
    header = fleet.aggregator.rounds[ticket.round_id].header
    assert answer["outcome"] == "reported"
    assert header is not None
    assert header.examples == 40
    assert "loss" in header.sums


async def outcome(function: CloudFunction, ticket: bytes, claim: str) -> str:
    return str(function.run(payload_to_json(Payload(ticket, claim)))["outcome"])


async def test_stolen_payload_is_useless_after_use(
    fleet: CloudFleet, function: CloudFunction, tmp_path: Path
) -> None:
    payload = fleet.wake_bytes(fleet.open_round(CLIENT)), await fleet.claim(CLIENT)
    assert await outcome(function, *payload) == "reported"
    thief = CloudFunction(function.deployment, tmp_path / "elsewhere")
    assert await outcome(thief, *payload) == Code.CLAIM_USED.value


async def test_stolen_payload_is_useless_after_expiry(fleet: CloudFleet, function: CloudFunction) -> None:
    ticket = fleet.wake_bytes(fleet.open_round(CLIENT))
    assert (
        await outcome(function, ticket, await fleet.claim(CLIENT, now_ms() - 1)) == Code.CLAIM_EXPIRED.value
    )
    late = fleet.open_round(CLIENT, not_after_ms=now_ms() - 1)
    assert (
        await outcome(function, fleet.wake_bytes(late), await fleet.claim(CLIENT))
        == Code.TICKET_EXPIRED.value
    )


async def test_forged_ticket_gets_no_further(fleet: CloudFleet, function: CloudFunction) -> None:
    ticket, claim = fleet.open_round(CLIENT), await fleet.claim(CLIENT)
    assert (
        await outcome(function, fleet.wake_bytes(ticket, FOREIGN_KEY), claim) == Code.TICKET_UNKNOWN_KEY.value
    )
    other = fleet.open_round("fn-2")
    assert await outcome(function, fleet.wake_bytes(other), claim) == Code.TICKET_FOREIGN.value
    assert fleet.aggregator.calls == []
    assert all(not given.public_key for given in fleet.claims.values())


async def test_claim_of_another_client_is_refused(fleet: CloudFleet, function: CloudFunction) -> None:
    """The certificate would name the other one."""
    ticket = fleet.open_round(CLIENT)
    assert (
        await outcome(function, fleet.wake_bytes(ticket), await fleet.claim("fn-2"))
        == Code.FOREIGN_CERTIFICATE.value
    )
    assert fleet.aggregator.calls == []


async def test_claim_of_another_authority_is_refused(
    fleet: CloudFleet, function: CloudFunction, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = CloudFleet(tmp_path / "other")
    try:
        claim = await other.claim(CLIENT)
        assert (
            await outcome(function, fleet.wake_bytes(fleet.open_round(CLIENT)), claim)
            == Code.CLAIM_FOREIGN.value
        )
    finally:
        other.stop()


@pytest.mark.parametrize(
    "event",
    [b"", b"[]", b"{}", b"<html>", b'{"fedless": 1, "ticket": "?", "claim": "x"}', b"x" * 9000,
     b'{"fedless": 1, "ticket": "AAAA", "claim": 7}', {"fedless": 1}],
)  # fmt: skip
def test_malformed_payload_is_an_outcome(function: CloudFunction, event: Any) -> None:
    assert function.run(event)["outcome"] == Code.MALFORMED.value


def test_payload_of_another_version_is_refused(function: CloudFunction) -> None:
    answer = function.run({"fedless": 2, "ticket": "", "claim": ""})
    assert answer["outcome"] == Code.MALFORMED.value
    assert "version 1, found 2" in answer["detail"]


async def test_time_limit_of_the_platform_is_told(fleet: CloudFleet, function: CloudFunction) -> None:
    ticket = fleet.open_round(CLIENT)
    payload = payload_to_json(Payload(fleet.wake_bytes(ticket), await fleet.claim(CLIENT)))
    answer = function.run(payload, left_ms=1000)
    assert answer["outcome"] == Code.INSTANCE_TIMEOUT.value
    assert "time limit" in answer["detail"]
    assert not fleet.reported(ticket.round_id)


async def test_one_invocation_at_a_time(fleet: CloudFleet, function: CloudFunction) -> None:
    inner: list[Any] = []
    fleet.aggregator.before = lambda call: inner.append(function.run({})) if call == "check_in" else None
    ticket = fleet.open_round(CLIENT)
    assert await outcome(function, fleet.wake_bytes(ticket), await fleet.claim(CLIENT)) == "reported"
    assert [answer["outcome"] for answer in inner] == [Code.BUSY.value]


def test_deployment_comes_back_as_it_was(fleet: CloudFleet) -> None:
    deployment = deployment_from_json(fleet.deployment(CLIENT))
    assert deployment.client_id == CLIENT
    assert replace(deployment).ticket_keys == deployment.ticket_keys
    assert "PRIVATE" not in fleet.deployment(CLIENT)
    for broken in ("", "[]", "{}", json.dumps({"fleet": "x"})):
        with pytest.raises(LocalError, match="add-function"):
            deployment_from_json(broken)
