"""Selection: who is drawn, and how often; the looking-back rules against hand-computed clusters and scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

from aggregator.interfaces import ClientRecord
from aggregator.selection import SELECTIONS
from aggregator.selection.apodotiko import log_weights, score
from aggregator.selection.clusters import best_clusters, index
from aggregator.selection.draw import RECENT, Draw, History, Past
from aggregator.selection.fedlesscan import features, rests
from aggregator.selection.weighted import weight

RECORDS = [ClientRecord(f"client-{number}") for number in range(10)]


def history(*pasts: Past) -> History:
    """Of rounds given from the oldest on."""
    return History(len(pasts), tuple(reversed(pasts))[:RECENT])


def done(number: int, took_ms: int = 1000, examples: int = 100) -> Past:
    return Past(number, reported=True, missed=False, took_ms=took_ms, examples=examples)


def missed(number: int) -> Past:
    return Past(number, reported=False, missed=True, took_ms=0, examples=0)


def chosen(
    name: str,
    count: int,
    histories: Mapping[str, History] | None = None,
    *,
    number: int = 1,
    progress: float = 0.0,
    seed: int = 0,
) -> list[str]:
    draw = Draw(count, seed.to_bytes(32), number, progress, histories or {})
    return SELECTIONS[name](RECORDS, draw)


def shares(
    name: str, count: int, times: int, histories: Mapping[str, History], number: int
) -> dict[str, float]:
    """How often each client is drawn, in shares."""
    counts: Counter[str] = Counter()
    for seed in range(times):
        counts.update(chosen(name, count, histories, number=number, seed=seed))
    return {record.client_id: counts[record.client_id] / times for record in RECORDS}


# -- every rule


@pytest.mark.parametrize("name", SELECTIONS)
def test_it_draws_without_repetition(name: str) -> None:
    known = {f"client-{n}": history(done(1, 100 * n + 1), *([missed(2)] * (n % 2))) for n in range(8)}
    for histories in ({}, known):
        found = chosen(name, 4, histories, number=3)
        assert len(set(found)) == 4
        assert found == chosen(name, 4, histories, number=3), "the same bytes, the same choice"
        assert chosen(name, 99, histories, number=3) == sorted(record.client_id for record in RECORDS)
        assert SELECTIONS[name]([], Draw(3, bytes(32), histories=histories)) == []


@pytest.mark.parametrize("name", SELECTIONS)
def test_with_no_past_and_no_labels_it_is_fair(name: str) -> None:
    found = shares(name, 3, 2000, {}, 1)
    assert all(abs(share - 0.3) < 0.05 for share in found.values())  # 5 standard deviations


# -- weighted


def test_weights_are_shares_of_the_first_draw() -> None:
    records = [ClientRecord("light"), ClientRecord("heavy", labels={"weight": "3"})]
    counts = Counter(SELECTIONS["weighted"](records, Draw(1, seed.to_bytes(32)))[0] for seed in range(2000))
    assert abs(counts["heavy"] / 2000 - 0.75) < 0.05


def test_capacity_is_cores() -> None:
    records = [ClientRecord("untold"), ClientRecord("board", cores=3)]
    counts = Counter(SELECTIONS["capacity"](records, Draw(1, seed.to_bytes(32)))[0] for seed in range(2000))
    assert abs(counts["board"] / 2000 - 0.75) < 0.05


@pytest.mark.parametrize("value", ["", "much", "0", "-2", "nan", "inf"])
def test_a_label_that_is_no_weight_counts_as_1(value: str) -> None:
    assert weight({"weight": value}) == weight({}) == 1.0


# -- clusters


def test_clusters_hang_together_and_loners_are_alone() -> None:
    points = np.array([[0.1, 0.0], [0.12, 0.0], [0.14, 0.0], [0.9, 0.0], [0.92, 0.0], [0.4, 1.5]])
    assert best_clusters(points) == [[0, 1, 2], [3, 4], [5]]


def test_points_that_nothing_divides_are_one_cluster() -> None:
    assert best_clusters(np.full((5, 2), 0.3)) == [[0, 1, 2, 3, 4]]
    assert best_clusters(np.array([[0.3, 0.0]])) == [[0]]


def test_the_index_by_hand() -> None:
    """0, 2 and 10, 12: between 4 * 25, within 4 * 1, so 100 / 1 divided by 4 / 2."""
    points = np.array([[0.0], [2.0], [10.0], [12.0]])
    assert index(points, [0, 0, 1, 1]) == pytest.approx(50.0)
    assert index(points, [0, 0, 0, 0]) == 0.0, "one group"
    assert index(points, [0, 1, 2, 3]) == 0.0, "all are alone: one group of loners"


# -- FedLesScan


def test_features_are_moving_averages_in_shares_of_the_longest_time() -> None:
    """Times 4, 8: 6 s; 12: the longest; none: as the longest. Missed 0, 1: 0.8, times 1.5."""
    found = features(
        [
            history(done(1, 4000), done(2, 8000)),
            history(done(1, 12_000), missed(2)),
            history(missed(1)),
        ]
    )
    assert found == pytest.approx(np.array([[0.5, 0.0], [1.0, 1.2], [1.0, 1.5]]))


def test_rest_doubles_with_each_missed_round_in_a_row() -> None:
    once, thrice = history(done(1), missed(5)), history(missed(3), missed(4), missed(5))
    assert [n for n in range(6, 20) if rests(once, n)] == [6]
    assert [n for n in range(6, 20) if rests(thrice, n)] == [6, 7, 8, 9]
    assert not rests(history(missed(4), done(5)), 6), "a report ends it"


def test_rookies_first_then_the_ready_then_the_resting() -> None:
    histories = {f"client-{n}": history(done(1)) for n in range(8)}
    histories |= {"client-0": history(missed(1))}
    assert set(chosen("fedlesscan", 2, histories, number=2)) == {"client-8", "client-9"}
    nine = chosen("fedlesscan", 9, histories, number=2)
    assert "client-0" not in nine
    assert len(chosen("fedlesscan", 10, histories, number=2)) == 10
    assert "client-0" in chosen("fedlesscan", 10, histories, number=2), "too few otherwise"


def test_the_fast_begin_and_the_slow_have_their_turn_at_the_end() -> None:
    histories = {f"client-{n}": history(done(1, 1000 + n if n < 5 else 9000 + n)) for n in range(10)}
    fast, slow = [f"client-{n}" for n in range(5)], [f"client-{n}" for n in range(5, 10)]
    assert chosen("fedlesscan", 5, histories, number=2, progress=0.0) == fast
    assert chosen("fedlesscan", 5, histories, number=2, progress=0.6) == slow
    assert chosen("fedlesscan", 5, histories, number=2, progress=1.0) == slow
    more = chosen("fedlesscan", 7, histories, number=2, progress=0.6)
    assert set(slow) < set(more), "after the slowest it begins again with the fastest"


def test_within_a_cluster_who_was_selected_least_comes_first() -> None:
    histories = {f"client-{n}": history(*(done(r) for r in range(1, 2 + (n + 3) % 10))) for n in range(10)}
    assert chosen("fedlesscan", 3, histories, number=20) == ["client-7", "client-8", "client-9"]


# -- Apodotiko


def test_the_score_by_hand() -> None:
    """100^2 / 1000 = 10 lately, 200^2 / 1000 = 40 before: (10 + 0.8 * 40) / 1.8."""
    assert score(history(done(1, 1000, 200), done(2, 1000, 100))) == pytest.approx(42 / 1.8)
    assert score(history(missed(1))) == 0.0
    long_ago = history(done(1, 1, 10**6), *(done(n) for n in range(2, 7)))
    assert score(long_ago) == pytest.approx(10.0), "five rounds count"
    assert score(history(done(1, 500, 0))) == pytest.approx(1 / 500), "hidden by masks"


def test_the_booster_grows_with_each_round_without_the_client() -> None:
    histories = [history(done(9)), history(done(6))]
    just, long_ago = log_weights(histories, 10)
    assert math.exp(long_ago - just) == pytest.approx(1.2**3)
    assert math.isfinite(log_weights([history(done(1))], 10**6)[0]), "however long"


def test_who_is_fast_and_has_much_data_is_drawn_more_often() -> None:
    """Score 4 against 1 each of nine: the first draw is client-0's in 4 of 13."""
    histories = {f"client-{n}": history(done(1, 1000, 200 if n == 0 else 100)) for n in range(10)}
    found = shares("apodotiko", 1, 3000, histories, 2)
    assert abs(found["client-0"] - 4 / 13) < 0.05
    assert abs(found["client-5"] - 1 / 13) < 0.03


def test_who_missed_a_round_is_left_out_for_five() -> None:
    histories = {f"client-{n}": history(done(3)) for n in range(10)} | {"client-4": history(missed(3))}
    for number, out in ((4, True), (8, True), (9, False)):
        found = shares("apodotiko", 9, 200, histories, number)["client-4"]
        assert (found == 0.0) is out
    assert "client-4" in chosen("apodotiko", 10, histories, number=4), "too few otherwise"
