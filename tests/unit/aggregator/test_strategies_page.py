"""docs/strategies.md says what the code does: its tables are compared with it, cell by cell."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from aggregator import selection, strategies, tasks
from aggregator.selection import SELECTIONS
from aggregator.strategies import STRATEGIES
from fedless.protocol.errors import LocalError
from fedless.protocol.messages import Mode

PAGE = Path(__file__).parents[3] / "docs" / "strategies.md"
EXAMPLES = {
    "fedprox": "client = {proximal_mu = 0.1}\n",
    "krum": "strategy_options = {byzantine = 1}\n",
    "apodotiko": "strategy_options = {ratio = 0.5}\n",
    "norm-clipping": "strategy_options = {norm = 1.0}\n",
    "group-median": "secagg = {cohort_size = 8}\n",
    "group-trimmed-mean": "secagg = {cohort_size = 8}\n",
}


def rows(heading: str) -> dict[str, dict[str, str]]:
    """The table under a heading: its rows by their first cell."""
    section = PAGE.read_text().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in body}


def works(keys: str, mode: str) -> bool:
    text = f'name = "a"\nfunction = "a"\nrounds = 1\nmode = "{mode}"\n{keys}[cohort]\nsize = 30\n'
    try:
        tasks.parse(text)
    except LocalError as refusal:
        if not any(
            why in refusal.detail
            for why in ("single updates, which masks hide", "the means of cohorts", "round that is closed")
        ):
            raise
        return False
    return True


def options(name: str) -> str:
    told = [
        f"`{field.name}`" if field.default is MISSING else f"`{field.name}` {field.default:g}"
        for field in fields(STRATEGIES[name])
    ]
    return ", ".join(told) or "none"


def test_every_strategy_and_every_selection_has_its_row() -> None:
    assert list(rows("Strategies")) == list(STRATEGIES)
    assert list(rows("Selections")) == list(SELECTIONS)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategys_row_is_true(name: str) -> None:
    row = rows("Strategies")[name]
    assert row["options"] == options(name)
    for mode in Mode:
        answer = works(f'strategy = "{name}"\n{EXAMPLES.get(name, "")}', mode.value)
        assert row[mode.value] == ("yes" if answer else "no")


@pytest.mark.parametrize("package", [strategies, selection])
def test_the_sources_are_those_that_the_code_cites(package: object) -> None:
    """Authors and year of each row are in the docstrings of the room."""
    folder = Path(str(package.__file__)).parent  # type: ignore[attr-defined]
    cited = " ".join(" ".join(path.read_text().split()) for path in sorted(folder.glob("*.py")))
    table = rows("Strategies" if package is strategies else "Selections")
    for row in table.values():
        authors, _, year = row["source"].rpartition(" ")
        assert authors in cited
        assert year in cited
