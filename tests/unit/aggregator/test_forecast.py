"""Predicted closings are those of the round's automaton; the binomial tail against published and exact values."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator import events as e
from aggregator.forecast import Rules, Times, close_ms, closing, fewer_than
from aggregator.members import Phase, Terms
from aggregator.round import Round
from fedless.protocol.messages import Encoding, Kind, ReportHeader


def exactly(least: int, n: int, p: Fraction) -> float:
    return float(sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(least)))


@pytest.mark.parametrize(
    ("least", "n", "p"),
    [(7, 10, Fraction(9, 10)), (8, 10, Fraction(1, 2)), (80, 100, Fraction(17, 20)), (1, 3, Fraction(1, 3))],
)
def test_binomial_tail_is_the_exact_one(least: int, n: int, p: Fraction) -> None:
    assert fewer_than(least, n, float(p)) == pytest.approx(exactly(least, n, p), rel=1e-9)


def test_binomial_tail_at_its_ends() -> None:
    assert fewer_than(0, 10, 0.1) == 0.0
    assert fewer_than(11, 10, 1.0) == 1.0
    assert fewer_than(3, 10, 0.0) == 1.0
    assert fewer_than(3, 10, 1.0) == 0.0
    assert fewer_than(50_000, 100_000, 0.4) == pytest.approx(1.0)


def automaton(arrivals: list[int], rules: Rules) -> tuple[float, int]:
    """When the real automaton closes, and with how many reports, if reports arrive like this."""
    terms = Terms(
        1, "r", 1, Kind.TRAIN, 0, rules.goal, rules.minimum, 0, int(rules.deadline_ms), 1, 10, rules.grace
    )
    round_, clients = Round(terms), [f"c{number}" for number in range(rules.woken)]
    round_.handle(e.CohortSelected(dict.fromkeys(clients, b"n" * 16)), 0)
    for client, at in zip(clients, sorted(arrivals), strict=False):
        for end, timer in (
            (round_.state.grace_until_ms, e.GraceEnded()),
            (rules.deadline_ms, e.DeadlinePassed()),
        ):
            if end and end < at and round_.phase in {Phase.COLLECTING, Phase.GRACE}:
                round_.handle(timer, int(end))
                return float(end), round_.state.reported
        round_.handle(e.ClientCheckedIn(client, b"n" * 16), at)
        header = ReportHeader(1, Encoding.FLOAT32, 4, b"d" * 32, 1)
        round_.handle(e.ReportAnnounced(client, header), at)
        round_.handle(e.ReportArrived(client), at)
        if round_.phase is Phase.COMMITTING:
            return float(at), round_.state.reported
    end = round_.state.grace_until_ms or rules.deadline_ms
    return float(end), round_.state.reported


@settings(max_examples=100, deadline=None)
@given(
    arrivals=st.lists(st.integers(1, 30_000), max_size=8),
    goal=st.integers(1, 8),
    minimum=st.integers(1, 8),
    grace=st.sampled_from([0.0, 0.5, 1.5]),
)
def test_predicted_closing_is_that_of_the_automaton(
    arrivals: list[int], goal: int, minimum: int, grace: float
) -> None:
    rules = Rules(8, goal, min(goal, minimum), grace, 20_000.0)
    at, count = close_ms(sorted(map(float, arrivals)), rules)
    real_at, real_count = automaton(arrivals, rules)
    assert count == real_count
    assert at == pytest.approx(real_at, abs=1.0)  # the automaton's grace ends at a whole millisecond


def test_closing_by_hand() -> None:
    rules = Rules(woken=4, goal=4, minimum=2, grace=1.0, deadline_ms=60_000)
    assert close_ms([1000, 3000, 4000, 9000], rules) == (
        5000.0,
        3,
    )  # grace: the median of 1 and 3 s, from 3 s on
    assert close_ms([1000, 3000, 4000, 4500], rules) == (4500.0, 4)
    assert close_ms([1000], rules) == (60_000.0, 1)


def test_who_is_never_there_abandons_every_round() -> None:
    rules = Rules(woken=4, goal=4, minimum=2, grace=1.0, deadline_ms=60_000)
    nobody = closing([Times(0.0, (1000.0,))] * 6, rules)
    assert (nobody.abandoned, nobody.reports, nobody.p50_ms) == (1.0, 0.0, 60_000.0)
    everybody = closing([Times(1.0, (1000.0, 2000.0))] * 6, rules)
    assert everybody.abandoned == 0.0
    assert 1000.0 <= everybody.p50_ms <= everybody.p95_ms <= 2000.0


def test_same_knowledge_gives_the_same_figures() -> None:
    rules = Rules(woken=3, goal=3, minimum=2, grace=1.5, deadline_ms=60_000)
    clients = [Times(0.7, (float(1000 * n),), 0.3) for n in range(1, 6)]
    assert closing(clients, rules) == closing(clients, rules)


def test_late_reports_are_counted() -> None:
    rules = Rules(woken=2, goal=2, minimum=1, grace=0.0, deadline_ms=1_500)
    found = closing([Times(1.0, (1_000.0,)), Times(1.0, (2_000.0,))], rules)
    assert found.late == 0.5
    assert found.abandoned == 0.0
