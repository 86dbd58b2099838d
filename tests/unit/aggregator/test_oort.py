"""Oort's utility and draw against hand-computed numbers (Lai et al. 2021)."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping

import pytest

from aggregator import tasks
from aggregator.interfaces import ClientRecord
from aggregator.selection.draw import Draw, History, Past
from aggregator.selection.oort import PARTICIPATIONS, WINDOW, oort, pace, share_of_new, utilities
from fedless.protocol.errors import LocalError


def history(
    examples: int = 10, loss: float = 1.0, took_ms: int = 100, number: int = 1, **more: int
) -> History:
    past = Past(number, reported=True, missed=False, took_ms=took_ms, examples=examples, loss=loss)
    return History(more.get("selected", 1), (past,))


def chosen(
    histories: Mapping[str, History], clients: int, count: int, seed: int = 1, number: int = 2
) -> list[str]:
    candidates = [ClientRecord(f"c{i:02}") for i in range(clients)]
    randomness = hashlib.sha256(bytes([seed])).digest()
    return oort(candidates, Draw(count, randomness, number, histories=histories))


def test_utility_is_examples_times_loss_with_a_bonus_and_a_penalty_for_the_slow() -> None:
    """T is the median time, 100; 200 ms costs (1/2)^2. Utilities are scaled to 1; the bonus is sqrt(0.1 ln R / L)."""
    known = [history(10, 1.0, 100), history(10, 0.5, 100), history(10, 1.0, 200)]
    bonus = math.sqrt(0.1 * math.log(4) / 1)
    expected = [1 + bonus, 0.5 + bonus, (1 + bonus) / 4]
    assert utilities(known, 4) == pytest.approx(expected)


def test_the_pacer_gives_the_slow_more_time_when_a_window_gathered_less_than_the_one_before() -> None:
    """Windows of 20 rounds: 20 x 3, 20 x 2 (less: a step), 20 x 2 (not less), 20 x 1 (less: a step), then 19 rounds."""
    gains = [3.0] * WINDOW + [2.0] * (2 * WINDOW) + [1.0] * WINDOW + [0.5] * (WINDOW - 1)
    after = [pace(gains[:rounds]) for rounds in (0, 20, 39, 40, 60, 79, 80, 99)]
    assert after == [50.0, 50.0, 50.0, 55.0, 55.0, 55.0, 60.0, 60.0]
    assert pace([float(-number) for number in range(40 * WINDOW)]) == 100.0, "at most the slowest's time"


def test_the_pacer_moves_the_time_that_costs_nothing() -> None:
    """Times 100, 200, 300: T is 200, and 300 ms cost (2/3)^2; ten steps later T is 300, and nobody pays."""
    known = [history(10, 1.0, ms) for ms in (100, 200, 300)]
    bonus = math.sqrt(0.1 * math.log(400) / 1)
    assert utilities(known, 400) == pytest.approx([1 + bonus, 1 + bonus, (1 + bonus) * 4 / 9])
    falling = [float(400 - number) for number in range(11 * WINDOW)]
    assert utilities(known, 400, falling) == pytest.approx([1 + bonus] * 3)
    one_step = falling[: 2 * WINDOW]  # T is the 55th percentile: 210
    assert utilities(known, 400, one_step)[2] == pytest.approx((1 + bonus) * 0.49)


def test_who_was_counted_long_ago_gains() -> None:
    old, new = utilities([history(number=2), history(number=50)], 51)
    assert old > new


def test_one_outlier_counts_as_the_95th_percentile() -> None:
    found = utilities([history(loss=1.0)] * 40 + [history(loss=1e9)], 2)
    assert max(found) == pytest.approx(min(found))


def test_exploration_falls_from_nine_tenths_to_a_fifth() -> None:
    assert [round(share_of_new(number), 3) for number in (1, 2, 1000)] == [0.9, 0.882, 0.2]


def test_large_losses_are_asked_first_and_new_clients_are_explored() -> None:
    known = {f"c{i:02}": history(loss=5.0 if i < 4 else 0.1, number=79) for i in range(10)}
    found = Counter(c for seed in range(40) for c in chosen(known, 20, 5, seed, number=80))
    assert sum(found[f"c{i:02}"] for i in range(4)) == 40 * 4, "four fifths exploit, among the best"
    assert sum(found[f"c{i:02}"] for i in range(10, 20)) == 40


def test_who_missed_the_last_round_or_was_asked_too_often_waits() -> None:
    missed = History(1, (Past(1, reported=False, missed=True, took_ms=0, examples=0),))
    known = {"c00": missed, "c01": history(selected=PARTICIPATIONS + 1), "c02": history(), "c03": history()}
    assert chosen(known, 4, 2) == ["c02", "c03"]
    assert chosen(known, 4, 4) == ["c00", "c01", "c02", "c03"]


def test_single_losses_are_refused_under_masks() -> None:
    text = 'name = "a"\nfunction = "a"\nrounds = 1\n{}[cohort]\nsize = 10\nselection = "oort"\n'
    tasks.parse(text.format('mode = "plain"\n'))
    for mode in ("pairwise", "helper"):
        with pytest.raises(LocalError, match="single losses, which masks hide"):
            tasks.parse(text.format(f'mode = "{mode}"\n'))
