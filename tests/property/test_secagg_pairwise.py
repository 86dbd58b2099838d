"""Pairwise mode under every dropout pattern: the sum is exact, or the round is abandoned, never anything else.

Integers are compared, not floats. Member i reports random ring words and, at position i - 1 of a separate block,
a one: the sum itself proves who was counted, and that nobody was counted twice.
"""

from __future__ import annotations

import copy
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.prg import Words, word_dtype
from fedless.protocol.secagg import server
from fedless.protocol.secagg.epochs import Trust
from fedless.protocol.secagg.ring import RingEncoding, plan
from tests.secagg_fleet import Fleet

MEMBERS = st.sets(st.integers(1, 6), max_size=2)


@cache
def ready(n: int, trust: Trust, without_shares: frozenset[int]) -> Fleet | None:
    """A fleet after M3, or None if too few members are left (which must then be so)."""
    fleet = Fleet(n, trust=trust)
    try:
        return fleet.set_up(without_shares=without_shares)
    except PeerError as error:
        assert error.code is Code.TOO_FEW  # noqa: PT017 - the only way to fail
        assert n - len(without_shares) < max(
            fleet.policy.minimum_cohort, fleet.server.sealed_roster.threshold + 1
        )
        return None


def vectors(encoding: RingEncoding, members: list[int], seed: int) -> dict[int, Words]:
    """Random words of the whole ring by member, and who it is."""
    generator = np.random.default_rng(seed)
    drawn: dict[int, Words] = {}
    for index in members:
        words: Words = np.empty(encoding.words, dtype=word_dtype(encoding.bits))
        words[:] = generator.integers(0, 2**encoding.bits, encoding.words)
        words[: len(members) + 8] = 0
        words[index - 1] = 1
        drawn[index] = words
    return drawn


def play(fleet: Fleet, bits: int, reporting: set[int], spooled: set[int], answering: set[int]) -> None:
    """One round: members of `reporting` mask, those also in `spooled` are heard, `answering` hold."""
    fleet = copy.deepcopy(fleet)
    members = list(fleet.server.members)
    t = fleet.server.sealed_roster.threshold
    encoding = plan(n=len(members), dimension=40, bits=bits, clip=1.0, max_examples=10)
    words = vectors(encoding, members, seed=sum(reporting) + 7)
    round_ = fleet.open(encoding)
    for index in sorted(reporting & set(members)):
        if index in spooled:
            round_ = fleet.report(round_, index, words[index])
        else:
            fleet.accept_round(index, round_.open)
            fleet.mask(index, round_.open, words[index])
    heard = sorted(reporting & spooled & set(members))
    round_ = fleet.close(round_)
    if len(heard) < t:
        assert round_.request is None
        assert round_.result is not None
        assert round_.result.reason == Code.TOO_FEW.value
        return
    holders = sorted(answering & set(members))
    for index in holders:
        round_ = fleet.respond(round_, index)
    assert server.can_recover(fleet.server, round_) == (len(holders) >= t)
    if len(holders) < t:
        with pytest.raises(PeerError) as refusal:
            server.recover(fleet.server, round_)
        assert refusal.value.code is Code.TOO_FEW
        return
    recovered, recovery = server.recover(fleet.server, round_)
    total = fleet.total(recovered)
    server.remove_masks(recovered, recovery, total)
    expected = np.zeros_like(total)
    for index in heard:
        np.add(expected, words[index], out=expected)
    assert np.array_equal(total, expected)
    assert [at + 1 for at in range(max(members)) if total[at]] == heard


@settings(deadline=None, max_examples=120)
@given(
    n=st.integers(4, 6),
    trust=st.sampled_from(Trust),
    bits=st.sampled_from([16, 32]),
    without_shares=MEMBERS,
    silent=MEMBERS,
    unheard=MEMBERS,
    away=MEMBERS,
)
def test_dropouts_at_any_step(
    n: int,
    trust: Trust,
    bits: int,
    without_shares: set[int],
    silent: set[int],
    unheard: set[int],
    away: set[int],
) -> None:
    everyone = set(range(1, n + 1))
    fleet = ready(n, trust, frozenset(without_shares & everyone))
    if fleet is not None:
        play(fleet, bits, everyone - silent, everyone - unheard, everyone - away)


def test_every_pattern_of_reports_and_answers_of_four_members() -> None:
    fleet = ready(4, Trust.CURIOUS, frozenset())
    assert fleet is not None
    subsets = [{i for i in range(1, 5) if mask >> (i - 1) & 1} for mask in range(16)]
    for reporting, answering in product(subsets, subsets):
        play(fleet, 32, reporting, {1, 2, 3, 4}, answering)


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(list(range(1, 9))), reporters=st.permutations(list(range(1, 9))))
def test_order_of_arrival_does_not_matter(order: list[int], reporters: list[int]) -> None:
    """Eight members, two of them absent, six of eight holders in any order."""
    found = ready(8, Trust.CHEATING, frozenset())
    assert found is not None
    fleet = copy.deepcopy(found)
    encoding = plan(n=8, dimension=8, clip=1.0, max_examples=10)
    words = {index: np.arange(9, dtype=np.uint32) * index for index in reporters[:6]}
    round_ = fleet.open(encoding)
    for index, vector in words.items():
        round_ = fleet.report(round_, index, vector)
    round_ = fleet.close(round_)
    for index in order[:6]:
        round_ = fleet.respond(round_, index)
    recovered, recovery = server.recover(fleet.server, round_)
    total = fleet.total(recovered)
    server.remove_masks(recovered, recovery, total)
    assert total.tolist() == [at * sum(reporters[:6]) for at in range(9)]
