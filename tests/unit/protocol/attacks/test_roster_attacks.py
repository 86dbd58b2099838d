"""Attacks on the set-up of a key epoch (protocol.md section 9): a lying aggregator, or a lying member."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest

from fedless.protocol import crypto
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Mode
from fedless.protocol.secagg import assembly, server, setup
from fedless.protocol.secagg.epochs import Trust
from fedless.protocol.secagg.messages import EpochKeys, Roster, active_signed
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.ring import plan
from fedless.protocol.secagg.state import leave, mark
from tests.secagg_fleet import (
    NOW_MS,
    Fleet,
    aggregator_sign,
    certificate_of,
    client_sign,
    counting,
    unit_words,
    verify_aggregator,
    verify_member,
)


@pytest.fixture(scope="module")
def prepared() -> Fleet:
    fleet = Fleet(8)
    for index in fleet.everyone:
        fleet.offer(index)
    fleet.make_roster()
    return fleet


@pytest.fixture
def fleet(prepared: Fleet) -> Fleet:
    return copy.deepcopy(prepared)


def replaced(keys: EpochKeys, **changes: object) -> EpochKeys:
    return dataclasses.replace(keys, **changes)  # type: ignore[arg-type]


def resigned(roster: Roster, **changes: object) -> Roster:
    """The roster after a cheating aggregator changed it and signed it again."""
    changed = dataclasses.replace(roster, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(changed, signature=aggregator_sign(changed.signed))


def refused(fleet: Fleet, roster: Roster, policy: Policy | None = None) -> PeerError:
    with pytest.raises(PeerError) as refusal:
        setup.accept_roster(
            fleet.states[1],
            roster,
            policy or fleet.policy,
            verify_member=verify_member,
            verify_aggregator=verify_aggregator,
        )
    return refusal.value


def with_entry(roster: Roster, index: int, **changes: object) -> Roster:
    """Entry `index` changed and signed anew by its own client."""
    entry = replaced(roster.entries[index - 1], **changes)
    entry = dataclasses.replace(entry, signature=client_sign(index)(entry.signed))
    entries = (*roster.entries[: index - 1], entry, *roster.entries[index:])
    return resigned(roster, entries=entries)


def test_roster_with_a_duplicated_id_is_refused(fleet: Fleet) -> None:
    roster = fleet.server.sealed_roster
    twin = roster.entries[2].client_id
    assert refused(fleet, with_entry(roster, 8, client_id=twin)).code is Code.BAD_ROSTER


@pytest.mark.parametrize("field", ["channel_key", "mask_keys"])
def test_roster_with_a_duplicated_key_is_refused(fleet: Fleet, field: str) -> None:
    roster = fleet.server.sealed_roster
    roster = with_entry(roster, 8, **{field: getattr(roster.entries[2], field)})
    assert refused(fleet, roster).code is Code.BAD_ROSTER


def test_one_certificate_key_under_two_names_is_refused(fleet: Fleet) -> None:
    roster = fleet.server.sealed_roster
    entry = dataclasses.replace(roster.entries[7], certificate=certificate_of("client-008", 7))
    entry = dataclasses.replace(entry, signature=client_sign(7)(entry.signed))
    error = refused(fleet, resigned(roster, entries=(*roster.entries[:7], entry)))
    assert error.code is Code.BAD_ROSTER
    assert "same key" in str(error)


def test_unsigned_key_is_refused(fleet: Fleet) -> None:
    roster = fleet.server.sealed_roster
    entry = dataclasses.replace(roster.entries[7], channel_key=counting(9))
    roster = resigned(roster, entries=(*roster.entries[:7], entry))
    assert refused(fleet, roster).code is Code.BAD_SIGNATURE


@pytest.mark.parametrize("field", ["channel_key", "signature", "certificate"])
def test_own_entry_that_was_changed_is_refused(fleet: Fleet, field: str) -> None:
    roster = fleet.server.sealed_roster
    entry = replaced(roster.entries[0], **{field: counting(99)})
    assert refused(fleet, resigned(roster, entries=(entry, *roster.entries[1:]))).code is Code.BAD_ROSTER


@pytest.mark.parametrize("threshold", [0, 1, 5, 9])
def test_threshold_below_policy_is_refused(fleet: Fleet, threshold: int) -> None:
    error = refused(fleet, resigned(fleet.server.sealed_roster, threshold=threshold))
    assert error.code is Code.BAD_THRESHOLD


def test_threshold_below_the_clients_own_minimum_is_refused(fleet: Fleet) -> None:
    policy = Policy(minimum_cohort=3, minimum_threshold=7)
    assert refused(fleet, fleet.server.sealed_roster, policy).code is Code.BAD_THRESHOLD


def test_cohort_below_the_clients_minimum_is_refused(fleet: Fleet) -> None:
    assert refused(fleet, fleet.server.sealed_roster, Policy(minimum_cohort=9)).code is Code.POLICY


def test_cohort_filled_up_with_functions_is_refused(fleet: Fleet) -> None:
    """Functions get their certificates online from the aggregator, so they do not count."""
    roster = fleet.server.sealed_roster
    roster = with_entry(roster, 8, certificate=certificate_of("client-008", 8, role="function"))
    assert refused(fleet, roster, Policy(minimum_cohort=8)).code is Code.POLICY


def test_mode_that_the_client_does_not_allow_is_refused(fleet: Fleet) -> None:
    policy = Policy(minimum_cohort=3, modes=frozenset({Mode.HELPER}))
    assert refused(fleet, fleet.server.sealed_roster, policy).code is Code.POLICY


@pytest.mark.parametrize(
    "changes",
    [
        {"neighbours": 3},
        {"mode": Mode.HELPER},
        {"slots": 2},
        {"graph_seed": b""},
        {"at_ms": 3_000_000},
        {"entries": ()},
    ],
)
def test_inconsistent_roster_is_refused(fleet: Fleet, changes: dict[str, object]) -> None:
    assert refused(fleet, resigned(fleet.server.sealed_roster, **changes)).code is Code.BAD_ROSTER


def test_roster_that_the_aggregator_did_not_sign_is_refused(fleet: Fleet) -> None:
    roster = dataclasses.replace(fleet.server.sealed_roster, at_ms=5)
    assert refused(fleet, roster).code is Code.BAD_SIGNATURE


def test_certificate_that_ends_before_the_key_epoch_is_refused(fleet: Fleet) -> None:
    assert refused(fleet, resigned(fleet.server.sealed_roster, ends_at_ms=3_000_000)).code is (
        Code.CERTIFICATE_EXPIRED
    )


def test_certificate_of_another_role_is_refused(fleet: Fleet) -> None:
    roster = fleet.server.sealed_roster
    roster = with_entry(roster, 8, certificate=certificate_of("client-008", 8, role="operator"))
    assert refused(fleet, roster).code is Code.WRONG_ROLE


def test_keys_under_another_clients_name_are_refused(fleet: Fleet) -> None:
    roster = fleet.server.sealed_roster
    assert refused(fleet, with_entry(roster, 8, client_id="client-999")).code is Code.BAD_ROSTER


def test_second_roster_for_one_key_epoch_is_refused(fleet: Fleet) -> None:
    fleet.share(1)
    other = resigned(fleet.server.sealed_roster, graph_seed=counting(8))
    assert refused(fleet, other).code is Code.CONFLICTING_REPEAT


def offered(change: Callable[[EpochKeys], EpochKeys]) -> PeerError:
    fleet = Fleet(3)
    _, keys = setup.begin_epoch(
        fleet.states[1],
        1,
        1,
        chain_key=counting(0),
        certificate=certificate_of("client-001", 1),
        sign=client_sign(1),
    )
    changed = change(keys)
    if changed.signature == keys.signature:
        changed = dataclasses.replace(changed, signature=client_sign(1)(changed.signed))
    with pytest.raises(PeerError) as refusal:
        assembly.accept_keys(fleet.server, changed, at_ms=NOW_MS, verify_member=verify_member)
    return refusal.value


@pytest.mark.parametrize("field", ["channel_key", "mask_keys"])
def test_all_zero_x25519_point_is_refused(field: str) -> None:
    value = bytes(32) if field == "channel_key" else (bytes(32),)
    assert offered(lambda keys: replaced(keys, **{field: value})).code is Code.BAD_POINT


def test_all_zero_x25519_point_in_a_roster_is_refused(fleet: Fleet) -> None:
    roster = with_entry(fleet.server.sealed_roster, 8, channel_key=bytes(32))
    assert refused(fleet, roster).code is Code.BAD_POINT


def test_forged_keys_are_refused() -> None:
    assert offered(lambda keys: dataclasses.replace(keys, signature=b"forged")).code is Code.BAD_SIGNATURE
    assert offered(lambda keys: dataclasses.replace(keys, epoch=2)).code is Code.EPOCH_STALE
    assert offered(lambda keys: dataclasses.replace(keys, commitments=(b"short",))).code is Code.BAD_ROSTER
    assert offered(lambda keys: dataclasses.replace(keys, client_id="client-002")).code is Code.BAD_ROSTER


def test_malformed_shares_are_refused(fleet: Fleet) -> None:
    fleet.share(1)
    shares = fleet.rows[1]
    box = shares.boxes[0]
    wrong = [
        dataclasses.replace(shares, index=2),
        dataclasses.replace(shares, index=2, boxes=shares.boxes[:-1]),
        dataclasses.replace(shares, index=9),
    ]
    _, others = setup.accept_roster(
        fleet.states[2],
        fleet.server.sealed_roster,
        fleet.policy,
        verify_member=verify_member,
        verify_aggregator=verify_aggregator,
    )
    cuts = (dataclasses.replace(box, sealed=box.sealed[:-1]), dataclasses.replace(box, nonce=b""))
    wrong += [dataclasses.replace(others, boxes=(cut, *others.boxes[1:])) for cut in cuts]
    for changed in wrong:
        with pytest.raises(PeerError) as refusal:
            assembly.accept_shares(fleet.server, changed)
        assert refusal.value.code is Code.MALFORMED


def test_box_replayed_from_another_epoch_is_refused_and_reported() -> None:
    old = Fleet(8).set_up()
    new = Fleet(8, epoch=2, states=old.states)
    for index in new.everyone:
        new.offer(index)
    new.make_roster()
    for index in new.everyone:
        new.share(index)
    new.activate()
    replayed = next(box for box in old.rows[5].boxes if box.peer == 1)
    inbox = assembly.inbox_for(new.server, 1, new.rows)
    boxes = tuple(
        dataclasses.replace(box, nonce=replayed.nonce, sealed=replayed.sealed) if box.peer == 5 else box
        for box in inbox.boxes
    )
    state, failed = setup.accept_inbox(
        new.states[1],
        dataclasses.replace(inbox, boxes=boxes),
        new.policy,
        verify_aggregator=verify_aggregator,
    )
    assert failed == (5,)
    new.keep(1, state)
    for index in range(2, 9):
        assert new.collect(index) == ()
    encoding = plan(n=8, dimension=8, clip=1.0, max_examples=10)
    words = {index: unit_words(encoding, index - 1) for index in range(1, 8)}
    _, total, _ = new.run(words, range(1, 8), encoding)
    assert total[:8].tolist() == [1] * 7 + [0]


def test_more_failed_boxes_than_the_threshold_allows_make_the_client_leave(fleet: Fleet) -> None:
    for index in fleet.everyone:
        fleet.share(index)
    fleet.activate()
    inbox = assembly.inbox_for(fleet.server, 1, fleet.rows)
    for kept in (4, 5):
        cut = dataclasses.replace(inbox, boxes=inbox.boxes[:kept])
        if kept == 5:  # n - t = 2 failures are allowed
            _, failed = setup.accept_inbox(
                fleet.states[1], cut, fleet.policy, verify_aggregator=verify_aggregator
            )
            assert failed == (7, 8)
            continue
        with pytest.raises(PeerError) as refusal:
            setup.accept_inbox(fleet.states[1], cut, fleet.policy, verify_aggregator=verify_aggregator)
        assert refusal.value.code is Code.BAD_BOX
    assert leave(fleet.states[1], 1).epochs == ()


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ((1, 2, 3, 4, 5, 6), Code.TOO_FEW),
        ((2, 3, 4, 5, 6, 7, 8), Code.NOT_IN_COHORT),
        ((1, 2, 3, 4, 5, 7, 6), Code.BAD_ROSTER),
        ((1, 2, 3, 4, 5, 6, 6), Code.BAD_ROSTER),
        ((1, 2, 3, 4, 5, 6, 9), Code.BAD_ROSTER),
    ],
)
def test_set_of_members_that_is_unsound_is_refused(
    fleet: Fleet, members: tuple[int, ...], code: Code
) -> None:
    for index in fleet.everyone:
        fleet.share(index)
    fleet.activate()
    inbox = assembly.inbox_for(fleet.server, 1, fleet.rows)
    signature = aggregator_sign(active_signed(fleet.server.sealed_roster.hash, members))
    changed = dataclasses.replace(inbox, members=members, signature=signature)
    with pytest.raises(PeerError) as refusal:
        setup.accept_inbox(fleet.states[1], changed, fleet.policy, verify_aggregator=verify_aggregator)
    assert refusal.value.code is code


def test_unsigned_or_second_set_of_members_is_refused(fleet: Fleet) -> None:
    for index in fleet.everyone:
        fleet.share(index)
    fleet.activate()
    inbox = assembly.inbox_for(fleet.server, 1, fleet.rows)
    smaller = dataclasses.replace(inbox, members=(1, 2, 3, 4, 5, 6, 7))
    with pytest.raises(PeerError) as refusal:
        setup.accept_inbox(fleet.states[1], smaller, fleet.policy, verify_aggregator=verify_aggregator)
    assert refusal.value.code is Code.BAD_SIGNATURE
    fleet.collect(1)
    with pytest.raises(PeerError) as refusal:
        setup.accept_inbox(fleet.states[1], smaller, fleet.policy, verify_aggregator=verify_aggregator)
    assert refusal.value.code is Code.CONFLICTING_REPEAT


def test_key_epoch_that_is_not_newer_is_refused() -> None:
    fleet = Fleet(3, epoch=5, trust=Trust.CURIOUS)
    fleet.offer(1)
    for epoch in (4, 3):
        with pytest.raises(PeerError) as refusal:
            setup.begin_epoch(
                fleet.states[1], epoch, 1, chain_key=counting(1), certificate=b"", sign=lambda m: m
            )
        assert refusal.value.code is Code.EPOCH_STALE


def test_journal_restored_from_an_old_image_leaves_the_key_epoch() -> None:
    fleet = Fleet(4, slots=2, trust=Trust.CURIOUS).set_up()
    image = {index: fleet.states[index] for index in fleet.everyone}
    encoding = plan(n=4, dimension=4, clip=1.0, max_examples=10)
    ended, _, _ = fleet.run(
        {index: unit_words(encoding, index - 1) for index in (1, 2, 3)}, [1, 2, 4], encoding
    )
    for index in fleet.everyone:
        server.check_mark(fleet.server, [ended], index, mark(fleet.states[index]))
    for index in (1, 3, 4):  # reported and answered; reported; answered only
        with pytest.raises(PeerError) as refusal:
            server.check_mark(fleet.server, [ended], index, mark(image[index]))
        assert refusal.value.code is Code.STATE_OLDER
    with pytest.raises(PeerError) as refusal:
        server.check_mark(fleet.server, [], 1, mark(Fleet(4).states[1]))
    assert refusal.value.code is Code.STATE_OLDER


def test_secrets_are_in_no_repr() -> None:
    fleet = Fleet(4, trust=Trust.CURIOUS)
    for index in fleet.everyone:
        fleet.offer(index)
    secrets = [fleet.states[1].epochs[0].chain_key, fleet.states[1].epochs[0].channel_private]
    texts = [repr(fleet.states[1])]
    fleet.make_roster()
    for index in fleet.everyone:
        fleet.share(index)
    texts.append(repr(fleet.states[1]))
    fleet.activate()
    for index in fleet.everyone:
        fleet.collect(index)
    row = fleet.states[1].epochs[0].slots[0]
    secrets += [row.mask_shares, row.self_shares, row.mask_shares[:33], row.self_shares[:33]]
    texts.append(repr(fleet.states[1]))
    encoding = plan(n=4, dimension=4, clip=1.0, max_examples=10)
    round_ = fleet.open(encoding)
    for index in (1, 2, 3):
        round_ = fleet.report(round_, index, unit_words(encoding, 0))
    round_ = fleet.close(round_)
    for index in (1, 2):
        round_ = fleet.respond(round_, index)
    _, recovery = server.recover(fleet.server, round_)
    texts += [repr(fleet.states[1]), repr(recovery)]
    secrets += [fleet.states[1].epochs[0].slots[0].answer, *recovery.plus, *recovery.minus]
    assert len(secrets) > 8
    for secret in secrets:
        assert len(secret) >= crypto.KEY_BYTES
        for text in texts:
            assert repr(secret)[2:-1] not in text
            assert secret.hex() not in text
