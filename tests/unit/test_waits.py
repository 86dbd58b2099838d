"""docs/waits.md says of every bound what the code says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from aggregator import config, sections, tasks
from edge_runtime import config as edge

PAGE = (Path(__file__).parents[2] / "docs" / "waits.md").read_text()
NAMED = re.compile(r"`([a-z_]+(?:\.[A-Za-z_]+)+)` = ([0-9.]+)")
SECTIONS: dict[str, type[BaseModel]] = {
    "cohort": tasks.CohortSettings, "round": tasks.RoundSettings, "secagg": sections.SecaggSettings,
    "evaluation": tasks.EvaluationSettings, "limits": config.LimitSettings, "state": config.StateSettings,
}  # fmt: skip
DEVICE = {"agent": edge.AgentSettings, "local": edge.LocalSettings, "update": edge.UpdateSettings}


def value(name: str) -> float:
    """What the code has: a constant of a module, or a setting's default."""
    place, _, last = name.rpartition(".")
    if place in SECTIONS:
        return float(SECTIONS[place].model_fields[last].default)
    if place in DEVICE:
        return float(getattr(DEVICE[place](), last))
    return float(getattr(importlib.import_module(place), last))


def test_the_page_names_bounds() -> None:
    assert len(NAMED.findall(PAGE)) > 25


@pytest.mark.parametrize(("name", "told"), sorted(set(NAMED.findall(PAGE))))
def test_a_bound_is_what_the_page_says(name: str, told: str) -> None:
    assert value(name) == float(told.rstrip("."))


def test_every_setting_of_a_task_that_bounds_a_wait_is_on_the_page() -> None:
    told = {name for name, _ in NAMED.findall(PAGE)}
    for section in ("cohort", "round", "secagg", "evaluation"):
        for name in SECTIONS[section].model_fields:
            assert not name.endswith("_s") or f"{section}.{name}" in told
