"""Rules over cohorts' means, against results computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from aggregator import commit, tasks
from aggregator.strategies import make
from aggregator.strategies.grouped import Grouped, GroupMedian, GroupTrimmedMean
from aggregator.uploads import BLOCK, FloatSum
from fedless.protocol.errors import LocalError

MEANS = np.array([[1.0, -2.0, 0.5], [2.0, 0.0, 0.5], [100.0, 4.0, 0.5], [3.0, 2.0, -900.0]], np.float32)
TASK = 'name = "a"\nfunction = "a"\nrounds = 1\nmode = "{mode}"\nstrategy = "group-median"\n'


def test_group_median_of_three_and_of_four_cohorts() -> None:
    """Column by column: of (1, 2, 100), (-2, 0, 4), (.5, .5, .5); with a fourth the mean of the two in the middle."""
    assert GroupMedian().of_cohorts(MEANS[:3]).tolist() == [2.0, 0.0, 0.5]
    assert GroupMedian().of_cohorts(MEANS).tolist() == [2.5, 1.0, 0.5]


def test_group_trimmed_mean_cuts_a_quarter_on_each_side() -> None:
    """Of four cohorts one on each side; of three one as well: (2), (0), (.5) are left."""
    assert GroupTrimmedMean().of_cohorts(MEANS).tolist() == [2.5, 1.0, 0.5]
    assert GroupTrimmedMean().of_cohorts(MEANS[:3]).tolist() == [2.0, 0.0, 0.5]
    assert GroupTrimmedMean(0.1).of_cohorts(MEANS[:3]).tolist() == [2.0, 0.0, 0.5]


def test_one_liar_of_24_moves_the_mean_and_not_the_median() -> None:
    """23 clients report 1, one reports 1,000: cohorts of 8 have the means 1, 1 and 125.875."""
    means = np.array([[1.0], [1.0], [(7 + 1000) / 8]], np.float32)
    assert GroupMedian().of_cohorts(means).tolist() == [1.0]
    assert Grouped().of_cohorts(means)[0] == pytest.approx(127.875 / 3)


@pytest.mark.parametrize("size", [3, BLOCK, BLOCK + 1])
def test_the_commit_works_block_by_block(size: int) -> None:
    random = np.random.default_rng(7)
    cohorts = [random.normal(size=size).astype(np.float32) for _ in range(5)]
    updates = commit.MeanSum(np.zeros(size, np.float32), cohorts=cohorts)
    found = np.concatenate(list(commit.mean_blocks(updates, make("group-median", {}))))
    np.testing.assert_array_equal(found, np.median(np.array(cohorts, np.float64), axis=0))


def test_a_sum_without_cohorts_is_no_food_for_it() -> None:
    with pytest.raises(TypeError):
        list(commit.mean_blocks(FloatSum(3), make("group-median", {})))


@pytest.mark.parametrize(
    ("mode", "more", "said"),
    [
        ("plain", "[cohort]\nsize = 24\n", "here single updates can be seen: use median"),
        ("helper", "[cohort]\nsize = 24\n", "the helper gives one sum of all clients: use mode pairwise"),
        (
            "pairwise",
            "[cohort]\nsize = 24\n",
            "secagg.cohort_size: group-median needs 3 cohorts at least; 24 clients make 1",
        ),
        (
            "pairwise",
            "[cohort]\nsize = 20\n[secagg]\ncohort_size = 8\n",
            "group-median needs 3 cohorts at least; 20 clients make 2",
        ),
    ],
)
def test_where_it_cannot_work_it_is_refused_with_the_reason(mode: str, more: str, said: str) -> None:
    with pytest.raises(LocalError) as refusal:
        tasks.parse(TASK.format(mode=mode) + more)
    assert said in refusal.value.detail


def test_it_works_with_three_cohorts() -> None:
    settings = tasks.parse(TASK.format(mode="pairwise") + "[cohort]\nsize = 24\n[secagg]\ncohort_size = 8\n")
    assert settings.cohort_sizes(1000) == [8, 8, 8]
