"""The masked table of a round: the sum is opened before there is a model, and heads are refused without harm."""

from __future__ import annotations

import pytest

from aggregator import events as e
from aggregator.members import Loss, Phase, Stage, Terms
from aggregator.round import MASKED_TABLE, Round
from fedless.protocol.errors import Code
from fedless.protocol.messages import Encoding, Kind, Mode, ReportHeader

START, DEADLINE = 1_000, 100_000
CLIENTS = ("a", "b", "c")


def opened(minimum: int = 2) -> Round:
    terms = Terms(
        7, "run", 1, Kind.TRAIN, 0, 3, minimum, START, DEADLINE, 2, 100,
        mode=Mode.PAIRWISE, encoding=Encoding.RING32, extra_words=2,
    )  # fmt: skip
    round_ = Round(terms)
    round_.handle(e.CohortSelected({client: client.encode() * 16 for client in CLIENTS}), START)
    return round_


def header(client: str, **changes: object) -> ReportHeader:
    values = {"masked": client.encode(), **changes}
    return ReportHeader(7, Encoding.RING32, 16, client.encode() * 32, **values)  # type: ignore[arg-type]


def report(round_: Round, client: str, now: int = START + 10) -> list[e.Effect]:
    round_.handle(e.ClientCheckedIn(client, client.encode() * 16), now)
    round_.handle(e.ReportAnnounced(client, header(client)), now)
    return round_.handle(e.ReportArrived(client), now)


def test_all_reports_open_the_sum_and_commit_nothing() -> None:
    round_ = opened()
    for client in CLIENTS:
        effects = report(round_, client)
    assert effects[-1] == e.OpenSum()
    closed = round_.phase
    assert round_.handle(e.ModelCommitted(), START + 20) == [e.Erase()]
    assert (closed, round_.phase) == (Phase.UNMASKING, Phase.COMMITTED)


@pytest.mark.parametrize("event", [e.GraceEnded(), e.DeadlinePassed()])
def test_enough_reports_open_the_sum_when_the_time_is_over(event: e.Event) -> None:
    round_ = opened()
    report(round_, "a")
    report(round_, "b")
    assert round_.phase is Phase.GRACE
    assert round_.handle(event, DEADLINE) == [e.OpenSum()]
    assert round_.state.members["c"].loss == Loss.NEVER_CHECKED_IN


def test_too_few_reports_abandon_the_round_unopened() -> None:
    round_ = opened()
    report(round_, "a")
    assert round_.handle(e.DeadlinePassed(), DEADLINE) == [e.Erase()]
    assert round_.phase is Phase.ABANDONED
    assert round_.state.reason == "too_few: 1 reports of at least 2 at the deadline"


def test_late_report_while_the_sum_is_opened_is_refused() -> None:
    round_ = opened()
    report(round_, "a")
    report(round_, "b")
    round_.handle(e.GraceEnded(), START + 5_000)
    [refusal] = round_.handle(e.ReportAnnounced("c", header("c")), START + 6_000)
    assert isinstance(refusal, e.Refuse)
    assert refusal.code is Code.ROUND_CLOSED
    assert round_.state.reported == 2


def test_sum_that_cannot_be_opened_abandons_the_round() -> None:
    round_ = opened()
    for client in CLIENTS:
        report(round_, client)
    assert round_.handle(e.RoundStopped("bad_share: ..."), START + 20) == [e.Erase()]
    assert (round_.phase, round_.state.reason) == (Phase.ABANDONED, "bad_share: ...")
    assert round_.handle(e.ModelCommitted(), START + 30) == []


def test_after_a_restart_the_sum_is_opened_again() -> None:
    round_ = opened()
    for client in CLIENTS:
        report(round_, client)
    again = Round(round_.terms, round_.phase, round_.state.members.values())
    assert again.again() == [e.OpenSum()]


def test_refused_head_costs_nobody_anything() -> None:
    round_ = opened()
    report(round_, "a")
    [refusal] = round_.handle(e.HeadRefused("b", Code.BAD_SIGNATURE), START + 20)
    assert isinstance(refusal, e.Refuse)
    assert refusal.code is Code.BAD_SIGNATURE
    assert round_.state.members["b"].stage is Stage.SELECTED
    assert report(round_, "b")[0] == e.AddReport("b", 0, 0)


@pytest.mark.parametrize("telling", [{"examples": 10}, {"sums": {"loss": 1.0}}])
def test_count_or_sum_in_the_clear_is_refused(telling: dict[str, object]) -> None:
    round_ = opened()
    round_.handle(e.ClientCheckedIn("a", b"a" * 16), START)
    [refusal] = round_.handle(e.ReportAnnounced("a", header("a", **telling)), START)
    assert isinstance(refusal, e.Refuse)
    assert refusal.code is Code.MALFORMED


@pytest.mark.parametrize("length", [15, 17, 8, 0])
def test_report_of_another_length_is_refused(length: int) -> None:
    round_ = opened()
    round_.handle(e.ClientCheckedIn("a", b"a" * 16), START)
    wrong = ReportHeader(7, Encoding.RING32, length, bytes(32), masked=b"a")
    [refusal] = round_.handle(e.ReportAnnounced("a", wrong), START)
    assert isinstance(refusal, e.Refuse)
    assert refusal.code is Code.WRONG_LENGTH


def test_no_row_commits_without_opening() -> None:
    assert Phase.COMMITTING not in {row.to for row in MASKED_TABLE}
    assert [row.phases for row in MASKED_TABLE if row.to is Phase.COMMITTED] == [(Phase.UNMASKING,)]
