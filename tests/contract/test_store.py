"""The store's contract, for every database that it supports: add a URL to `DATABASES` and all of this must hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from aggregator import events as e
from aggregator.members import Phase, Stage, Terms
from aggregator.round import Round
from aggregator.store import history, rounds, runs, steps
from aggregator.store.engine import Database
from aggregator.store.records import ModelRecord, RunRecord, RunState
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Encoding, InvocationMetrics, Kind, Mode, ReportHeader

DATABASES: dict[str, Callable[[pytest.FixtureRequest, Path], str]] = {
    "sqlite": lambda _request, folder: f"sqlite:///{folder / 'fedless.db'}",
    "postgresql": lambda request, _folder: str(request.getfixturevalue("postgresql").url()),
}
NOW = 1_700_000_000_000
RUN = RunRecord("run-1", "settings", b"task", b"b" * 32, b"", RunState.RUNNING)


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return DATABASES[request.param](request, tmp_path)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database.open(url)
    opened.run_now(begin)
    yield opened
    opened.close()


def begin(connection: Connection) -> None:
    runs.insert_run(connection, RUN, "a-task", 3, NOW)
    runs.insert_model(connection, "run-1", ModelRecord(0, b"m" * 32, 0), NOW)


def terms(round_id: int = 7, number: int = 1, kind: Kind = Kind.TRAIN) -> Terms:
    return Terms(round_id, "run-1", number, kind, 0, 2, 1, NOW, NOW + 60_000, 4, 100)


def open_round(connection: Connection, round_id: int = 7, number: int = 1, kind: Kind = Kind.TRAIN) -> Round:
    round_ = Round(terms(round_id, number, kind))
    event = e.CohortSelected({"a": b"a" * 16, "b": b"b" * 16})
    round_.handle(event, NOW)
    steps.open_round(connection, round_, event, NOW)
    round_.changed.clear()
    return round_


def take(connection: Connection, round_: Round, *happened: e.Event) -> None:
    for event in happened:
        effects = round_.handle(event, NOW + 1000)
        steps.change_round(connection, round_, event, effects, NOW + 1000)
        round_.changed.clear()


def report(connection: Connection, round_: Round, client_id: str) -> None:
    header = ReportHeader(round_.terms.round_id, Encoding.FLOAT32, 16, b"d" * 32, 10, {"loss": 2.5})
    checked_in = e.ClientCheckedIn(client_id, client_id.encode() * 16)
    take(connection, round_, checked_in, e.ReportAnnounced(client_id, header), e.ReportArrived(client_id))


# -- rounds


def test_same_model_summed_twice_is_noticed_before_a_run_starts(database: Database) -> None:
    """Devices report on a model once: a second masked run from the same weights would only abandon its rounds."""

    def commit(mode: Mode) -> str:
        def work(connection: Connection) -> str:
            round_ = Round(replace(terms(rounds.next_id(connection, NOW)), mode=mode))
            opened = e.CohortSelected({"a": b"a" * 16, "b": b"b" * 16})
            round_.handle(opened, NOW)
            steps.open_round(connection, round_, opened, NOW)
            round_.state.phase = Phase.COMMITTED
            rounds.save_state(connection, round_, NOW)
            return rounds.masked_on(connection, b"m" * 32)

        return database.run_now(work)

    assert commit(Mode.PLAIN) == ""
    assert commit(Mode.PAIRWISE) == "run-1"
    assert database.run_now(lambda c: rounds.masked_on(c, b"n" * 32)) == ""


def test_a_round_comes_back_as_it_was_saved(database: Database) -> None:
    def work(connection: Connection) -> tuple[Round, Round]:
        round_ = open_round(connection)
        report(connection, round_, "a")
        return round_, rounds.load(connection, 7)

    saved, loaded = database.run_now(work)
    assert loaded.terms == saved.terms
    assert (loaded.phase, loaded.state.grace_until_ms) == (Phase.GRACE, saved.state.grace_until_ms)
    assert dict(loaded.state.members) == dict(saved.state.members)
    assert (loaded.state.reported, loaded.state.outstanding) == (1, 1)


def test_a_round_survives_closing_the_database(database: Database, url: str) -> None:
    database.run_now(open_round)
    database.close()
    again = Database.open(url)
    assert again.run_now(lambda c: rounds.load(c, 7)).state.members["a"].stage is Stage.SELECTED
    again.close()


def test_unknown_round_is_refused(database: Database) -> None:
    with pytest.raises(PeerError) as refusal:
        database.run_now(lambda c: rounds.load(c, 99))
    assert refusal.value.code is Code.UNKNOWN_ROUND


def test_round_ids_rise_and_are_never_used_again(database: Database) -> None:
    assert database.run_now(lambda c: rounds.next_id(c, NOW)) == NOW // 1000
    database.run_now(lambda c: open_round(c, NOW // 1000 + 500))
    assert database.run_now(lambda c: rounds.next_id(c, NOW)) == NOW // 1000 + 501
    assert database.run_now(lambda c: rounds.next_id(c, NOW + 10**6)) == NOW // 1000 + 1000, (
        "an older back-up gives ids above those that were given after it"
    )


def test_training_rounds_are_numbered_without_evaluations(database: Database) -> None:
    database.run_now(lambda c: open_round(c, 7, 1))
    database.run_now(lambda c: open_round(c, 8, 1, Kind.EVALUATE))
    assert database.run_now(lambda c: rounds.next_number(c, "run-1")) == 2
    assert database.run_now(lambda c: rounds.training_round(c, "run-1", 1)) == 7
    assert database.run_now(rounds.unended) == [7, 8]
    assert [line.round_id for line in database.run_now(lambda c: rounds.last(c, "run-1", 5))] == [7]


def test_rounds_of_ended_runs_are_orphans(database: Database) -> None:
    database.run_now(open_round)
    assert database.run_now(rounds.orphans) == []
    database.run_now(lambda c: runs.set_state(c, "run-1", RunState.STOPPED, "", NOW))
    assert database.run_now(rounds.orphans) == [7]


def test_figures_add_up(database: Database) -> None:
    database.run_now(open_round)
    database.run_now(lambda c: rounds.add_figures(c, 7, {"test_loss": 1.0}, {"wake": 5.0}))
    database.run_now(lambda c: rounds.add_figures(c, 7, phases_ms={"commit": 2.0}))
    info = database.run_now(lambda c: runs.show(c, "run-1")).rounds[0]
    assert (info.metrics, info.phases_ms) == ({"test_loss": 1.0}, {"wake": 5.0, "commit": 2.0})


def test_invocations_are_kept_for_members_only(database: Database) -> None:
    database.run_now(open_round)
    value = InvocationMetrics(7, "warm", {"total": 1.5}, 10, 20, 1.0, 2.0, 3.0, "reported")
    assert database.run_now(lambda c: rounds.save_invocation(c, "a", value))
    assert not database.run_now(lambda c: rounds.save_invocation(c, "stranger", value))
    info = database.run_now(lambda c: runs.show(c, "run-1")).rounds[0]
    assert (info.bytes_down, info.bytes_up) == (10, 20)
    [kept] = database.run_now(lambda c: runs.invocations(c, "run-1"))
    assert (kept.client_id, kept.values["start"]) == ("a", "warm")


# -- runs and models


def test_a_model_version_is_written_once(database: Database) -> None:
    model = ModelRecord(1, b"n" * 32, 7)
    database.run_now(lambda c: runs.insert_model(c, "run-1", model, NOW))
    assert database.run_now(lambda c: runs.newest_model(c, "run-1")) == model
    assert database.run_now(lambda c: runs.model(c, "run-1", 0)).digest == b"m" * 32
    with pytest.raises(IntegrityError):
        database.run_now(lambda c: runs.insert_model(c, "run-1", ModelRecord(1, b"o" * 32, 8), NOW))
    assert database.run_now(lambda c: runs.newest_model(c, "run-1")) == model


def test_a_run_is_shown_with_its_rounds(database: Database) -> None:
    def work(connection: Connection) -> None:
        round_ = open_round(connection)
        report(connection, round_, "a")
        take(connection, round_, e.GraceEnded())

    database.run_now(work)
    info = database.run_now(lambda c: runs.show(c, "run-1"))
    [only] = info.rounds
    assert (info.state, info.rounds_wanted, info.model_digest) == ("running", 3, b"m" * 32)
    assert (only.state, only.selected, only.checked_in, only.reported, only.examples) == (
        "committing",
        2,
        1,
        1,
        10,
    )
    assert only.losses == {"never_checked_in": 1}
    assert only.dropouts == 0
    assert database.run_now(runs.all_runs) == [info]


def test_run_states(database: Database) -> None:
    assert database.run_now(runs.going_on) == ["run-1"]
    database.run_now(lambda c: runs.set_state(c, "run-1", RunState.PAUSED, "", NOW + 5))
    assert database.run_now(runs.going_on) == ["run-1"]
    assert database.run_now(lambda c: runs.show(c, "run-1")).ended_at_ms == 0
    database.run_now(lambda c: runs.set_state(c, "run-1", RunState.FAILED, "too few", NOW + 5))
    assert database.run_now(runs.going_on) == []
    info = database.run_now(lambda c: runs.show(c, "run-1"))
    assert (info.state, info.reason, info.ended_at_ms) == (RunState.FAILED, "too few", NOW + 5)


def test_unknown_run_is_refused(database: Database) -> None:
    for read in (runs.show, runs.load):
        with pytest.raises(PeerError) as refusal:
            database.run_now(lambda c, read=read: read(c, "absent"))  # type: ignore[misc]
        assert refusal.value.code is Code.UNKNOWN_RUN


# -- history


def test_events_are_numbered_without_gaps_and_read_in_pages(database: Database) -> None:
    def fill(connection: Connection) -> None:
        for number in range(history.PAGE + 3):
            history.note(connection, "run-1", "happened", NOW, round_id=7, client_id="a", number=number)

    database.run_now(fill)
    first = database.run_now(lambda c: history.read(c, "run-1", 0))
    rest = database.run_now(lambda c: history.read(c, "run-1", history.PAGE))
    assert [event.sequence for event in first + rest] == list(range(1, history.PAGE + 4))
    assert (first[4].fields, first[4].client_id, first[4].round_id) == ({"number": 4}, "a", 7)


def test_a_step_that_fails_leaves_no_event(database: Database) -> None:
    def broken(connection: Connection) -> None:
        history.note(connection, "run-1", "happened", NOW)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        database.run_now(broken)
    assert database.run_now(lambda c: history.read(c, "run-1", 0)) == []


def test_counters_count_by_client_and_name(database: Database) -> None:
    def work(connection: Connection) -> None:
        for client_id, name in (("a", "reports"), ("a", "reports"), ("a", "not_finite"), ("b", "reports")):
            history.count(connection, client_id, name, NOW)

    database.run_now(work)
    assert database.run_now(history.counts) == {"a": {"reports": 2, "not_finite": 1}, "b": {"reports": 1}}
