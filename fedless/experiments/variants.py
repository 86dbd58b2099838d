"""*Pure.* Variants of an experiment: the same fleet and data, tasks that differ, one run for each.

Read by `config` from `[[variants]]`: a name, and a table `task` whose values replace those of the experiment's task,
table by table.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedless.protocol.tables import write_tables

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
MOST = 32
_SCALED = ("size", "minimum_reports")
"""Of a task's `[cohort]`: numbers of clients."""


@dataclass(frozen=True)
class Variant:
    """A named change of the task."""

    name: str
    task: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Planned:
    """One run's task, as text; `name` is "" where there are no variants."""

    name: str
    task: str


def read(value: object, complaints: list[str]) -> tuple[Variant, ...]:
    """The variants in a file's `[[variants]]`; mistakes become complaints."""
    if not isinstance(value, list) or len(value) > MOST or not all(isinstance(one, dict) for one in value):
        complaints.append(f"variants: must be an array of at most {MOST} tables")
        return ()
    found = []
    for number, one in enumerate(value):
        name, task = one.get("name", ""), one.get("task", {})
        if not isinstance(name, str) or not NAME.fullmatch(name):
            complaints.append(f"variants[{number}].name: must be a text of the form {NAME.pattern}")
        if not isinstance(task, dict):
            complaints.append(f"variants[{number}].task: must be a table")
        complaints += [
            f"variants[{number}].{key}: unknown key" for key in sorted(set(one) - {"name", "task"})
        ]
        found.append(Variant(str(name), task if isinstance(task, dict) else {}))
    if len({one.name for one in found}) < len(found):
        complaints.append("variants: two have the same name")
    return tuple(found)


def each(task: str, variants: Sequence[Variant]) -> list[Planned]:
    """The tasks to run: the one itself if nothing varies it."""
    if not variants:
        return [Planned("", task)]
    values = tomllib.loads(task)
    return [Planned(one.name, write_tables(merged(values, one.task))) for one in variants]


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `changes` in place of its own, table by table."""
    result = dict(base)
    for key, value in changes.items():
        mine = result.get(key)
        both = isinstance(value, Mapping) and isinstance(mine, Mapping)
        result[key] = merged(mine, value) if both and isinstance(mine, Mapping) else value
    return result


def scaled(task: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """A task whose cohorts have `factor` times as many clients, one at least."""
    cohort = task.get("cohort")
    if not isinstance(cohort, Mapping):
        return dict(task)
    sizes = {key: max(1, round(cohort[key] * factor)) for key in _SCALED if cohort.get(key)}
    return {**task, "cohort": {**cohort, **sizes}}
