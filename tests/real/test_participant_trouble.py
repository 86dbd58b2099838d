"""Trouble that a participant meets: a network that breaks, an aggregator that is away, a full disk, a wrong clock."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.status import collect, lines
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Kind, Mode
from tests.edge_device import CLIENT, counters, wake
from tests.edge_fleet import PARAMETERS, FakeAggregator, Fleet, now_ms, wake_bytes

pytestmark = pytest.mark.real


# -- the network


def test_download_that_breaks_off_is_resumed(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    seen: list[str] = []

    def before(call: str) -> None:
        seen.append(call)
        if call == "chunk 4" and seen.count(call) == 1:
            raise PeerError(Code.BUSY)

    aggregator.before = before
    wake(state, wake_bytes(ticket))
    assert here.accepted == 1
    assert seen.count("chunk 4") == 2
    assert seen.count("chunk 1") == 1, "the second attempt went on from where the first one ended"


def test_upload_that_breaks_off_is_resumed(fleet: Fleet, aggregator: FakeAggregator, state: Path) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    seen: list[str] = []

    def before(call: str) -> None:
        seen.append(call)
        if call == "first_chunk" and seen.count(call) == 1:
            raise PeerError(Code.BUSY)

    aggregator.before = before
    wake(state, wake_bytes(ticket))
    assert here.accepted == 1
    assert seen.count("begin_report") == 2


def test_report_is_kept_while_the_aggregator_is_away_and_delivered_later(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.invocation.BUDGET_S", 1.0)
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    port = aggregator.port

    def vanish(call: str) -> None:
        if call == "begin_report":
            raise PeerError(Code.AGGREGATOR_UNREACHABLE)

    aggregator.before = vanish
    said: list[str] = []
    monkeypatch.setattr("edge_runtime.participant.write_line", said.append)
    assert wake(state, wake_bytes(ticket)) == 0
    assert said[0] == "accepted"
    assert said[1].startswith("retry ")
    assert here.accepted == 0
    assert collect(state)["outbox"] == {"reports": 1, "bytes": 4 * PARAMETERS}
    aggregator.stop()
    assert wake(state, b"") == 0
    assert here.accepted == 0
    aggregator.before = lambda _: None
    aggregator.start(port)
    assert wake(state, b"") == 0
    assert here.accepted == 1
    assert counters(state) == {"reported": 1}
    assert aggregator.calls.count("check_in") == 1, "the report was delivered, the round was not run again"


def test_late_report_is_refused_by_name_and_removed(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)

    def close(call: str) -> None:
        if call == "begin_report":
            here.refusal = PeerError(Code.ROUND_CLOSED)

    aggregator.before = close
    wake(state, wake_bytes(ticket))
    assert counters(state) == {"round_closed": 1}
    assert list((state / "outbox").iterdir()) == []


@pytest.mark.long
def test_aggregator_that_is_away_leaves_the_round_open(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.invocation.BUDGET_S", 0.5)
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    port = aggregator.port
    aggregator.stop()
    assert wake(state, wake_bytes(ticket)) == 0
    assert counters(state) == {}
    aggregator.start(port)
    assert wake(state, b"") == 0
    assert here.accepted == 1


def test_missing_data_is_an_outcome_with_a_name(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    (state / "examples.npz").unlink()
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert counters(state) == {"data_missing": 1}
    assert aggregator.metrics[0].outcome == "data_missing"


def test_a_key_epoch_that_the_owner_does_not_allow_is_told_with_its_reason(
    fleet: Fleet, aggregator: FakeAggregator, state: Path
) -> None:
    """Else the aggregator would wait for keys that nobody sends, and say nothing but "too few"."""
    task = fleet.task(mode=Mode.PAIRWISE)
    ticket = fleet.ticket(CLIENT, 1, task, kind=Kind.EPOCH)
    assert wake(state, wake_bytes(ticket)) == 0
    (metrics,) = aggregator.metrics
    assert (metrics.round_id, metrics.outcome) == (1, Code.POLICY.value)


def test_two_participants_do_not_work_on_one_state(state: Path) -> None:
    from edge_runtime.alone import alone
    from edge_runtime.reply import BUSY_EXIT

    with alone(state):
        assert wake(state, b"") == BUSY_EXIT
    assert wake(state, b"") == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mount.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_is_an_outcome_with_a_name_and_nothing_is_lost(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, small_disk: Path
) -> None:
    """The disk is full for the outbox; with room again, the next round is reported."""
    shutil.rmtree(state / "outbox", ignore_errors=True)
    (state / "outbox").symlink_to(small_disk)
    (small_disk / "outgrown").write_bytes(b"x" * 900_000)
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert counters(state) == {"disk_full": 1}
    assert aggregator.metrics[0].outcome == "disk_full"
    for path in small_disk.iterdir():
        path.unlink()
    ticket = fleet.ticket(CLIENT, 2, task)
    here = aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert here.accepted == 1


def test_download_to_a_full_disk_is_an_outcome_with_a_name(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, small_disk: Path
) -> None:
    (state / "cache").symlink_to(small_disk)
    (small_disk / "outgrown").write_bytes(b"x" * 900_000)
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert counters(state) == {"disk_full": 1}


def test_wake_up_that_finds_a_corrupt_journal_is_not_accepted(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (state / "journal.db").write_bytes(b"no database" * 1000)
    assert wake(state, wake_bytes(fleet.ticket(CLIENT, 1, fleet.task()))) == 1
    said = capfd.readouterr()
    assert "accepted" not in said.out
    assert "state_corrupt" in said.err
    assert "journal.db-wal" in said.err


def test_clock_behind_by_years_still_takes_part(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.clock.unix_ms", lambda: 1_000_000)
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    here = aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert here.accepted == 1


def test_clock_ahead_by_a_year_refuses_and_says_why(
    fleet: Fleet, aggregator: FakeAggregator, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_runtime.clock.unix_ms", lambda: now_ms() + 366 * 86_400_000)
    task = fleet.task()
    ticket = fleet.ticket(CLIENT, 1, task)
    aggregator.open(ticket, task)
    assert wake(state, wake_bytes(ticket)) == 0
    assert counters(state) == {"ticket_expired": 1, "certificate_expired": 1}
    shown = "\n".join(lines(collect(state)))
    assert "set the clock" in shown
