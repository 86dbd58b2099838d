"""What an experiment is: one TOML file, read into typed objects with all its mistakes reported at once.

`fedless experiment run FILE` and the benchmarks read it. Paths in the file are relative to the file. A sample
that documents every key is examples/mnist/experiment.toml.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aggregator import tasks
from fedless.experiments import variants
from fedless.experiments.groups import MAX_CLIENTS, ClientGroup, client_ids, read_groups
from fedless.experiments.partition import KINDS, Partition
from fedless.experiments.variants import Variant
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import Mode
from fedless.protocol.secagg.helper import HelperRules
from fedless.protocol.tables import Table, write_tables

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
PATH = re.compile(r"[^\x00-\x1f]{1,4096}")
ARRAY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
OPTIONAL = re.compile(r"[^\x00-\x1f]{0,4096}")
TEXT = re.compile(r"[^\x00-\x1f]{1,400}")
PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_SEEDS = 100
MAX_TARGETS = 8
FUNCTION_FILE, TEST_SET_FILE = "function.bundle", "test.npz"  # what the task calls them


@dataclass(frozen=True)
class Data:
    """The examples. `kind` is npz (one file of named arrays) or idx (a folder in MNIST's format).

    `train` is divided among the clients, `test` stays with the aggregator. `examples` of `train` are taken,
    drawn by the seed (0: all). `label` names the array that the partition looks at.
    """

    kind: str
    train: Path
    test: Path
    examples: int
    label: str


@dataclass(frozen=True)
class Dropout:
    """Device number `client` (from 1) is killed when it has checked in to round number `round`."""

    client: int
    round: int


@dataclass(frozen=True)
class Costs:
    """What the report prices with: tables of one's own (None: those that come with fedless), and a server's profile."""

    power: Path | None = None
    prices: Path | None = None
    server: str = "vm-2gb"


@dataclass(frozen=True)
class Anchor:
    """A figure of somebody else's to set beside ours. `ours` is a key of summary.json, `a.b` for b in a; or empty."""

    name: str
    theirs: str
    source: str
    ours: str = ""


@dataclass(frozen=True)
class Experiment:
    """A described set of runs with its fleet: one run for each variant and seed, on a fresh fleet.

    `function` is a folder made by `fedless function build`, signed for the fleet when it starts. `task` is
    the text of the task file as `fedless run start` takes it; `variants` change it. `output` gets one folder for
    each run. `targets` are test accuracies: when were they reached? `helper` has the rules of the helper, where the
    task has one. `variant` is the name of this run's.
    """

    name: str
    seeds: tuple[int, ...]
    output: Path
    function: Path
    data: Data
    partition: Partition
    groups: tuple[ClientGroup, ...]
    dropouts: tuple[Dropout, ...]
    task: str
    variants: tuple[Variant, ...] = ()
    targets: tuple[float, ...] = ()
    costs: Costs = field(default_factory=Costs)
    anchors: tuple[Anchor, ...] = ()
    helper: HelperRules = field(default_factory=HelperRules)
    variant: str = ""

    @property
    def clients(self) -> int:
        """How many clients all groups have together."""
        return sum(group.count for group in self.groups)


def load(path: Path) -> Experiment:
    """The experiment that the file says. Raises `LocalError(CONFIG_INVALID)` that names every mistake."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LocalError(Code.CONFIG_INVALID, f"{path} cannot be read: {error}.") from None
    complaints: list[str] = []
    task = _task(values.pop("task", None), path.parent, complaints)
    seeds = _seeds(values.pop("seeds", [1]), complaints)
    found = variants.read(values.pop("variants", []), complaints)
    targets = _targets(values.pop("targets", []), complaints)
    root = Table.root(values)
    experiment = _experiment(root, path.parent, seeds)
    complaints += root.close()
    experiment = replace(experiment, variants=found, targets=targets)
    complaints += _complaints(experiment)
    if task:
        own = {"name": experiment.name or "experiment", "function": FUNCTION_FILE, "test_set": TEST_SET_FILE}
        experiment = replace(experiment, task=with_task(task, own))
        complaints += _task_complaints(experiment)
    if complaints:
        listed = "\n".join(f"  {complaint}" for complaint in complaints)
        fix = "docs/experiments.md describes every key."
        raise LocalError(Code.CONFIG_INVALID, f"{path}:\n{listed}\n", fix=fix)
    return experiment


def _complaints(experiment: Experiment) -> list[str]:
    """What no single key is to blame for."""
    found = []
    if 0 < experiment.data.examples < experiment.clients:
        found.append(f"data.examples: {experiment.clients} clients need at least one example each")
    if experiment.partition.kind == "natural" and experiment.partition.groups_apart:
        found.append("partition: natural deals out whole owners, groups_apart would divide them")
    labels = [group.label for group in experiment.groups if group.name or group.functions]
    if len(set(labels)) < len(labels):
        found.append("clients: two groups have the same name")
    ids = client_ids(experiment.groups)
    for dropout in experiment.dropouts:
        if dropout.client > experiment.clients:
            found.append(f"dropouts: client must be a number from 1 to {experiment.clients}")
        elif ids[dropout.client - 1][1].functions:
            found.append(f"dropouts: client {dropout.client} is a function; only devices can be killed")
    return found


def _task_complaints(experiment: Experiment) -> list[str]:
    """Of the task itself and of every variant of it."""
    found = []
    for one in variants.each(experiment.task, experiment.variants):
        where = f"variants, {one.name}: task" if one.name else "task"
        try:
            found += _unfit(experiment, tasks.parse(one.task, where).mode, where)
        except LocalError as error:
            found.append(error.detail)
    return found


def _unfit(experiment: Experiment, mode: str, where: str) -> list[str]:
    """Why these clients cannot take part in rounds of that mode."""
    functions = sum(group.count for group in experiment.groups if group.functions)
    counted = experiment.clients - (0 if experiment.helper.count_functions else functions)
    if mode == Mode.PAIRWISE and functions:
        return [f"{where}: mode pairwise is for devices alone; with cloud functions choose plain or helper"]
    if mode == Mode.HELPER and counted < experiment.helper.minimum:
        return [
            f"helper.minimum: {experiment.helper.minimum} clients that count are asked for, there are {counted}"
        ]
    return []


def _experiment(root: Table, base: Path, seeds: tuple[int, ...]) -> Experiment:
    data, partition, costs = root.table("data"), root.optional("partition"), root.optional("cost")
    helper = root.optional("helper")
    return Experiment(
        name=root.text("name", NAME),
        seeds=seeds,
        output=Path(root.text("output", PATH, "runs")),
        function=base / root.text("function", PATH),
        data=_data(data, base),
        partition=_partition(partition) if partition else Partition(),
        groups=read_groups(root.tables("clients", 1, 16)),
        dropouts=tuple(_dropout(table) for table in root.tables("dropouts", 0, MAX_CLIENTS)),
        task="",
        costs=_costs(costs, base) if costs else Costs(),
        helper=_helper(helper) if helper else HelperRules(),
        anchors=tuple(_anchor(table) for table in root.tables("anchors", 0, 64)),
    )


def _data(table: Table, base: Path) -> Data:
    return Data(
        kind=table.choice("kind", ("npz", "idx")),
        train=base / table.text("train", PATH),
        test=base / table.text("test", PATH),
        examples=table.integer("examples", 0, 2**31, 0),
        label=table.text("label", ARRAY, "y"),
    )


def _partition(table: Table) -> Partition:
    return Partition(
        kind=table.choice("kind", KINDS),
        shards_per_client=table.integer("shards_per_client", 1, 10_000, 2),
        alpha=table.real("alpha", 1e-3, 1e3, 0.5),
        groups_apart=table.flag("groups_apart", default=False),
    )


def _costs(table: Table, base: Path) -> Costs:
    power, prices = table.text("power", OPTIONAL, ""), table.text("prices", OPTIONAL, "")
    return Costs(
        power=base / power if power else None,
        prices=base / prices if prices else None,
        server=table.text("server", PROFILE, Costs.server),
    )


def _helper(table: Table) -> HelperRules:
    return HelperRules(
        minimum=table.integer("minimum", 2, 100_000, HelperRules.minimum),
        count_functions=table.flag("count_functions", default=HelperRules.count_functions),
    )


def _anchor(table: Table) -> Anchor:
    return Anchor(
        name=table.text("name", TEXT),
        theirs=table.text("theirs", TEXT),
        source=table.text("source", TEXT),
        ours=table.text("ours", OPTIONAL, ""),
    )


def _dropout(table: Table) -> Dropout:
    return Dropout(table.integer("client", 1, MAX_CLIENTS), table.integer("round", 1, 1_000_000))


def _seeds(value: object, complaints: list[str]) -> tuple[int, ...]:
    if (
        isinstance(value, list)
        and 1 <= len(value) <= MAX_SEEDS
        and all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in value)
        and len(set(value)) == len(value)
    ):
        return tuple(value)
    complaints.append(f"seeds: must be 1 to {MAX_SEEDS} different integers from 0 to 4294967295")
    return (0,)


def _targets(value: object, complaints: list[str]) -> tuple[float, ...]:
    if (
        isinstance(value, list)
        and len(value) <= MAX_TARGETS
        and all(isinstance(target, float) and 0.0 < target < 1.0 for target in value)
    ):
        return tuple(value)
    complaints.append(f"targets: must be at most {MAX_TARGETS} accuracies between 0.0 and 1.0")
    return ()


def _task(value: object, base: Path, complaints: list[str]) -> dict[str, Any]:
    """The task's table: inline, or in the file that a text names."""
    if isinstance(value, str):
        try:
            return tomllib.loads((base / value).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            complaints.append(f"task: {base / value} cannot be read: {error}")
    elif isinstance(value, dict):
        return value
    else:
        complaints.append("task: must be a table or the name of a task file")
    return {}


def with_task(task: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    """The text of a task with other values at its top."""
    kept = {key: value for key, value in task.items() if key != "initial"}  # the function's own weights
    return write_tables({**kept, **changes})


def with_rounds(experiment: Experiment, rounds: int) -> Experiment:
    """The same experiment with another number of rounds."""
    return replace(experiment, task=with_task(tomllib.loads(experiment.task), {"rounds": rounds}))


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    """The same experiment with that seed alone, which also orders the clients' examples."""
    task = tomllib.loads(experiment.task)
    text = with_task(task, {"client": {**task.get("client", {}), "seed": seed}})
    return replace(experiment, seeds=(seed,), task=text)


def with_scale(experiment: Experiment, factor: float) -> Experiment:
    """A smaller (or larger) one of the same shape: clients, their examples and the cohorts, times `factor`."""
    groups = tuple(replace(group, count=_scaled(group.count, factor)) for group in experiment.groups)
    data = replace(experiment.data, examples=_scaled(experiment.data.examples, factor))
    changed = tuple(replace(one, task=variants.scaled(one.task, factor)) for one in experiment.variants)
    task = with_task(variants.scaled(tomllib.loads(experiment.task), factor), {})
    return replace(experiment, groups=groups, data=data, task=task, variants=changed)


def runs(experiment: Experiment, only: str = "") -> list[Experiment]:
    """One experiment for each variant (all, or the one named `only`) and seed. Raises `LocalError(CONFIG_INVALID)`."""
    chosen = [one for one in variants.each(experiment.task, experiment.variants) if only in ("", one.name)]
    if not chosen:
        known = ", ".join(one.name for one in experiment.variants) or "none"
        raise LocalError(Code.CONFIG_INVALID, f"There is no variant {only!r}; there is {known}.")
    alone = [replace(experiment, task=one.task, variant=one.name, variants=()) for one in chosen]
    return [with_seed(one, seed) for one in alone for seed in experiment.seeds]


def _scaled(count: int, factor: float) -> int:
    return max(1, round(count * factor)) if count else 0
