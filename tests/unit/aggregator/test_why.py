"""Stories of runs, rounds and clients from hand-made rows; every code, phase and event has a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aggregator import sentences, why
from aggregator.members import Loss, Phase, Stage
from aggregator.store import steps
from aggregator.why import Happening, Part, Pass, Whole
from fedless.protocol.errors import Code

T = 1_700_000_000_000


def pass_(phase: Phase = Phase.COMMITTED, **more: Any) -> Pass:
    parts = (
        Part(
            "fast",
            Stage.REPORTED,
            T + 500,
            T + 2_500,
            timings_ms={"run": 1500.0, "report": 300.0, "total": 2000.0},
        ),
        Part("slow", Stage.REPORTED, T + 900, T + 9_000, timings_ms={"download": 6000.0, "run": 2000.0}),
        Part("gone", Stage.LOST, T + 700, T + 12_000, Loss.NEVER_REPORTED),
        Part("asleep", Stage.LOST, 0, T + 12_000, Loss.NEVER_CHECKED_IN),
    )
    values: dict[str, Any] = {
        "round_id": 7, "number": 3, "phase": phase, "reason": "", "mode": "plain", "goal": 4, "minimum": 2,
        "opened_at_ms": T, "ended_at_ms": T + 12_300, "deadline_at_ms": T + 60_000,
        "phases_ms": {"aggregate": 100.0, "commit": 200.0}, "parts": parts,
    }  # fmt: skip
    return Pass(**values | more)


def happening(event: str, at: int, client: str = "", round_id: int = 7, **fields: Any) -> Happening:
    return Happening(T + at, event, round_id, client, fields)


GRACE = happening("grace_ended", 12_000, phase="committing")


def test_round_that_waited_names_whom_it_waited_for() -> None:
    story = why.of_round(pass_(), [GRACE], T)
    said = " ".join(story.lines)
    assert "12.3 s; 2 reports of 4 clients (4 wanted, 2 enough)." in said
    assert "It closed after 12.0 s, when the grace time was over; it had waited for asleep, gone." in said
    assert "the slowest: slow 9.0 s, fast 2.5 s" in said
    assert [(each.name, each.ms, each.on) for each in story.stretches] == [
        ("wake", 900, "slow"),
        ("train", 8100, "slow"),
        ("wait", 3000, "asleep, gone"),
        ("aggregate", 100.0, ""),
        ("commit", 200.0, ""),
    ]
    assert story.stretches[1].meaning == "download 6.0 s, run 2.0 s"
    assert sum(each.ms for each in story.stretches) == 12_300


def test_round_that_closed_with_its_last_report() -> None:
    closer = happening("report_arrived", 9_000, "slow", phase="committing")
    story = why.of_round(pass_(ended_at_ms=T + 9_300), [closer], T)
    assert "It closed after 9.0 s with the report of slow, the last that it needed." in story.lines
    assert "wait" not in [each.name for each in story.stretches]


def test_abandoned_round_says_why() -> None:
    reason = "too_few: 2 reports of at least 3 at the deadline"
    deadline = happening("deadline_passed", 60_000, phase="abandoned", reason=reason)
    story = why.of_round(pass_(Phase.ABANDONED, reason=reason, ended_at_ms=T + 60_000), [deadline], T)
    assert story.title == "Round 3 (plain): it ended without a model"
    assert f"Why: {reason}." in story.lines
    assert any("at its deadline; it had waited for asleep, gone." in line for line in story.lines)


@pytest.mark.parametrize(
    ("client", "says"),
    [
        ("fast", "It trained, and its report is counted."),
        ("gone", "It was dropped: It checked in, and its report was not there when the round closed"),
        ("asleep", "It was dropped: It was woken and never checked in"),
    ],
)
def test_client_of_the_cohort(client: str, says: str) -> None:
    story = why.of_client(client, pass_(), [GRACE], "", T)
    assert story.lines[0].startswith(says)


def test_client_that_was_refused_is_told_with_the_code_in_words() -> None:
    refused = happening("client_refused", 800, "gone", code=Code.WRONG_LENGTH.value)
    story = why.of_client("gone", pass_(), [refused], "", T)
    at, what, _ = story.timeline[0]
    assert at == 800
    assert what == f"It was refused: {Code.WRONG_LENGTH.sentence} (wrong_length)"


def test_client_that_was_lost_by_a_code() -> None:
    lost = replace(pass_().parts[2], loss=Code.DATA_MISSING.value)
    story = why.of_client("gone", pass_(parts=(lost,)), [], "", T)
    assert f"It was dropped: {Code.DATA_MISSING.sentence} (data_missing)" in story.lines


def test_skipped_clients_are_told_apart() -> None:
    considered = happening(
        "clients_considered", -10, round_id=0, number=3, eligible=9, resting=1, selection="uniform",
        who_rests={"tired": (T + 3_599_990, "battery 12 % is under 30 %")}, who_backs_off={"failing": 2},
    )  # fmt: skip
    other = replace(considered, fields={**considered.fields, "number": 2, "who_rests": {}})
    tired = why.of_client("tired", pass_(), [other, considered], "", T).lines[0]
    assert (
        tired
        == 'It was skipped: it had said "not before 60 min from then, because battery 12 % is under 30 %".'
    )
    failing = why.of_client("failing", pass_(), [other, considered], "", T).lines[0]
    assert "after failures it rests for 2 rounds more" in failing
    unlucky = why.of_client("unlucky", pass_(), [other, considered], "Now it is enrolled.", T).lines[0]
    assert (
        "4 of 9 eligible clients were drawn (uniform), and it was not among them. Now it is enrolled."
        in unlucky
    )


def test_open_round_says_what_it_waits_for() -> None:
    waiting = (Part("late", Stage.CHECKED_IN, T + 100),)
    story = why.of_client("late", pass_(Phase.COLLECTING, parts=waiting, ended_at_ms=0), [], "", T + 5_000)
    assert story.lines[0] == "So far: it checked in and has not announced a report."
    assert "from there it took 4.9 s" in story.lines[1]
    asleep = (Part("late", Stage.SELECTED),)
    story = why.of_client("late", pass_(Phase.COLLECTING, parts=asleep, ended_at_ms=0), [], "", T + 5_000)
    assert story.lines[1] == "It has until the deadline, in 55.0 s."


def test_run_sums_its_rounds_up() -> None:
    short = pass_(number=1, round_id=5, ended_at_ms=T + 4_000)
    bad = pass_(Phase.ABANDONED, number=2, round_id=6, reason="too_few: 1 report", ended_at_ms=T + 5_000)
    run = Whole("r-1", "failed", "too_few: nobody came", T, T + 30_000, [short, bad, pass_()])
    waits = happening("run_waits", 20, round_id=0, reason="waits for clients: 1 eligible")
    story = why.of_run(run, [waits, GRACE], T)
    said = " ".join(story.lines)
    assert story.title == "Run r-1 is failed: too_few: nobody came"
    assert "It took 30.0 s: 3 rounds of 21.3 s in all, 8.7 s between them." in said
    assert "Round 2 was abandoned: too_few: 1 report." in said
    assert "The longest round was 3: 12.3 s. It closed after 12.0 s" in said
    assert "Lost 3 times: gone. It checked in" in said
    assert [(each.name, each.ms) for each in story.stretches] == [("commit", 600.0), ("aggregate", 300.0)]
    assert story.timeline == [(20, "The run waited: waits for clients: 1 eligible.", "")]


def test_time_between_rounds_is_told_by_what_it_went_to() -> None:
    """Two set-ups side by side (5 and 9 s) and one alone (1 s) are 10 s; one that goes on counts up to now."""
    events = [
        happening("key_epoch_opened", 0, round_id=7),
        happening("key_epoch_opened", 2_000, round_id=8),
        happening("key_epoch_active", 5_000, round_id=7),
        happening("key_epoch_ended", 9_000, round_id=8, reason="too_few"),
        happening("key_epoch_ended", 10_000, round_id=7, reason="used_up"),
        happening("key_epoch_opened", 11_000, round_id=9),
        happening("key_epoch_active", 12_000, round_id=9),
    ]
    run = Whole("r-1", "finished", "", T, T + 40_000, [pass_()], judging_ms=7_500)
    (line,) = [each for each in why.of_run(run, events, T).lines if "between them" in each]
    assert line.endswith("between them (evaluations on devices 7.5 s, set-ups of key epochs 10.0 s).")
    opened = [*events, happening("key_epoch_opened", 13_000, round_id=10)]
    (line,) = [
        each for each in why.of_run(replace(run, ended_at_ms=0), opened, T + 16_000).lines if "them" in each
    ]
    assert "set-ups of key epochs 13.0 s" in line


def test_evenness_of_counted_reports_is_jains_index() -> None:
    """Counts 2, 2, 0: (4)^2 / (3 x 8) = 2/3."""
    parts = (Part("a", Stage.REPORTED, T, T), Part("b", Stage.REPORTED, T, T), Part("c", Stage.LOST))
    rounds = [pass_(number=number, round_id=number, parts=parts) for number in (1, 2)]
    run = Whole("r-1", "finished", "", T, T + 40_000, rounds)
    said = " ".join(why.of_run(run, [], T).lines)
    assert (
        "3 clients were asked, and each was counted 0 to 2 times (evenness 0.67 of 1, Jain's index)." in said
    )
    assert "Lost twice: c." in said


# -- sentences


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_has_a_sentence(phase: Phase) -> None:
    assert sentences.PHASES[phase]


@pytest.mark.parametrize("stage", Stage)
def test_every_stage_has_a_sentence(stage: Stage) -> None:
    assert sentences.STAGES[stage]


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_sentence_as_a_loss(code: Code) -> None:
    assert sentences.loss(code.value) == f"{code.sentence} ({code.value})"


@pytest.mark.parametrize("name", Loss)
def test_every_loss_has_a_sentence(name: Loss) -> None:
    assert sentences.loss(name.value) == sentences.LOSSES[name]


@pytest.mark.parametrize("event", steps.NAMES.values())
def test_every_event_of_a_round_has_a_sentence(event: str) -> None:
    said = sentences.said(event, {"clients": 3, "reason": Code.TOO_FEW.value, "code": Code.NOT_FINITE.value})
    assert said.endswith((".", ")"))
    assert "{" not in said


def test_unknown_event_is_told_by_its_name() -> None:
    assert sentences.said("moon_rose", {}) == "Moon rose."
    assert sentences.said("run_finished", {"reason": ""}) == "The run has finished."
