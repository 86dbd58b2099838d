"""Renewal after a round: at two thirds of the lifetime, with new addresses and keys, and what is refused then."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.keystore import Keystore
from edge_runtime.participant import WakeUp, serve
from fedless.protocol import signed, wire
from fedless.protocol.messages import Endpoints, Mode, PolicyMessage
from tests.edge_fleet import FOREIGN_KEY, TICKET_KEY, Authority, FakeAggregator, Fleet, wake_bytes

pytestmark = pytest.mark.real
CLIENT = "device-1"
NEW_KEY = bytes(range(100, 132))


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def aggregator(fleet: Fleet) -> Iterator[FakeAggregator]:
    aggregator = FakeAggregator(fleet)
    aggregator.start()
    yield aggregator
    aggregator.stop()


@pytest.fixture
def state(fleet: Fleet, aggregator: FakeAggregator, tmp_path: Path) -> Path:
    """A device whose certificate came long ago."""
    state = fleet.device(tmp_path / "state", CLIENT, aggregator.port)
    path = state / "identity" / "fleet.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"issued_at_ms": 0}))
    return state


def take_part(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    now = time.monotonic() * 1000
    assert serve(state, WakeUp(wake_bytes(ticket), now, now)) == 0
    assert aggregator.rounds[1].accepted == 1


def test_certificate_is_renewed_with_the_same_key(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    before = Keystore(state).load()
    places = Endpoints(("127.0.0.1:4444",), (), ())
    new_keys = (signed.signing_key(NEW_KEY), signed.signing_key(TICKET_KEY))
    by, signature = signed.sign_keys(new_keys, TICKET_KEY)
    aggregator.renewed = {
        "endpoints": wire.endpoints_to_pb(places),
        "ticket_keys": wire.keys_to_pb(new_keys),
        "ticket_keys_signed_by": by,
        "ticket_keys_signature": signature,
    }
    take_part(fleet, aggregator, state)
    after = Keystore(state).load()
    assert after.chain_pem != before.chain_pem
    assert after.key_pem == before.key_pem
    assert after.endpoints.fleet == ("127.0.0.1:4444",)
    assert after.endpoints.mqtt == before.endpoints.mqtt
    assert after.ticket_keys == new_keys
    assert after.publisher_keys == before.publisher_keys
    assert not after.renewal_due(after.issued_at_ms)


def test_certificate_is_left_alone_before_its_time(
    fleet: Fleet, aggregator: FakeAggregator, tmp_path: Path
) -> None:
    take_part(fleet, aggregator, fleet.device(tmp_path / "fresh", CLIENT, aggregator.port))
    assert "renew" not in aggregator.calls


def test_new_keys_that_no_trusted_key_signed_are_refused(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    before = (state / "identity" / "fleet.json").read_bytes()
    new_keys = (signed.signing_key(FOREIGN_KEY),)
    by, signature = signed.sign_keys(new_keys, FOREIGN_KEY)
    aggregator.renewed = {
        "publisher_keys": wire.keys_to_pb(new_keys),
        "publisher_keys_signed_by": by,
        "publisher_keys_signature": signature,
    }
    take_part(fleet, aggregator, state)
    assert (state / "identity" / "fleet.json").read_bytes() == before


def test_certificate_of_another_authority_is_refused(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    before = (state / "identity" / "chain.pem").read_bytes()
    real, fleet.authority = fleet.authority, Authority(fleet.name)
    try:
        take_part(fleet, aggregator, state)
    finally:
        fleet.authority = real
    assert (state / "identity" / "chain.pem").read_bytes() == before


def test_policy_from_afar_can_only_tighten(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    loose = wire.policy_to_pb(PolicyMessage(minimum_cohort=2, modes=(Mode.PLAIN, Mode.HELPER)))
    aggregator.renewal = lambda new: type(FakeAggregator.renewal(aggregator, new))(  # type: ignore[method-assign]
        chain_der=new.chain_der, policy=loose, now_ms=new.now_ms
    )
    before = Keystore(state).load().policy
    take_part(fleet, aggregator, state)
    after = Keystore(state).load()
    assert after.policy == before
    assert not after.renewal_due(after.issued_at_ms), "it was renewed"
