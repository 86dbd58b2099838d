"""Late reports in the pure automaton: who goes over to the next round, as what, and what a report weighs there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from aggregator import events as e
from aggregator.late import leave_behind, taken_over, ticket_terms
from aggregator.members import Loss, Member, Origin, Phase, Stage, Terms
from aggregator.round import Round
from aggregator.staleness import Late, Weighing, factor
from aggregator.strategies import make
from aggregator.tasks import CohortSettings
from aggregator.wanted import Wanted, wanted
from fedless.protocol.errors import Code
from fedless.protocol.messages import Encoding, Kind, ReportHeader

OPENED, LENGTH_MS = 1_000_000, 60_000
SCAN = Late(2, Weighing.SHARE, counts=False, renormalised=True)
BUFF = Late(20, Weighing.ROOT, counts=True, renormalised=False)
HEADER = ReportHeader(7, Encoding.FLOAT32, 40, b"d" * 32, 10, {})


def terms(late: Late | None, version: int = 0, **changes: Any) -> Terms:
    return replace(
        Terms(
            round_id=7 + version,
            run_id="run",
            number=1 + version,
            kind=Kind.TRAIN,
            model_version=version,
            goal=4,
            minimum=2,
            opened_at_ms=OPENED,
            deadline_at_ms=OPENED + LENGTH_MS,
            parameters=10,
            max_examples=100,
            late=late,
        ),
        **changes,
    )


def nonce(client_id: str) -> bytes:
    return client_id.encode() * 16


def opened(terms_: Terms, clients: str, late: Mapping[str, Member] | None = None) -> Round:
    round_ = Round(terms_)
    round_.handle(e.CohortSelected({c: nonce(c) for c in clients}, late or {}), OPENED)
    return round_


def report(round_: Round, client_id: str, now: int = OPENED + 1000) -> list[e.Effect]:
    member = round_.state.members[client_id]
    header = replace(HEADER, round_id=ticket_terms(round_.terms, member).round_id)
    round_.handle(e.ClientCheckedIn(client_id, nonce(client_id)), now)
    round_.handle(e.ReportAnnounced(client_id, header), now)
    return round_.handle(e.ReportArrived(client_id), now)


def closed_with(late: Late, reporters: str, others: str) -> Round:
    round_ = opened(terms(late, goal=len(reporters)), reporters + others)
    for client_id in reporters:
        report(round_, client_id)
    assert round_.phase is Phase.COMMITTING
    return round_


# -- weights


def test_weights_are_the_papers() -> None:
    """1/sqrt(1+s) of Nguyen et al. and of Chadha et al.; (t_k+1)/(t+1) of Elzohairy et al."""
    assert [factor(BUFF, 5, base) for base in (5, 4, 2)] == [1.0, 1 / math.sqrt(2), 0.5]
    assert [factor(SCAN, 3, base) for base in (3, 2, 1)] == [1.0, 0.75, 0.5]


@pytest.mark.parametrize(("late", "counts"), [(BUFF, 10.0), (replace(BUFF, renormalised=True), 5.0)])
def test_a_late_report_weighs_its_examples_times_the_factor(late: Late, counts: float) -> None:
    """Three versions behind: a half of its 10 examples; not renormalised, it still counts as 10 in the mean."""
    came = Member("x", nonce("x"), origin=Origin(1, 0, OPENED + 1))
    round_ = opened(terms(late, version=3), "ab", {"x": came})
    assert report(round_, "x")[0] == e.AddReport("x", 5.0, counts)
    assert report(round_, "a")[0] == e.AddReport("a", 10, 10)


# -- going over


def test_who_is_still_at_work_goes_over_and_the_rest_is_as_before() -> None:
    round_ = closed_with(SCAN, "ab", "cd")
    assert round_.state.members["c"].stage is Stage.LATE
    over = taken_over(round_.state, terms(SCAN, 1), OPENED + 2000)
    assert set(over) == {"c", "d"}
    assert over["c"].origin == Origin(7, 0, OPENED + 3 * LENGTH_MS)
    assert (over["c"].stage, over["c"].settled_at_ms) == (Stage.SELECTED, 0)


def test_an_announced_report_stays_the_only_one() -> None:
    round_ = opened(terms(BUFF, goal=1), "ab")
    round_.handle(e.ClientCheckedIn("b", nonce("b")), OPENED)
    round_.handle(e.ReportAnnounced("b", HEADER), OPENED)
    report(round_, "a")
    over = taken_over(round_.state, terms(BUFF, 1), OPENED + 2000)
    later = opened(terms(BUFF, 1), "a", over)
    assert later.state.members["b"].stage is Stage.ANNOUNCED
    other = replace(HEADER, sha256=b"e" * 32)
    (refused,) = later.handle(e.ReportAnnounced("b", other), OPENED)
    assert isinstance(refused, e.Refuse)
    assert refused.code is Code.CONFLICTING_REPEAT


@pytest.mark.parametrize(("version", "now"), [(3, OPENED), (1, OPENED + 3 * LENGTH_MS)])
def test_a_model_too_old_or_a_ticket_that_ended_is_too_late(version: int, now: int) -> None:
    round_ = closed_with(SCAN, "ab", "c")
    over = taken_over(round_.state, terms(SCAN, version), now)
    assert over == {}
    (lost,) = leave_behind(round_.state, over, now)
    assert (lost.client_id, lost.stage, lost.loss) == ("c", Stage.LOST, Loss.TOO_LATE)


def test_between_two_rounds_a_late_client_shall_come_again() -> None:
    round_ = closed_with(SCAN, "ab", "c")
    for event in (e.ClientCheckedIn("c", nonce("c")), e.ReportAnnounced("c", HEADER)):
        (refused,) = round_.handle(event, OPENED + 3000)
        assert isinstance(refused, e.Refuse)
        assert refused.code is Code.BUSY


def test_a_run_without_late_reports_loses_them_as_ever() -> None:
    round_ = opened(terms(None, goal=2), "abc")
    report(round_, "a")
    report(round_, "b")
    assert round_.state.members["c"].loss == Loss.SURPLUS
    assert round_.terms.until_ms == OPENED + LENGTH_MS


def test_a_stopped_round_has_no_late_clients() -> None:
    round_ = opened(terms(BUFF), "ab")
    round_.handle(e.RoundStopped("stopped by the operator"), OPENED)
    assert {member.stage for member in round_.state.members.values()} == {Stage.LOST}


# -- closing


def test_late_reports_count_towards_the_goal_of_an_asynchronous_round() -> None:
    over = taken_over(closed_with(BUFF, "ab", "cd").state, terms(BUFF, 1), OPENED)
    round_ = opened(terms(BUFF, 1, goal=2), "ab", over)
    report(round_, "c")
    assert round_.phase is Phase.GRACE or round_.phase is Phase.COLLECTING
    assert report(round_, "a")[-1] == e.CommitModel()


def test_late_reports_beside_a_round_neither_close_it_nor_keep_it_open() -> None:
    over = taken_over(closed_with(SCAN, "ab", "cd").state, terms(SCAN, 1), OPENED)
    round_ = opened(terms(SCAN, 1, goal=2), "ab", over)
    assert report(round_, "c")[0] == e.AddReport("c", 5.0, 5.0)
    assert (round_.phase, round_.state.reported, round_.state.outstanding) == (Phase.COLLECTING, 0, 2)
    report(round_, "a")
    assert report(round_, "b")[-1] == e.CommitModel(), "although d is still at work"
    assert round_.state.members["d"].stage is Stage.LATE


def test_an_asynchronous_round_may_open_with_late_clients_only() -> None:
    over = taken_over(closed_with(BUFF, "ab", "cd").state, terms(BUFF, 1), OPENED)
    assert opened(terms(BUFF, 1), "", over).phase is Phase.COLLECTING
    assert opened(terms(BUFF, 1, minimum=3), "", over).phase is Phase.ABANDONED


# -- how many are wanted


def test_fedbuff_fills_the_cohort_up_and_waits_for_its_buffer() -> None:
    cohort, strategy = CohortSettings(size=16), make("fedbuff", {"buffer": 4})
    assert wanted(cohort, strategy, 20, 0) == Wanted(goal=4, minimum=4, wake=16, at_hand=4)
    assert wanted(cohort, strategy, 8, 12) == Wanted(goal=4, minimum=4, wake=4, at_hand=0)


def test_apodotiko_asks_a_whole_cohort_and_waits_for_its_share() -> None:
    cohort, strategy = CohortSettings(size=10), make("apodotiko", {"ratio": 0.3})
    assert wanted(cohort, strategy, 20, 7) == Wanted(goal=3, minimum=3, wake=10, at_hand=0)


def test_a_round_that_is_not_asynchronous_wants_what_it_always_did() -> None:
    cohort = CohortSettings(size=10)
    for name in ("fedavg", "fedlesscan"):
        assert wanted(cohort, make(name, {}), 20, 3) == Wanted(10, 8, 13, 8)
