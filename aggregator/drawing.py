"""Draws the round's automaton from its own tables: `python -m aggregator.drawing docs/rounds.md` renews the drawing.

A test compares the file with what this makes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from aggregator.members import Phase
from aggregator.round import MASKED_TABLE, REFUSALS, TABLE, Transition

BEGIN, END = "<!-- drawn from aggregator/round.py: begin -->", "<!-- end -->"
_BLOCK = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)


def drawing() -> str:
    """The drawing between its marks, as Markdown."""
    masked = ["### Masked rounds", "", *_diagram(MASKED_TABLE), "", *_transitions(MASKED_TABLE)]
    plain = ["### Plain rounds", "", *_diagram(TABLE), "", *_transitions(TABLE)]
    return "\n".join([BEGIN, *plain, "", *masked, "", "### Refusals", "", *_refusals(), END])


def renewed(text: str) -> str:
    """A text with its drawing renewed; the marks must be in it."""
    return _BLOCK.sub(lambda _: drawing(), text)


def _diagram(table: tuple[Transition, ...]) -> Iterable[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {Phase.OPENING.value}"
    for row in table:
        for phase in row.phases if row.to else ():
            yield f"    {phase.value} --> {row.to.value}: {_when(row)}" if row.to else ""
    for phase in (Phase.COMMITTED, Phase.ABANDONED):
        yield f"    {phase.value} --> [*]"
    yield "```"


def _transitions(table: tuple[Transition, ...]) -> Iterable[str]:
    yield "| in | event | if | do | then |"
    yield "|---|---|---|---|---|"
    for row in table:
        phases = "any" if len(row.phases) == len(Phase) else ", ".join(phase.value for phase in row.phases)
        cells = (phases, row.event.__name__, _words(row.guard), _words(row.action), row.to or "stay")
        yield f"| {' | '.join(cells)} |"


def _refusals() -> Iterable[str]:
    yield "| event | refused if | code |"
    yield "|---|---|---|"
    for event, rules in REFUSALS.items():
        for guard, code in rules:
            yield f"| {event.__name__} | {_words(guard)} | `{code.value}` |"


def _when(row: Transition) -> str:
    guard = _words(row.guard)
    return row.event.__name__ if guard == "always" else f"{row.event.__name__} [{guard}]"


def _words(function: object) -> str:
    return str(getattr(function, "__name__", "")).replace("_", " ")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text()))
