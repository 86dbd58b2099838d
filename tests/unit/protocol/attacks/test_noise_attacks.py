"""Differential privacy in masked rounds: the sum has the noise that was asked for; what would weaken it is refused."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from fedless.protocol import crypto
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Mode
from fedless.protocol.secagg import client, helper, ring, server
from fedless.protocol.secagg.helper import HelperRules
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen
from fedless.protocol.secagg.messages import RoundOpen
from fedless.protocol.secagg.policy import Policy
from fedless.protocol.secagg.ring import CLIPPED, Extra, RingEncoding, plan
from fedless.protocol.secagg.state import ClientState
from tests.secagg_fleet import NOW_MS, Fleet, aggregator_sign, counting, verify_aggregator, verify_member

SEED = counting(50)
Z, CLIP, N, ALIVE = 2.0, 0.5, 8, 6


def distributed(dimension: int = 2000, **changes: object) -> RingEncoding:
    """Noise of z = 2 as soon as six of eight members add theirs."""
    member = Z * CLIP / math.sqrt(ALIVE)
    encoding = plan(
        n=N,
        dimension=dimension,
        clip=CLIP,
        max_examples=1,
        l2_clip=CLIP,
        sum_noise=member * math.sqrt(N),
        member_noise=member,
    )
    return dataclasses.replace(encoding, **changes)  # type: ignore[arg-type]


def central(dimension: int = 2000, **changes: object) -> RingEncoding:
    encoding = plan(n=N, dimension=dimension, clip=CLIP, max_examples=1, l2_clip=CLIP, sum_noise=Z * CLIP)
    return dataclasses.replace(encoding, **changes)  # type: ignore[arg-type]


def by_helper(**changes: object) -> RingEncoding:
    noise = Z * CLIP
    encoding = plan(
        n=N, dimension=2000, clip=CLIP, max_examples=1, l2_clip=CLIP, sum_noise=noise, helper_noise=noise
    )
    return dataclasses.replace(encoding, **changes)  # type: ignore[arg-type]


def encoded(encoding: RingEncoding, update: np.ndarray, member: int) -> np.ndarray:
    return ring.encode(encoding, update.astype(np.float32), 7, {}, crypto.sha256(bytes([member])))


# -- the noise is there


def test_distributed_noise_of_the_surviving_members_is_in_the_sum() -> None:
    encoding = distributed()
    words = {i: encoded(encoding, np.zeros(2000), i) for i in range(1, 7)}
    _, _, decoded = Fleet(N).set_up().run(words, list(range(1, 9)), encoding)
    assert float(decoded.mean.std()) * 6 == pytest.approx(Z * CLIP, rel=0.1)
    assert decoded.weight == 6.0
    assert encoding.noise_multiplier(ALIVE) == pytest.approx(Z, rel=1e-6)


def test_server_noise_is_added_to_the_opened_sum_and_repeats_from_its_seed() -> None:
    encoding = central()
    assert encoding.noise_multiplier(N) == 0.0  # nothing that a client could count on
    total = sum((encoded(encoding, np.zeros(2000), i) for i in range(8)), np.zeros(2000, np.uint32))
    assert not total.any()
    again = total.copy()
    ring.add_server_noise(encoding, total, SEED)
    ring.add_server_noise(encoding, again, SEED)
    assert np.array_equal(total, again)
    assert float(ring.decode(encoding, total, 8).mean.std()) * 8 == pytest.approx(Z * CLIP, rel=0.1)


@pytest.mark.parametrize("encoding", [distributed(), by_helper()], ids=["distributed", "helper"])
def test_aggregator_adds_nothing_where_others_do(encoding: RingEncoding) -> None:
    total = np.zeros(encoding.words, np.uint32)
    ring.add_server_noise(encoding, total, SEED)
    assert not total.any()


def test_clip_bit_travels_as_a_noised_coordinate() -> None:
    """Three of eight are clipped; without noise the sum would say so exactly, with it only about."""
    bit = Extra(CLIPPED, 0.25)
    encoding = plan(
        n=N, dimension=10, clip=CLIP, max_examples=1, l2_clip=CLIP, sum_noise=Z * CLIP, extras=(bit,)
    )
    assert encoding.words == 11
    updates = [np.full(10, 1.0 if i < 3 else 0.01) for i in range(N)]
    total = sum((encoded(encoding, update, i) for i, update in enumerate(updates)), np.zeros(11, np.uint32))
    exact = ring.decode(encoding, total, N).extras[CLIPPED] / bit.bound
    assert exact == pytest.approx(3 / 8, abs=1e-5)
    ring.add_server_noise(encoding, total, SEED)
    noised = ring.decode(encoding, total, N).extras[CLIPPED] / bit.bound
    assert noised != pytest.approx(3 / 8, abs=1e-5)
    assert abs(noised - 3 / 8) < 8 * Z * CLIP / bit.bound / N


def test_bit_raises_the_sensitivity_of_the_round() -> None:
    encoding = dataclasses.replace(distributed(10), extras=(Extra(CLIPPED, 0.6),))
    assert encoding.sensitivity / encoding.scale == pytest.approx(math.hypot(CLIP, 0.3))
    assert encoding.noise_multiplier(ALIVE) == pytest.approx(Z * CLIP / math.hypot(CLIP, 0.3), rel=1e-6)


def test_encoded_update_is_within_the_sensitivity() -> None:
    """Without noise of their own, words of the longest updates have a norm of at most C2 S."""
    encoding = central(5000, extras=(Extra(CLIPPED, 0.1),))
    generator = np.random.default_rng(1)
    for member in range(5):
        words = encoded(encoding, 100 * generator.normal(size=5000), member)
        assert float(np.linalg.norm(words.view("<i4").astype(np.float64))) <= encoding.sensitivity


# -- a round that would send a coordinate without noise does not open


def test_weight_beside_noise_is_refused() -> None:
    with pytest.raises(PeerError) as refusal:
        ring.check(distributed(uniform=False), N)
    assert refusal.value.code is Code.RING_OVERFLOW
    assert "weight" in refusal.value.detail


def test_noise_without_a_clip_is_refused() -> None:
    with pytest.raises(PeerError, match="L2 clip"):
        ring.check(distributed(l2_clip=0.0), N)


def test_noise_of_members_too_small_to_add_up_is_refused() -> None:
    with pytest.raises(PeerError, match="whole ring steps"):
        ring.check(distributed(member_sigma=3.0), N)
    with pytest.raises(PeerError, match="whole ring steps"):
        ring.check(distributed(member_sigma=1000.5), N)


def test_noise_that_the_head_room_does_not_know_is_refused() -> None:
    """More noise than `sum_sigma` says might wrap around: the rule counts all parties."""
    good = distributed()
    with pytest.raises(PeerError, match="all parties"):
        ring.check(dataclasses.replace(good, sum_sigma=good.member_sigma), N)
    with pytest.raises(PeerError, match="all parties"):
        ring.check(good, N + 1)


def test_ring_too_coarse_for_the_noise_is_refused_with_the_way_out() -> None:
    with pytest.raises(LocalError) as refusal:
        plan(n=100, dimension=10**6, bits=16, clip=CLIP, max_examples=1, l2_clip=CLIP, sum_noise=1.0)
    assert "Rounding" in refusal.value.detail
    assert "32 bits" in refusal.value.fix


def test_largest_sum_with_eight_sigma_of_noise_fits_in_the_ring() -> None:
    """Overflow rule: n (ceil(C S) + 1) + 8 sigma <= M, for every placement."""
    for encoding in (distributed(), central(), by_helper()):
        needed = N * (math.ceil(encoding.clip * encoding.scale) + 1) + 8 * encoding.sum_sigma
        assert needed <= 2**31 - 1
        assert needed > 0.99 * 2**31


# -- the aggregator lies to one client


def test_noise_multiplier_lowered_for_one_client_masks_do_not_cancel() -> None:
    """Member 8 is told to add a thousandth of its noise: it has another ctx, and the aggregator gets rubbish."""
    fleet, encoding = Fleet(N).set_up(), distributed(50)
    round_ = fleet.open(encoding)
    for index in range(1, 8):
        round_ = fleet.report(round_, index, encoded(encoding, np.zeros(50), index))
    weak = dataclasses.replace(encoding, member_sigma=float(int(encoding.member_sigma / 1000)))
    opened = dataclasses.replace(round_.open, encoding=weak)
    context = opened.context(fleet.server.sealed_roster.hash, fleet.server.active_hash)
    other = dataclasses.replace(opened, signature=aggregator_sign(opened.signed(context)))
    fleet.accept_round(8, other)
    head = fleet.mask(8, other, encoded(weak, np.zeros(50), 8))
    with pytest.raises(PeerError) as refusal:  # an honest aggregator would notice
        server.accept_report(fleet.server, round_, head, at_ms=NOW_MS, verify_member=verify_member)
    assert refusal.value.code is Code.BAD_CONTEXT
    cheat = dataclasses.replace(round_, reports=(*round_.reports, server.Reported(8, head.sha256)))
    cheat = fleet.close(cheat)
    for index in range(1, 8):
        cheat = fleet.respond(cheat, index)
    _, recovery = server.recover(fleet.server, cheat)
    total = fleet.total(cheat)
    server.remove_masks(cheat, recovery, total)
    spread = float(
        total.view("<i4").astype(np.float64).std()
    )  # of words that are uniform in the ring: 1.24e9
    assert spread > 0.8 * 2**32 / math.sqrt(12) > 5 * encoding.sum_sigma


def accept(fleet: Fleet, opened: RoundOpen, policy: Policy) -> ClientState:
    return client.accept_round(
        fleet.states[1],
        opened,
        model_digest=opened.model_digest,
        task_digest=opened.task_digest,
        verify_aggregator=verify_aggregator,
        policy=policy,
    )


@pytest.mark.parametrize(
    "encoding",
    [
        distributed(50, member_sigma=float(int(distributed(50).member_sigma * 0.9))),
        central(50),
        plan(n=N, dimension=50, clip=CLIP, max_examples=1, l2_clip=CLIP),
        plan(n=N, dimension=0, clip=CLIP, max_examples=1, extras=(Extra("loss", 20.0),)),
    ],
    ids=["less noise", "noise promised by the aggregator", "no noise", "evaluation in the clear"],
)
def test_round_with_less_noise_than_the_clients_policy_is_refused(encoding: RingEncoding) -> None:
    fleet = Fleet(N).set_up()
    opened = fleet.open(encoding).open
    with pytest.raises(PeerError) as refusal:
        accept(fleet, opened, Policy(minimum_noise=Z * 0.999))
    assert refusal.value.code is Code.POLICY
    accept(fleet, opened, Policy())


def test_round_with_the_noise_that_the_policy_asks_for_is_accepted() -> None:
    fleet = Fleet(N).set_up()
    accept(fleet, fleet.open(distributed(50)).open, Policy(minimum_noise=Z * 0.999))


def test_colluding_members_noise_does_not_count() -> None:
    """Of ten members one may collude, and subtract what it added: with min_alive 7 six count."""
    fleet = Fleet(10).set_up()
    member = Z * CLIP / math.sqrt(7)
    encoding = plan(
        n=10, dimension=50, clip=CLIP, max_examples=1, l2_clip=CLIP, sum_noise=member * 10**0.5, member_noise=member
    )  # fmt: skip
    opened = fleet.open(encoding).open
    assert opened.min_alive == 7
    with pytest.raises(PeerError, match="noise"):
        accept(fleet, opened, Policy(minimum_noise=Z * 0.999))
    accept(fleet, opened, Policy(minimum_noise=Z * math.sqrt(6 / 7) * 0.999))


def test_plain_round_is_refused_where_the_policy_asks_for_noise() -> None:
    policy = Policy(modes=frozenset(Mode), minimum_noise=0.5)
    with pytest.raises(PeerError) as refusal:
        policy.check_mode(Mode.PLAIN)
    assert refusal.value.code is Code.POLICY
    policy.check_mode(Mode.PAIRWISE)


# -- helper mode


def helper_open(encoding: RingEncoding) -> HelperOpen:
    opened = HelperOpen(
        round_id=5,
        model_version=2,
        model_digest=crypto.sha256(b"model"),
        task_digest=crypto.sha256(b"task"),
        encoding=encoding,
        prg=crypto.Prg.AES,
        n_max=N,
        deadline_at_ms=NOW_MS,
        helper_certificate=b"helper",
        helper_key=crypto.x25519_public(counting(100)),
        signature=b"",
    )
    return helper.open_helper_round(opened, sign=aggregator_sign)


def test_helper_refuses_to_close_a_round_with_less_noise_than_it_demands() -> None:
    own_key = crypto.x25519_public(counting(100))
    rules = HelperRules(minimum=0, minimum_noise=Z)
    helper.check_request(CloseRequest(helper_open(by_helper()), ()), rules, own_key=own_key)
    weaker = by_helper(helper_sigma=by_helper().helper_sigma - 1000)
    for encoding in (weaker, central(), plan(n=N, dimension=9, clip=1.0, max_examples=1)):
        with pytest.raises(PeerError) as refusal:
            helper.check_request(CloseRequest(helper_open(encoding), ()), rules, own_key=own_key)
        assert refusal.value.code is Code.POLICY


def test_helper_signs_the_noise_that_it_was_told() -> None:
    """ctx, which the helper's signature covers, has the digest of the encoding: another sigma is another ctx."""
    first, second = helper_open(by_helper()), helper_open(by_helper(helper_sigma=0.0))
    assert first.context != second.context


def test_client_in_helper_mode_refuses_less_noise_than_its_policy() -> None:
    key_digest = crypto.sha256(crypto.x25519_public(counting(100)))
    policy = Policy(minimum_cohort=3, helper_key_digest=key_digest, minimum_noise=Z * 0.999)

    def accepts(opened: HelperOpen) -> ClientState:
        return helper.accept_helper_round(
            opened,
            policy,
            ClientState("client-001"),
            model_digest=opened.model_digest,
            task_digest=opened.task_digest,
            verify_aggregator=verify_aggregator,
        )

    accepts(helper_open(by_helper()))
    with pytest.raises(PeerError) as refusal:
        accepts(helper_open(by_helper(helper_sigma=by_helper().helper_sigma / 2)))
    assert refusal.value.code is Code.POLICY
