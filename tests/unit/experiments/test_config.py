"""Experiment files: every mistake at once, and what a good one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator import tasks
from fedless.experiments.config import Dropout, load, with_rounds, with_seed
from fedless.experiments.partition import Partition
from fedless.protocol.errors import Code, LocalError

GOOD = """
name = "small"
seeds = [1, 2]
function = "function"

[data]
kind = "npz"
train = "train.npz"
test = "test.npz"
examples = 500

[partition]
kind = "shards"
shards_per_client = 5

[[clients]]
kind = "edge"
count = 3

[[clients]]
kind = "edge"
count = 2

[task]
rounds = 2
[task.cohort]
fraction = 1.0
[task.client]
optimizer = "adam"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return path


def test_good_file_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    experiment = load(written(tmp_path, GOOD))
    assert (experiment.name, experiment.seeds, experiment.clients) == ("small", (1, 2), 5)
    assert experiment.function == tmp_path / "function"
    assert experiment.data.train == tmp_path / "train.npz"
    assert experiment.partition == Partition("shards", shards_per_client=5)
    task = tasks.parse(experiment.task)
    assert (task.name, task.rounds, task.client.optimizer) == ("small", 2, "adam")
    assert task.function
    assert task.test_set


def test_task_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text('name = "other"\nfunction = "f"\nrounds = 9\ncohort = { size = 3 }\n')
    text = 'task = "task.toml"\n' + GOOD.split("[task]", maxsplit=1)[0]
    task = tasks.parse(load(written(tmp_path, text)).task)
    assert (task.name, task.rounds, task.cohort.size) == ("small", 9, 3)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    bad = GOOD.replace("count = 3", "count = 0").replace('kind = "shards"', 'kind = "halves"')
    bad = bad.replace("seeds = [1, 2]", "seeds = [1, 1]\ncolour = 1").replace(
        "examples = 500", 'examples = "all"'
    )
    bad = bad.split("[task]")[0]
    with pytest.raises(LocalError) as caught:
        load(written(tmp_path, bad))
    assert caught.value.code is Code.CONFIG_INVALID
    for wrong in (
        "seeds:",
        "colour: unknown key",
        "data.examples:",
        "partition.kind:",
        "clients[0].count:",
        "task:",
    ):
        assert wrong in caught.value.detail


def test_fewer_examples_than_clients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="5 clients need at least one example"):
        load(written(tmp_path, GOOD.replace("examples = 500", "examples = 4")))


@pytest.mark.parametrize("text", ["name = ", "\ufeff\x00"])
def test_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(LocalError, match=r"experiment\.toml cannot be read"):
        load(written(tmp_path, text))


def test_missing_file_and_missing_task_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot be read"):
        load(tmp_path / "absent.toml")
    with pytest.raises(LocalError, match=r"absent\.toml cannot be read"):
        load(written(tmp_path, 'task = "absent.toml"\n' + GOOD.split("[task]", maxsplit=1)[0]))


def test_dropouts_name_devices_of_the_experiment(tmp_path: Path) -> None:
    drop = "[[dropouts]]\nclient = {}\nround = 2\n\n[task]"
    good = load(written(tmp_path, GOOD.replace("[task]", drop.format(5))))
    assert good.dropouts == (Dropout(5, 2),)
    with pytest.raises(LocalError, match="from 1 to 5"):
        load(written(tmp_path, GOOD.replace("[task]", drop.format(6))))


def test_mistakes_of_the_task_are_told_with_the_others(tmp_path: Path) -> None:
    bad = GOOD.replace("rounds = 2", "rounds = 0\ncolour = 1").replace("count = 3", "count = 0")
    with pytest.raises(LocalError) as caught:
        load(written(tmp_path, bad))
    for wrong in ("clients[0].count:", "rounds:", "colour: unknown key"):
        assert wrong in caught.value.detail


def test_rounds_and_seed_can_be_set(tmp_path: Path) -> None:
    experiment = load(written(tmp_path, GOOD))
    task = tasks.parse(with_seed(with_rounds(experiment, 5), 42).task)
    assert (task.rounds, task.client.seed, task.client.optimizer) == (5, 42, "adam")
