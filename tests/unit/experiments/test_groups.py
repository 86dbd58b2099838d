"""Groups of clients, variants of the task and the size of an experiment: what a file says, and what it may not."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from aggregator import tasks
from fedless.experiments.books import Books, beside
from fedless.experiments.config import Anchor, Experiment, load, runs, with_scale
from fedless.experiments.groups import Network, client_ids
from fedless.experiments.variants import merged
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.secagg.helper import HelperRules

MIXED = """
name = "mixed"
seeds = [1, 2]
function = "function"
targets = [0.9, 0.95]

[data]
kind = "npz"
train = "train.npz"
test = "test.npz"
examples = 600

[[clients]]
kind = "edge"
name = "pi"
count = 40
slowdown = 2.5
network = { latency_ms = 40, down_mbit_s = 20 }

[[clients]]
kind = "aws_lambda"
count = 20

[[clients]]
kind = "google"
count = 4
memory_mb = 512

[helper]
minimum = 5

[cost]
server = "vm-2gb"

[[anchors]]
name = "rounds to 95 %"
theirs = "12"
source = "a paper"
ours = "rounds_to.95%"

[task]
mode = "helper"
rounds = 2
[task.cohort]
size = 30
minimum_reports = 20
[task.client]
optimizer = "adam"

[[variants]]
name = "fedavg"

[[variants]]
name = "fedadam"
[variants.task]
strategy = "fedadam"
[variants.task.cohort]
size = 25
"""


def read(tmp_path: Path, text: str) -> Experiment:
    path = tmp_path / "experiment.toml"
    path.write_text(text)
    return load(path)


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(LocalError) as caught:
        read(tmp_path, text)
    assert caught.value.code is Code.CONFIG_INVALID
    return caught.value.detail


def test_groups_are_read_with_their_conditions(tmp_path: Path) -> None:
    experiment = read(tmp_path, MIXED)
    pi, aws, google = experiment.groups
    assert (pi.network, pi.slowdown, pi.functions) == (Network(40.0, 20.0), 2.5, False)
    assert (aws.kind, aws.functions, aws.network.shaped) == ("aws-lambda", True, False)
    assert (google.memory_mb, google.label) == (512, "google")
    assert experiment.helper == HelperRules(minimum=5)
    ids = [client_id for client_id, _ in client_ids(experiment.groups)]
    assert (ids[0], ids[40], ids[-1]) == ("pi-01", "aws-lambda-41", "google-64")


def test_every_variant_and_seed_is_a_run(tmp_path: Path) -> None:
    planned = runs(read(tmp_path, MIXED))
    assert [(one.variant, one.seeds) for one in planned] == [
        ("fedavg", (1,)), ("fedavg", (2,)), ("fedadam", (1,)), ("fedadam", (2,)),
    ]  # fmt: skip
    first, last = tasks.parse(planned[0].task), tasks.parse(planned[-1].task)
    assert (first.strategy, first.cohort.size, first.client.seed) == ("fedavg", 30, 1)
    assert (last.strategy, last.cohort.size, last.client.seed) == ("fedadam", 25, 2)
    assert last.cohort.minimum_reports == first.cohort.minimum_reports == 20
    assert last.client.optimizer == "adam"


def test_one_variant_alone_can_be_run(tmp_path: Path) -> None:
    experiment = read(tmp_path, MIXED)
    assert {one.variant for one in runs(experiment, "fedadam")} == {"fedadam"}
    with pytest.raises(LocalError, match="no variant 'fedprox'; there is fedavg, fedadam"):
        runs(experiment, "fedprox")


def test_a_scaled_experiment_keeps_its_shape(tmp_path: Path) -> None:
    small = with_scale(read(tmp_path, MIXED), 0.1)
    assert [group.count for group in small.groups] == [4, 2, 1]
    assert small.data.examples == 60
    assert [tasks.parse(one.task).cohort.size for one in runs(small)] == [3, 3, 2, 2]


def test_values_of_a_variant_replace_table_by_table() -> None:
    base = {"a": 1, "t": {"x": 1, "y": {"z": 1}}}
    changed = merged(base, {"t": {"y": {"w": 2}}, "b": {"n": 1}})
    assert changed == {"a": 1, "t": {"x": 1, "y": {"z": 1, "w": 2}}, "b": {"n": 1}}
    assert base == {"a": 1, "t": {"x": 1, "y": {"z": 1}}}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "google"', 'kind = "ibm"', "clients[2].kind"),
        ('name = "pi"', 'name = "aws-lambda"', "two groups have the same name"),
        ("slowdown = 2.5", "slowdown = 0.5", "clients[0].slowdown"),
        ("latency_ms = 40", "latency = 40", "clients[0].network.latency: unknown key"),
        ("targets = [0.9, 0.95]", "targets = [90]", "targets:"),
        ('name = "fedavg"', 'name = "fedadam"', "variants: two have the same name"),
        ('strategy = "fedadam"', 'strategy = "magic"', "variants, fedadam: task"),
        ("minimum = 5", "minimum = 1", "helper.minimum"),
        ('name = "fedavg"', 'name = "fedavg"\nrounds = 3', "variants[0].rounds: unknown key"),
        ('mode = "helper"', 'mode = "pairwise"', "pairwise is for devices alone"),
        ("minimum = 5", "minimum = 41", "41 clients that count are asked for, there are 40"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in MIXED
    assert said in complaint(tmp_path, MIXED.replace(old, new, 1))


def test_one_kind_may_be_two_groups_only_with_names(tmp_path: Path) -> None:
    twice = MIXED.replace('kind = "google"', 'kind = "aws-lambda"')
    named = twice.replace('kind = "aws-lambda"', 'kind = "aws-lambda"\nname = "large"')
    assert [group.label for group in read(tmp_path, named).groups] == ["pi", "aws-lambda", "large"]


def test_a_function_cannot_be_killed_as_a_device_is(tmp_path: Path) -> None:
    dropout = "[[dropouts]]\nclient = {}\nround = 1\n\n[task]"
    assert read(tmp_path, MIXED.replace("[task]", dropout.format(40), 1)).dropouts
    said = complaint(tmp_path, MIXED.replace("[task]", dropout.format(41), 1))
    assert "client 41 is a function" in said


def test_profiles_that_no_table_has_are_told_before_anything_runs(tmp_path: Path) -> None:
    for wrong in (
        MIXED.replace("vm-2gb", "vm-9"),
        MIXED.replace('name = "pi"', 'name = "pi"\ndevice = "toaster"'),
    ):
        with pytest.raises(LocalError, match=r"The power table has no (vm-9|toaster); it has"):
            Books.of(read(tmp_path, wrong))


def test_our_figure_is_set_beside_theirs() -> None:
    anchor = Anchor("rounds to 95 %", "12", "a paper", "rounds_to.95%")
    assert beside([anchor], {"rounds_to": {"95%": 14}})[0]["ours"] == 14
    assert beside([anchor], {"rounds": 3})[0]["ours"] is None
    assert beside([Anchor("a", "b", "c")], {})[0]["ours"] is None


def test_the_mixed_example_is_what_the_issue_asks_for() -> None:
    experiment = load(Path("examples/mixed/experiment.toml"))
    kinds = {
        kind: sum(g.count for g in experiment.groups if g.kind == kind)
        for kind in ("edge", "aws-lambda", "google")
    }
    assert kinds == {"edge": 6, "aws-lambda": 2, "google": 2}
    assert tomllib.loads(experiment.task)["mode"] == "helper"
