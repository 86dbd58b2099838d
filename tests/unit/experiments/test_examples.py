"""The examples are what their READMEs say they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator import tasks
from fedless.experiments.config import load, runs
from fedless.experiments.partition import Partition

FEDLESS = Path("examples/fedless2021")


@pytest.mark.parametrize("name", ["experiment.toml", "experiment-full.toml"])
def test_fedless_again_has_the_papers_set_up(name: str) -> None:
    experiment = load(FEDLESS / name)
    assert (experiment.clients, experiment.data.examples) == (200, 60_000)
    assert experiment.partition == Partition("shards", shards_per_client=3)
    assert experiment.targets == (0.95, 0.98, 0.99)
    for one in runs(experiment):
        task = tasks.parse(one.task)
        rule = task.client
        assert (rule.optimizer, rule.learning_rate, rule.local_epochs) == ("adam", 0.001, 5)
        assert (task.strategy, task.cohort.over_selection) == ("fedavg", 1.0)
    assert all(anchor.theirs and anchor.source for anchor in experiment.anchors)


def test_the_full_size_is_three_cohorts_and_three_seeds() -> None:
    sizes = [tasks.parse(one.task).cohort.size for one in runs(load(FEDLESS / "experiment-full.toml"))]
    assert sizes == [25, 25, 25, 100, 100, 100, 200, 200, 200]
