"""docs/convergence.md and its picture say what was measured: the benchmark's result that is kept beside them."""

from __future__ import annotations

import importlib.util
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"
RESULT: dict[str, Any] = json.loads((DOCS / "pictures" / "convergence.json").read_text())


@pytest.fixture(scope="module")
def curves() -> Any:
    """The script that makes them."""
    found = importlib.util.spec_from_file_location("curves", DOCS / "generate" / "curves.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_of_the_result(curves: Any) -> None:
    page = (DOCS / "convergence.md").read_text()
    for table in curves.tables(RESULT).strip().split("\n\n"):
        assert table in page


def test_the_picture_is_that_of_the_result(curves: Any) -> None:
    text = (DOCS / "pictures" / "convergence.svg").read_text()
    assert text == curves.picture(RESULT)
    panels = ET.fromstring(text).findall("{http://www.w3.org/2000/svg}g")
    assert len(panels) == sum(len(RESULT[name]["strategies"]) for name in ("mnist", "shakespeare"))


def test_every_strategy_was_measured_and_none_strays_from_its_reference() -> None:
    from aggregator.strategies import STRATEGIES

    told = RESULT["mnist"]["strategies"]
    assert {name.partition(",")[0] for name in told} == set(STRATEGIES)
    for found in (*told.values(), *RESULT["shakespeare"]["strategies"].values()):
        for way in {"plain", "masked"} & set(found):
            assert found[way]["rounds_to"] == found["reference"]["rounds_to"]
            assert found[way]["largest_accuracy_difference_from_reference"] < 0.01


def test_a_way_that_needs_other_rounds_is_named(curves: Any) -> None:
    one = {
        "reference": {"rounds_to": {"0.7": 5}, "best_accuracy": 0.9, "last_accuracy": 0.8},
        "plain": {
            "rounds_to": {"0.7": None},
            "largest_accuracy_difference_from_reference": 0.3,
            "weights_apart_from_reference": 0.5,
        },
        "options": {},
    }
    row = curves._table({"targets": [0.7], "strategies": {"fedavg, unequal": one}}).splitlines()[-1]
    assert (
        row
        == "| `fedavg`, unequal | - | 5; in the clear never | 90.0 % | 80.0 % | 30 points, 5.0e-01 | refused |"
    )
