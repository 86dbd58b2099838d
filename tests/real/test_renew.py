"""Renewal after a round: at two thirds of the lifetime, with new addresses and keys, and what is refused then."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.keystore import Keystore
from fedless.protocol import wire
from fedless.protocol.crypto import ecdsa_sign, ed25519_public, ed25519_sign, key_id
from fedless.protocol.errors import PeerError
from fedless.protocol.messages import Endpoints, Enrollment, Mode, PolicyMessage
from fedless.protocol.succession import helper_member, sign_list
from fedless.protocol.trust import TrustKind
from fedless.v1 import fleet_pb2
from tests.edge_device import CLIENT, wake
from tests.edge_fleet import FOREIGN_KEY, TICKET_KEY, Authority, FakeAggregator, Fleet, now_ms, wake_bytes

pytestmark = pytest.mark.real
NEW_KEY = bytes(range(100, 132))


@pytest.fixture
def state(fleet: Fleet, aggregator: FakeAggregator, tmp_path: Path) -> Path:
    """A device whose certificate came long ago."""
    state = fleet.device(tmp_path / "state", CLIENT, aggregator.port)
    path = state / "identity" / "fleet.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"issued_at_ms": 0}))
    return state


def take_part(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, round_id: int = 1, accepted: int = 1
) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, round_id, task)
    aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert aggregator.rounds[round_id].accepted == accepted


def handed_on(kind: TrustKind, number: int, members: tuple[bytes, ...], by: bytes) -> dict[str, Any]:
    """A list as Renew brings it, signed by an Ed25519 key."""
    made = sign_list("testing", kind, number, members, ed25519_public(by), lambda m: ed25519_sign(by, m))
    return {"trust_lists": wire.trust_lists_to_pb([made])}


def test_certificate_is_renewed_with_the_same_key(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    before = Keystore(state).load()
    places = Endpoints(("127.0.0.1:4444",), (), ())
    keys = (ed25519_public(NEW_KEY), ed25519_public(TICKET_KEY))
    aggregator.renewed = handed_on(TrustKind.TICKET, 7, keys, TICKET_KEY)
    aggregator.renewed |= {"endpoints": wire.endpoints_to_pb(places)}
    take_part(fleet, aggregator, state)
    after = Keystore(state).load()
    assert after.chain_pem != before.chain_pem
    assert after.key_pem == before.key_pem
    assert after.endpoints.fleet == ("127.0.0.1:4444",)
    assert after.endpoints.mqtt == before.endpoints.mqtt
    assert [key.public_key for key in after.ticket_keys] == list(keys)
    assert after.publisher_keys == before.publisher_keys
    assert after.trust_numbers == {"ticket": 7}
    assert not after.renewal_due(after.issued_at_ms)
    assert aggregator.renew_requests[-1].trust_numbers == {}
    told = aggregator.statuses[-1]
    assert told.trusts == after.trusts, "it says at once whom it trusts now"
    assert told.issued_by == after.issued_by == after.trusts[0]


def test_certificate_is_left_alone_before_its_time(
    fleet: Fleet, aggregator: FakeAggregator, tmp_path: Path
) -> None:
    take_part(fleet, aggregator, fleet.device(tmp_path / "fresh", CLIENT, aggregator.port))
    assert "renew" not in aggregator.calls


def test_new_keys_that_no_trusted_key_signed_are_refused(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    before = (state / "identity" / "fleet.json").read_bytes()
    new = (ed25519_public(FOREIGN_KEY),)
    aggregator.renewed = handed_on(TrustKind.PUBLISHER, 7, new, FOREIGN_KEY)
    take_part(fleet, aggregator, state)
    assert (state / "identity" / "fleet.json").read_bytes() == before


def test_rollback_to_an_older_key_list_is_refused(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    path = state / "identity" / "fleet.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trust": {"ticket": 8}}))
    before = path.read_bytes()
    aggregator.renewed = handed_on(TrustKind.TICKET, 7, (ed25519_public(TICKET_KEY),), TICKET_KEY)
    take_part(fleet, aggregator, state)
    assert path.read_bytes() == before
    assert aggregator.renew_requests[-1].trust_numbers == {"ticket": 8}


@pytest.mark.parametrize("signed", [True, False], ids=["signed by the old one", "forged"])
def test_new_root_is_believed_only_if_the_old_one_has_signed_it(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, signed: bool
) -> None:
    before = Keystore(state).load()
    new = Authority(fleet.name)
    signer = fleet.authority.key if signed else new.key
    members = (fleet.authority.der, new.der)
    made = sign_list(
        fleet.name, TrustKind.AUTHORITY, 7, members, fleet.authority.der, lambda m: ecdsa_sign(signer, m)
    )
    aggregator.renewed = {"trust_lists": wire.trust_lists_to_pb([made])}
    real, fleet.authority = fleet.authority, new  # which issues the new certificate
    try:
        take_part(fleet, aggregator, state)
    finally:
        fleet.authority = real
    after = Keystore(state).load()
    assert after.authorities == (members if signed else before.authorities)
    assert (after.chain_pem != before.chain_pem) == signed
    assert after.policy == before.policy


def test_helper_key_and_policy_are_not_changed_by_renewal(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    keys = Keystore(state)
    pinned = replace(keys.load().policy, helper_key_digest=bytes(range(32)))
    keys.set_policy(pinned)
    other = PolicyMessage(helper_key_digest=bytes(32), count_functions=True)
    aggregator.policy = other
    aggregator.renewed = handed_on(TrustKind.TICKET, 7, (ed25519_public(NEW_KEY),), TICKET_KEY)
    take_part(fleet, aggregator, state)
    after = keys.load()
    assert after.policy == pinned
    assert [key.public_key for key in after.ticket_keys] == [ed25519_public(NEW_KEY)]


def test_ticket_by_an_unknown_key_makes_the_device_ask_once(
    fleet: Fleet, aggregator: FakeAggregator, tmp_path: Path
) -> None:
    """It was away while the fleet changed its ticket key twice: the next wake-up is by a key that it does not know."""
    state = fleet.device(tmp_path / "away", CLIENT, aggregator.port)
    between = bytes(range(3, 35))
    lists = [
        handed_on(TrustKind.TICKET, 7, (ed25519_public(between),), TICKET_KEY)["trust_lists"][0],
        handed_on(TrustKind.TICKET, 8, (ed25519_public(NEW_KEY),), between)["trust_lists"][0],
    ]
    aggregator.renewed = {"trust_lists": lists}
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket, NEW_KEY)) == 0
    assert aggregator.rounds[1].accepted == 1
    for _ in range(2):  # whoever sends it such tickets cannot make it ask again and again
        assert wake(state, wake_bytes(fleet.ticket(CLIENT, 2, task), FOREIGN_KEY)) == 0
    assert aggregator.calls.count("renew") == 1


def test_device_that_nobody_wakes_renews_by_itself(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    assert wake(state, b"") == 0
    assert aggregator.calls == ["renew", "report_status"]
    assert not Keystore(state).load().renewal_due(now_ms())
    assert wake(state, b"") == 0
    assert aggregator.calls == ["renew", "report_status"], "nothing is due any more"


def test_renewal_waits_for_a_better_moment_unless_it_is_urgent(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    (state / "trace.jsonl").write_text('{"at_ms": 0, "battery": 0.1, "mains": false}\n')
    (state / "edge.toml").write_text('[eligibility]\ntrace = "trace.jsonl"\n')
    path = state / "identity" / "fleet.json"
    values, life = json.loads(path.read_text()), 100 * 86_400_000
    for spent, calls in ((0.7, 0), (0.9, 2)):
        times = {
            "issued_at_ms": now_ms() - round(spent * life),
            "not_after_ms": now_ms() + round((1 - spent) * life),
        }
        path.write_text(json.dumps(values | times))
        assert wake(state, b"") == 0
        assert len(aggregator.calls) == calls


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


def answer_with(aggregator: FakeAggregator, policy: PolicyMessage) -> None:
    """Renewals bring this policy from now on."""

    def renewal(new: Enrollment) -> fleet_pb2.RenewReply:
        return fleet_pb2.RenewReply(
            chain_der=new.chain_der, policy=wire.policy_to_pb(policy), now_ms=new.now_ms
        )

    aggregator.renewal = renewal  # type: ignore[method-assign]


def test_policy_from_afar_can_only_tighten(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    answer_with(aggregator, PolicyMessage(minimum_cohort=2, modes=(Mode.PLAIN, Mode.HELPER)))
    before = Keystore(state).load().policy
    take_part(fleet, aggregator, state)
    after = Keystore(state).load()
    assert after.policy == before
    assert not after.renewal_due(after.issued_at_ms), "it was renewed"


def test_minimum_noise_cannot_be_talked_down_by_a_renewal(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    """Nothing and less leave it as the owner has it; more is taken, and stays when the server forgets it again."""
    keys = Keystore(state)
    keys.set_policy(replace(keys.load().policy, minimum_noise=1.0))
    path = state / "identity" / "fleet.json"
    for round_id, (told, kept) in enumerate([(0.0, 1.0), (0.5, 1.0), (2.0, 2.0), (0.0, 2.0), (1.5, 2.0)], 1):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"issued_at_ms": 0}))
        answer_with(aggregator, PolicyMessage(minimum_noise=told))
        take_part(fleet, aggregator, state, round_id, accepted=0)  # a plain round has no noise: it refuses
        after = keys.load()
        assert not after.renewal_due(after.issued_at_ms), "it was renewed"
        assert after.policy.minimum_noise == kept
        with pytest.raises(PeerError):
            after.policy.check_noise(kept * 0.99)
        after.policy.check_noise(kept)


def test_helper_is_replaced_by_its_own_word_only(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    """Lists by the aggregator's ticket key, and a policy that names another signing key, change nothing."""
    keys, path = Keystore(state), state / "identity" / "fleet.json"
    own = helper_member(ed25519_public(NEW_KEY), bytes(32))
    keys.set_policy(keys.load().policy.after([own]))
    pinned = keys.load().policy
    swapped = helper_member(ed25519_public(TICKET_KEY), bytes(range(32)))

    def list_by(key: bytes, signer: bytes) -> dict[str, Any]:
        made = sign_list(
            "testing", TrustKind.HELPER, 7, (own, swapped), signer, lambda m: ed25519_sign(key, m)
        )
        return {"trust_lists": wire.trust_lists_to_pb([made])}

    aggregator.policy = PolicyMessage(helper_signing_key=ed25519_public(TICKET_KEY), count_functions=False)
    for round_id, (signer, named) in enumerate([(TICKET_KEY, swapped), (TICKET_KEY, own), (NEW_KEY, own)], 1):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"issued_at_ms": 0}))
        aggregator.renewed = list_by(signer, named)
        take_part(fleet, aggregator, state, round_id)
        after = keys.load()
        assert not after.renewal_due(after.issued_at_ms), "the rest of the renewal is taken"
        if signer == TICKET_KEY:
            assert after.policy == pinned
            assert "helper" not in after.trust_numbers
    assert after.policy.helpers == (own, swapped)
    assert after.trust_numbers["helper"] == 7
    assert set(after.trusts) >= {key_id(own).hex(), key_id(swapped).hex()}
