"""What must hold for the tables as a whole, and that their drawing is current."""

from __future__ import annotations

from pathlib import Path

from aggregator import drawing
from aggregator import events as e
from aggregator.members import ENDED, OPEN
from aggregator.round import REFUSALS, TABLE
from fedless.protocol.errors import Code

ROOT = Path(__file__).parents[3]


def test_every_client_event_has_refusals_in_every_phase() -> None:
    for event in (e.ClientCheckedIn, e.ReportAnnounced, e.UploadBegan, e.ReportArrived):
        assert Code.NOT_IN_COHORT in [code for _, code in REFUSALS[event]]
        assert Code.ROUND_CLOSED in [code for _, code in REFUSALS[event]]


def test_ended_phases_are_left_by_nothing() -> None:
    assert [row for row in TABLE if row.to and set(row.phases) & set(ENDED)] == []


def test_reports_are_counted_in_open_phases_only() -> None:
    assert {p for row in TABLE if row.action.__name__.startswith("count") for p in row.phases} == set(OPEN)


def test_the_drawing_is_current() -> None:
    text = (ROOT / "docs" / "rounds.md").read_text()
    assert drawing.renewed(text) == text, "run: python -m aggregator.drawing docs/rounds.md"
    assert "stateDiagram" in text
