"""What an experiment is: one TOML file, read into typed objects with all its mistakes reported at once.

`fedless experiment run FILE` and the benchmarks read it. Paths in the file are relative to the file. A sample
that documents every key is examples/mnist/experiment.toml.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aggregator import tasks
from fedless.experiments.partition import KINDS, Partition
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.tables import Table, write_tables

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
PATH = re.compile(r"[^\x00-\x1f]{1,4096}")
ARRAY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
MAX_CLIENTS = 1000
MAX_SEEDS = 100
CLIENT_KINDS = ("edge",)
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
class ClientGroup:
    """`count` clients of one kind: `edge` is an agent process on this machine.

    `warm_mb` is what a device may keep in memory between wake-ups, MB (0: every start is cold).
    """

    kind: str
    count: int
    warm_mb: int = 0


@dataclass(frozen=True)
class Dropout:
    """Device number `client` (from 1) is killed when it has checked in to round number `round`."""

    client: int
    round: int


@dataclass(frozen=True)
class Experiment:
    """A described set of runs with its fleet: one run for each seed, on a fresh fleet.

    `function` is a folder made by `fedless function build`, signed for the fleet when it starts. `task` is
    the text of the task file as `fedless run start` takes it. `output` gets one folder for each run.
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
    root = Table.root(values)
    experiment = _experiment(root, path.parent, seeds)
    complaints += root.close()
    if 0 < experiment.data.examples < experiment.clients:
        complaints.append(f"data.examples: {experiment.clients} clients need at least one example each")
    if any(dropout.client > experiment.clients for dropout in experiment.dropouts):
        complaints.append(f"dropouts: client must be a number from 1 to {experiment.clients}")
    if task:
        own = {"name": experiment.name or "experiment", "function": FUNCTION_FILE, "test_set": TEST_SET_FILE}
        experiment = replace(experiment, task=with_task(task, own))
        try:
            tasks.parse(experiment.task, "task")
        except LocalError as error:
            complaints.append(error.detail)
    if complaints:
        listed = "\n".join(f"  {complaint}" for complaint in complaints)
        fix = "docs/experiments.md describes every key."
        raise LocalError(Code.CONFIG_INVALID, f"{path}:\n{listed}\n", fix=fix)
    return experiment


def _experiment(root: Table, base: Path, seeds: tuple[int, ...]) -> Experiment:
    data, partition = root.table("data"), root.optional("partition")
    return Experiment(
        name=root.text("name", NAME),
        seeds=seeds,
        output=Path(root.text("output", PATH, "runs")),
        function=base / root.text("function", PATH),
        data=_data(data, base),
        partition=_partition(partition) if partition else Partition(),
        groups=tuple(_group(table) for table in root.tables("clients", 1, 16)),
        dropouts=tuple(_dropout(table) for table in root.tables("dropouts", 0, MAX_CLIENTS)),
        task="",
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
    )


def _group(table: Table) -> ClientGroup:
    return ClientGroup(
        table.choice("kind", CLIENT_KINDS),
        table.integer("count", 1, MAX_CLIENTS),
        table.integer("warm_mb", 0, 65_536, 0),
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
