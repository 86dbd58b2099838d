"""Small parts of the edge runtime: files, the log line, the rate limit, retries, the clock, the outbox's bound."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edge_runtime import clock
from edge_runtime.disk import write_whole
from edge_runtime.journal import Journal
from edge_runtime.link import may_pass, patiently
from edge_runtime.log import say
from edge_runtime.outbox import Outbox
from edge_runtime.wake import Allowance, FleetFile, jitter
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Encoding, Kind, ReportHeader, Ticket
from tests.edge_fleet import Fleet


def test_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one")
    (tmp_path / "file.new").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(path, b"two")
    assert path.read_bytes() == b"one"


def test_line_of_the_log_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    say("agent", "lost", why='broken "pipe"\nagain', round=3, nothing="", share=0.25)
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith("at=")
    assert "who=agent event=lost why=\"broken 'pipe' again\" round=3 share=0.2" in line
    assert "nothing" not in line


def test_starts_are_allowed_at_the_rate() -> None:
    allowance = Allowance(6, now=0.0)
    for _ in range(6):
        assert allowance.wait_s(0.0) == 0
        allowance.take()
    assert allowance.wait_s(0.0) == pytest.approx(10)
    assert allowance.wait_s(4.0) == pytest.approx(6)
    assert allowance.wait_s(10.1) == 0
    assert 0.5 <= jitter() < 1


def test_agent_reads_what_the_keystore_wrote(tmp_path: Path) -> None:
    state = Fleet("homes").device(tmp_path / "state", "device-1", 7443, 8883)
    found = FleetFile.read(str(state))
    assert found == ("homes", "device-1", "aggregator.homes.fedless", (("127.0.0.1", 8883),))
    (state / "identity" / "fleet.json").write_text("{}")
    with pytest.raises(ValueError, match="lacks"):
        FleetFile.read(str(state))


def test_calls_are_repeated_only_if_that_may_help() -> None:
    slept: list[float] = []
    answers = [PeerError(Code.AGGREGATOR_UNREACHABLE), PeerError(Code.BUSY, retry_after_ms=2000), None]

    def call() -> str:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return "done"

    assert patiently(call, budget_s=30, sleep=slept.append) == "done"
    assert 0.04 < slept[0] <= 0.1
    assert slept[1] == 2
    assert not may_pass(PeerError(Code.NOT_IN_COHORT))
    assert may_pass(PeerError(Code.DISK_FULL, retry_after_ms=30_000))


def test_refusal_is_not_repeated_and_the_budget_ends() -> None:
    def refuse() -> None:
        raise PeerError(Code.NOT_IN_COHORT)

    def wait_long() -> None:
        raise PeerError(Code.BUSY, retry_after_ms=60_000)

    for call, code in ((refuse, Code.NOT_IN_COHORT), (wait_long, Code.BUSY)):
        with pytest.raises(PeerError) as caught:
            patiently(call, budget_s=20, sleep=lambda _: pytest.fail("it must not wait"))
        assert caught.value.code is code


def test_clock_never_runs_back_under_the_build_or_the_last_time_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 0)
    assert clock.not_before(0) == clock.BUILT_AT_MS
    assert clock.not_before(clock.BUILT_AT_MS + 5) == clock.BUILT_AT_MS + 5
    monkeypatch.setattr("time.time_ns", lambda: (clock.BUILT_AT_MS + 9) * 1_000_000)
    assert clock.not_before(clock.BUILT_AT_MS + 5) == clock.BUILT_AT_MS + 9


def stored(outbox: Outbox, journal: Journal, number: int, until_ms: int, size: int) -> None:
    digest, nonce = b"\0" * 32, number.to_bytes(16, "big")
    ticket = Ticket("f", "c", digest, "run", number, Kind.TRAIN, digest, 1, digest, (), until_ms, nonce)
    payload = os.urandom(size)
    header = ReportHeader(number, Encoding.FLOAT32, size, hashlib.sha256(payload).digest(), 1)
    journal.accept(ticket, b"", 1)
    outbox.store(ticket, header, payload, now_ms=100)


def test_outbox_is_bounded_and_late_reports_make_room(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.db")
    outbox = Outbox(tmp_path / "outbox", journal, 100)
    stored(outbox, journal, 1, until_ms=50, size=60)
    stored(outbox, journal, 2, until_ms=500, size=60)
    assert journal.counters() == {"round_closed": 1}
    assert len(list(outbox.folder.iterdir())) == 1
    with pytest.raises(LocalError, match="outbox_mb") as caught:
        stored(outbox, journal, 3, until_ms=500, size=60)
    assert caught.value.code is Code.DISK_FULL
    assert [report.header.round_id for report in journal.reports()] == [2]


def test_file_of_a_report_that_was_never_recorded_is_removed(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal.db")
    outbox = Outbox(tmp_path / "outbox", journal, 100)
    stored(outbox, journal, 1, until_ms=500, size=10)
    (outbox.folder / "0123.report").write_bytes(b"half")
    (outbox.folder / "0123.report.new").write_bytes(b"less")
    outbox.clean()
    assert [path.name for path in outbox.folder.iterdir()] == [journal.reports()[0].file]
