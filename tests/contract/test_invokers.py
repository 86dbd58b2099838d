"""One suite for every adapter, each against the realest peer that runs here (docs/adapters.md has the table)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloud_adapters.base import Invoker, Needs, Receipt
from cloud_adapters.registry import invoker
from fedless.protocol.errors import Code, LocalError, PeerError
from tests.cloud_fleet import CloudFleet
from tests.contract.peers import aws, azure, google, knative, openfaas, openwhisk
from tests.contract.peers.process import Peer
from tests.edge_fleet import FOREIGN_KEY, now_ms

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]
CLIENT = "fn-1"
Start = Callable[[Path, Mapping[str, str]], Peer]
PEERS: dict[str, Start] = {
    "aws-lambda-emulator": aws.emulator,
    "aws-lambda-offline": partial(aws.offline, mode="sync"),
    "aws-lambda-offline-event": partial(aws.offline, mode="event"),
    "google-http": partial(google.framework, mode="http"),
    "google-cloudevent": partial(google.framework, mode="cloudevent"),
    "azure": azure.host,
    "openwhisk": openwhisk.controller,
    "openfaas-sync": partial(openfaas.gateway, mode="sync"),
    "openfaas-async": partial(openfaas.gateway, mode="async"),
    "knative-http": partial(knative.func, mode="http"),
    "knative-cloudevent": partial(knative.func, mode="cloudevent"),
    "knative-container": knative.container,
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudFleet]:
    fleet = CloudFleet(tmp_path_factory.mktemp("fleet"))
    yield fleet
    fleet.stop()


@pytest.fixture(scope="module", params=PEERS)
def peer(
    request: pytest.FixtureRequest, fleet: CloudFleet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peer]:
    folder = tmp_path_factory.mktemp("peer")
    (folder / "deployment.json").write_text(fleet.deployment(CLIENT))
    deployed = {
        "FEDLESS_DEPLOYMENT": str(folder / "deployment.json"),
        "FEDLESS_SCRATCH": str(folder / "scratch"),
    }
    peer = PEERS[request.param](folder, deployed)
    yield peer
    peer.stop()


@pytest.fixture(autouse=True)
def aws_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws.KEYS.items():
        monkeypatch.setenv(name, value)


def adapter(platform: str, settings: Mapping[str, Any]) -> Invoker:
    try:
        return invoker(platform, CLIENT, settings)
    except LocalError as error:
        if error.code is Code.NOT_INSTALLED:
            pytest.skip(str(error))
        raise


@pytest.fixture
async def invoke(fleet: CloudFleet, peer: Peer) -> AsyncIterator[Callable[..., Any]]:
    opened: list[Invoker] = []

    async def run(ticket: bytes, settings: Mapping[str, Any] = peer.settings, **options: Any) -> Receipt:
        opened.append(adapter(peer.platform, settings))
        return await opened[-1].invoke(ticket, lambda: fleet.claim(CLIENT), now_ms() + 60_000, **options)

    yield run
    for one in opened:
        await one.close()


async def happens(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the condition is of another thread


async def test_a_function_is_invoked_and_reports(
    fleet: CloudFleet, peer: Peer, invoke: Callable[..., Any]
) -> None:
    for _ in range(2):
        ticket = fleet.open_round(CLIENT)
        receipt = await invoke(fleet.wake_bytes(ticket))
        if peer.answers:
            assert receipt.answer is not None
            assert (receipt.answer.outcome, receipt.answer.detail) == ("reported", "")
            assert receipt.figures.run_ms > 0
            assert receipt.figures.source == ("platform" if peer.measures else "function")
        else:
            assert receipt.answer is None
        await happens(partial(fleet.reported, ticket.round_id))
        await happens(partial(fleet.told, ticket.round_id))  # it is ready for the next one


async def test_a_refusal_by_the_function_comes_back(
    fleet: CloudFleet, peer: Peer, invoke: Callable[..., Any]
) -> None:
    ticket = fleet.open_round(CLIENT)
    fleet.aggregator.metrics.append("no metrics come from a forged ticket")
    receipt = await invoke(fleet.wake_bytes(ticket, FOREIGN_KEY))
    if peer.answers:
        assert receipt.answer is not None
        assert receipt.answer.outcome == Code.TICKET_UNKNOWN_KEY.value
    assert not fleet.reported(ticket.round_id)


async def test_an_unknown_function_is_named(
    fleet: CloudFleet, peer: Peer, invoke: Callable[..., Any]
) -> None:
    if peer.unknown is None:
        pytest.skip("this runtime has but one function")
    with pytest.raises(PeerError, match=f"{peer.platform}, client {CLIENT}") as caught:
        await invoke(b"ticket", peer.unknown)
    assert caught.value.code is Code.FUNCTION_UNKNOWN
    assert caught.value.fix


async def test_wrong_credentials_are_named(fleet: CloudFleet, peer: Peer, invoke: Callable[..., Any]) -> None:
    if peer.denied is None:
        pytest.skip("this runtime asks for no credentials")
    with pytest.raises(PeerError, match=f"{peer.platform}, client {CLIENT}") as caught:
        await invoke(b"ticket", peer.denied)
    assert caught.value.code is Code.PLATFORM_DENIED
    assert "wrong" not in str(caught.value)


async def test_what_cannot_fit_is_refused_before_invoking(peer: Peer, invoke: Callable[..., Any]) -> None:
    gone = dict(peer.settings)
    for name in ("url", "endpoint_url", "api_host", "gateway"):
        if name in gone:
            gone[name] = "http://127.0.0.1:9"  # asking it would be an error of another name
    for needs in (Needs(memory_mb=100_000), Needs(time_ms=10_000_000)):
        with pytest.raises(PeerError, match=f"{peer.platform}, client {CLIENT}") as caught:
            await invoke(b"ticket", gone, needs=needs)
        assert caught.value.code is Code.FUNCTION_LIMIT
    with pytest.raises(PeerError) as caught:
        await invoke(b"t" * adapter(peer.platform, gone).limits.payload_bytes.value, gone)
    assert caught.value.code is Code.FUNCTION_LIMIT


def test_limits_say_where_they_are_written(peer: Peer) -> None:
    limits = adapter(peer.platform, peer.settings).limits
    for limit in (limits.time_ms, limits.payload_bytes, limits.memory_mb, limits.concurrency):
        assert limit.source
        assert limit.value >= 0


@pytest.mark.parametrize(
    "change", [{"memory_mb": 1 << 30}, {"timeout_s": 1 << 30}, {"colour": "red"}, {"memory_mb": None}]
)
def test_settings_that_cannot_be_are_refused(peer: Peer, change: dict[str, Any]) -> None:
    adapter(peer.platform, peer.settings)
    with pytest.raises(LocalError, match=next(iter(change))) as caught:
        invoker(peer.platform, CLIENT, {**peer.settings, **change})
    assert caught.value.code is Code.CONFIG_INVALID
