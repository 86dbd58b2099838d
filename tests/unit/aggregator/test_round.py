"""Each transition and each guard of the round's automaton."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from aggregator import events as e
from aggregator.members import Loss, Phase, Stage, Terms
from aggregator.round import Round
from fedless.protocol.errors import Code
from fedless.protocol.messages import Encoding, Kind, ReportHeader

OPENED = 1_000_000
TERMS = Terms(
    round_id=7,
    run_id="run",
    number=1,
    kind=Kind.TRAIN,
    model_version=0,
    goal=4,
    minimum=2,
    opened_at_ms=OPENED,
    deadline_at_ms=OPENED + 60_000,
    parameters=10,
    max_examples=100,
)
HEADER = ReportHeader(7, Encoding.FLOAT32, 40, b"d" * 32, 10, {"loss": 1.0, "correct": 5.0})
CLIENTS = ("a", "b", "c", "d")


def nonce(client_id: str) -> bytes:
    return client_id.encode() * 16


def opened(clients: tuple[str, ...] = CLIENTS, **changes: Any) -> Round:
    round_ = Round(replace(TERMS, **changes))
    round_.handle(e.CohortSelected({client_id: nonce(client_id) for client_id in clients}), OPENED)
    return round_


def report(round_: Round, *clients: str, at_ms: int = 1000) -> list[e.Effect]:
    """Whole passes of honest clients; the effects of the last arrival."""
    effects: list[e.Effect] = []
    for client_id in clients:
        now = OPENED + at_ms
        round_.handle(e.ClientCheckedIn(client_id, nonce(client_id)), now)
        round_.handle(e.ReportAnnounced(client_id, HEADER), now)
        effects = round_.handle(e.ReportArrived(client_id), now)
    return effects


def announced(round_: Round, client_id: str, **changes: Any) -> list[e.Effect]:
    round_.handle(e.ClientCheckedIn(client_id, nonce(client_id)), OPENED)
    return round_.handle(e.ReportAnnounced(client_id, replace(HEADER, **changes)), OPENED)


def code_of(effects: list[e.Effect]) -> Code | None:
    return next((effect.code for effect in effects if isinstance(effect, e.Refuse)), None)


# -- transitions


def test_opening_wakes_the_cohort_and_sets_the_deadline() -> None:
    round_ = Round(TERMS)
    effects = round_.handle(e.CohortSelected({"a": nonce("a"), "b": nonce("b")}), OPENED)
    assert effects == [e.Wake("a"), e.Wake("b"), e.SetTimer(OPENED + 60_000, e.DeadlinePassed())]
    assert round_.phase is Phase.COLLECTING


def test_a_cohort_below_the_minimum_is_abandoned_at_once() -> None:
    round_ = Round(TERMS)
    assert round_.handle(e.CohortSelected({"a": nonce("a")}), OPENED) == [e.Erase()]
    assert round_.phase is Phase.ABANDONED
    assert round_.state.reason == "too_few: 1 clients selected, at least 2 needed"


def test_check_in_is_admitted() -> None:
    round_ = opened()
    assert round_.handle(e.ClientCheckedIn("a", nonce("a")), OPENED + 5) == [e.Admit("a")]
    assert round_.state.members["a"].checked_in_at_ms == OPENED + 5


def test_all_reports_close_the_round() -> None:
    round_ = opened()
    effects = report(round_, *CLIENTS)
    assert effects == [e.AddReport("d", 10, 10), e.Confirm("d"), e.CommitModel()]
    assert round_.phase is Phase.COMMITTING


def test_the_goal_closes_an_over_selected_round() -> None:
    round_ = opened(goal=2)
    assert report(round_, "a", "b")[-1] == e.CommitModel()
    assert {m.client_id for m in round_.state.members.values() if m.loss == Loss.SURPLUS} == {"c", "d"}


def test_the_minimum_starts_the_grace_time() -> None:
    round_ = opened()
    report(round_, "a", at_ms=10_000)
    effects = report(round_, "b", at_ms=20_000)
    end = OPENED + 20_000 + 22_500  # 1.5 times the median of 10 and 20 s
    assert effects[-1] == e.SetTimer(end, e.GraceEnded())
    assert (round_.phase, round_.state.grace_until_ms) == (Phase.GRACE, end)


def test_the_grace_time_ends_at_the_deadline_at_the_latest() -> None:
    round_ = opened()
    report(round_, "a", "b", at_ms=50_000)
    assert round_.state.grace_until_ms == TERMS.deadline_at_ms


def test_the_grace_time_is_at_least_a_second() -> None:
    round_ = opened()
    report(round_, "a", "b", at_ms=10)
    assert round_.state.grace_until_ms == OPENED + 10 + 1000


@pytest.mark.parametrize("event", [e.GraceEnded(), e.DeadlinePassed()])
def test_the_end_of_the_grace_time_commits(event: e.Event) -> None:
    round_ = opened()
    report(round_, "a", "b")
    round_.handle(e.ClientCheckedIn("c", nonce("c")), OPENED)
    assert round_.handle(event, OPENED + 9000) == [e.CommitModel()]
    assert round_.state.members["c"].loss == Loss.NEVER_REPORTED
    assert round_.state.members["d"].loss == Loss.NEVER_CHECKED_IN


def test_too_few_reports_at_the_deadline_abandon() -> None:
    round_ = opened()
    report(round_, "a")
    assert round_.handle(e.DeadlinePassed(), TERMS.deadline_at_ms) == [e.Erase()]
    assert round_.phase is Phase.ABANDONED
    assert round_.state.reason == "too_few: 1 reports of at least 2 at the deadline"


def test_losing_too_many_abandons_before_the_deadline() -> None:
    round_ = opened()
    for client_id in ("a", "b"):
        assert round_.handle(e.ClientGaveUp(client_id, "data_missing"), OPENED) == []
    assert round_.handle(e.ClientGaveUp("c", "data_missing"), OPENED) == [e.Erase()]
    assert round_.phase is Phase.ABANDONED


def test_losing_the_last_outstanding_client_ends_the_grace_time() -> None:
    round_ = opened(("a", "b", "c"))
    report(round_, "a", "b")
    assert round_.handle(e.ClientGaveUp("c", "instance_memory"), OPENED) == [e.CommitModel()]


def test_the_last_outstanding_report_closes_the_round_below_its_goal() -> None:
    round_ = opened(("a", "b", "c"))
    round_.handle(e.ClientGaveUp("c", "data_missing"), OPENED)
    report(round_, "a")
    assert report(round_, "b")[-1] == e.CommitModel()


def test_a_client_that_gave_up_may_still_report() -> None:
    round_ = opened()
    round_.handle(e.ClientGaveUp("a", "aggregator_unreachable"), OPENED)
    assert report(round_, "a") == [e.AddReport("a", 10, 10), e.Confirm("a")]
    assert (round_.state.members["a"].stage, round_.state.members["a"].loss) == (Stage.REPORTED, "")


def test_giving_up_after_the_report_changes_nothing() -> None:
    round_ = opened()
    report(round_, "a")
    assert round_.handle(e.ClientGaveUp("a", "internal"), OPENED) == []
    assert round_.state.members["a"].stage is Stage.REPORTED


def test_commit_ends_and_erases() -> None:
    round_ = opened()
    report(round_, *CLIENTS)
    assert round_.handle(e.ModelCommitted(), OPENED) == [e.Erase()]
    assert round_.phase is Phase.COMMITTED


@pytest.mark.parametrize("reports", [0, 2, 4])
def test_stopping_abandons_in_every_phase(reports: int) -> None:
    round_ = opened()
    report(round_, *CLIENTS[:reports])
    assert round_.handle(e.RoundStopped("stopped by the operator"), OPENED) == [e.Erase()]
    assert (round_.phase, round_.state.reason) == (Phase.ABANDONED, "stopped by the operator")


def test_timers_that_come_late_change_nothing() -> None:
    round_ = opened()
    report(round_, *CLIENTS)
    for event in (e.GraceEnded(), e.DeadlinePassed()):
        assert round_.handle(event, OPENED + 10**6) == []
    assert round_.phase is Phase.COMMITTING


def test_after_a_restart_the_same_is_said_again() -> None:
    round_ = opened()
    round_.handle(e.ClientCheckedIn("a", nonce("a")), OPENED)
    timer = e.SetTimer(TERMS.deadline_at_ms, e.DeadlinePassed())
    assert round_.again() == [e.Wake("b"), e.Wake("c"), e.Wake("d"), timer]
    report(round_, "a", "b")
    assert round_.again()[-2:] == [timer, e.SetTimer(round_.state.grace_until_ms, e.GraceEnded())]
    report(round_, "c", "d")
    assert round_.again() == [e.CommitModel()]
    round_.handle(e.ModelCommitted(), OPENED)
    assert round_.again() == [e.Erase()]


# -- repeats


def test_repeated_check_in_gets_the_same_answer_and_changes_nothing() -> None:
    round_ = opened()
    first = round_.handle(e.ClientCheckedIn("a", nonce("a")), OPENED + 1)
    member = round_.state.members["a"]
    assert round_.handle(e.ClientCheckedIn("a", nonce("a")), OPENED + 2) == first
    assert round_.state.members["a"] == member


def test_repeated_announcement_gets_the_same_answer() -> None:
    round_ = opened()
    first = announced(round_, "a")
    assert first == [e.TakeUpload("a", HEADER)]
    round_.changed.clear()
    assert round_.handle(e.ReportAnnounced("a", HEADER), OPENED) == first
    assert round_.changed == set()


@pytest.mark.parametrize("ended", [False, True])
def test_report_twice_is_confirmed_and_counted_once(ended: bool) -> None:
    round_ = opened()
    report(round_, *(CLIENTS if ended else ("a",)))
    events = (e.ReportAnnounced("a", HEADER), e.UploadBegan("a"), e.ReportArrived("a"))
    for event in events:
        assert round_.handle(event, OPENED) == [e.Confirm("a")]


# -- refusals, by the attack


def test_check_in_of_a_client_outside_the_cohort_is_refused() -> None:
    assert code_of(opened().handle(e.ClientCheckedIn("x", nonce("x")), OPENED)) is Code.NOT_IN_COHORT


def test_report_under_a_name_outside_the_cohort_is_refused() -> None:
    round_ = opened()
    for event in (
        e.ReportAnnounced("x", HEADER),
        e.UploadBegan("x"),
        e.ReportArrived("x"),
        e.ReportSpoiled("x", Code.NOT_FINITE),
        e.ClientGaveUp("x", "internal"),
    ):
        assert code_of(round_.handle(event, OPENED)) is Code.NOT_IN_COHORT


def test_check_in_with_another_clients_nonce_is_refused() -> None:
    assert code_of(opened().handle(e.ClientCheckedIn("a", nonce("b")), OPENED)) is Code.TICKET_FOREIGN


def test_check_in_after_the_report_is_refused() -> None:
    round_ = opened()
    report(round_, "a")
    assert code_of(round_.handle(e.ClientCheckedIn("a", nonce("a")), OPENED)) is Code.ALREADY_REPORTED


def test_late_check_in_is_refused() -> None:
    round_ = opened(goal=2)
    report(round_, "a", "b")
    assert code_of(round_.handle(e.ClientCheckedIn("c", nonce("c")), OPENED)) is Code.ROUND_CLOSED


def test_late_report_is_refused() -> None:
    round_ = opened(goal=2)
    announced(round_, "c")
    report(round_, "a", "b")
    for event in (e.ReportAnnounced("c", HEADER), e.UploadBegan("c"), e.ReportArrived("c")):
        assert code_of(round_.handle(event, OPENED)) is Code.ROUND_CLOSED
    assert round_.state.reported == 2


def test_another_report_in_place_of_the_announced_one_is_refused() -> None:
    round_ = opened()
    announced(round_, "a")
    assert code_of(announced(round_, "a", sha256=b"e" * 32)) is Code.CONFLICTING_REPEAT
    assert code_of(announced(round_, "a", examples=11)) is Code.CONFLICTING_REPEAT


def test_report_without_check_in_is_refused() -> None:
    assert code_of(opened().handle(e.ReportAnnounced("a", HEADER), OPENED)) is Code.WRONG_STATE


def test_bytes_without_a_header_are_refused() -> None:
    round_ = opened()
    round_.handle(e.ClientCheckedIn("a", nonce("a")), OPENED)
    assert code_of(round_.handle(e.UploadBegan("a"), OPENED)) is Code.WRONG_STATE
    assert code_of(round_.handle(e.ReportArrived("a"), OPENED)) is Code.WRONG_STATE


@pytest.mark.parametrize("length", [0, 39, 41, 2**40])
def test_wrong_length_is_refused_before_the_first_byte(length: int) -> None:
    assert code_of(announced(opened(), "a", length_bytes=length)) is Code.WRONG_LENGTH


def test_wrong_encoding_is_refused() -> None:
    assert code_of(announced(opened(), "a", encoding=Encoding.RING32)) is Code.WRONG_ENCODING


@pytest.mark.parametrize("examples", [-1, 0, 101, 2**40])
def test_absurd_example_count_is_refused(examples: int) -> None:
    assert code_of(announced(opened(), "a", examples=examples)) is Code.EXAMPLE_COUNT


@pytest.mark.parametrize("sums", [{"correct": 11.0}, {"correct": -1.0}, {"loss": float("nan")}])
def test_impossible_sums_are_refused(sums: dict[str, float]) -> None:
    assert code_of(announced(opened(), "a", sums=sums)) is Code.OUT_OF_RANGE


@pytest.mark.parametrize("code", [Code.NOT_FINITE, Code.OUT_OF_RANGE])
def test_poisoned_bytes_are_dropped_and_stay_refused(code: Code) -> None:
    round_ = opened()
    announced(round_, "a")
    effects = round_.handle(e.ReportSpoiled("a", code), OPENED)
    assert effects[0] == e.DropUpload("a")
    assert code_of(effects) is code
    for event in (
        e.ClientCheckedIn("a", nonce("a")),
        e.ReportAnnounced("a", HEADER),
        e.UploadBegan("a"),
        e.ReportArrived("a"),
    ):
        assert code_of(round_.handle(event, OPENED)) is code
    assert round_.state.reported == 0


def test_poisoned_bytes_of_too_many_abandon() -> None:
    round_ = opened(("a", "b"))
    announced(round_, "a")
    assert round_.handle(e.ReportSpoiled("a", Code.NOT_FINITE), OPENED)[-1] == e.Erase()


def test_poisoned_bytes_of_the_last_one_end_the_grace_time() -> None:
    round_ = opened(("a", "b", "c"))
    report(round_, "a", "b")
    announced(round_, "c")
    assert round_.handle(e.ReportSpoiled("c", Code.NOT_FINITE), OPENED)[-1] == e.CommitModel()


def test_damaged_bytes_are_dropped_and_may_come_again() -> None:
    round_ = opened(("a", "b"))
    announced(round_, "a")
    effects = round_.handle(e.ReportSpoiled("a", Code.WRONG_DIGEST), OPENED)
    assert effects[0] == e.DropUpload("a")
    assert round_.phase is Phase.COLLECTING
    assert report(round_, "a")[0] == e.AddReport("a", 10, 10)


def test_a_spoiled_repeat_does_not_take_a_counted_report_away() -> None:
    round_ = opened()
    report(round_, "a")
    assert round_.handle(e.ReportSpoiled("a", Code.NOT_FINITE), OPENED) == []
    assert round_.state.members["a"].stage is Stage.REPORTED


def test_refusals_say_what_was_expected_and_what_was_found() -> None:
    [refusal] = announced(opened(), "a", length_bytes=44)
    assert isinstance(refusal, e.Refuse)
    assert refusal.detail == "Expected 40 bytes, found 44."


# -- evaluations


def test_an_evaluation_has_reports_without_bytes() -> None:
    round_ = opened(("a",), kind=Kind.EVALUATE, parameters=0, minimum=1)
    assert announced(round_, "a", length_bytes=0) == [e.TakeUpload("a", replace(HEADER, length_bytes=0))]
    assert round_.handle(e.ReportArrived("a"), OPENED)[-1] == e.CommitModel()


def test_an_evaluation_takes_no_update() -> None:
    round_ = opened(("a",), kind=Kind.EVALUATE, parameters=0, minimum=1)
    assert code_of(announced(round_, "a")) is Code.WRONG_LENGTH
