"""The journal: nonces, rounds, outbox, counters; damage and a full disk have names."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from edge_runtime.journal import REPORTED, ROUNDS_KEPT, Journal
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import DONE, Encoding, Kind, ReportHeader, Ticket

HEADER = ReportHeader(7, Encoding.FLOAT32, 8, b"\1" * 32, 12, {"loss": 1.5})


def ticket(number: int, until_ms: int = 1000) -> Ticket:
    digest = b"\0" * 32
    nonce = number.to_bytes(16, "big")
    return Ticket("f", "c", digest, "run-1", number, Kind.TRAIN, digest, 1, digest, (), until_ms, nonce)


def check(path: Path) -> None:
    Journal.open(path).check()


def fill(journal: Journal) -> None:
    for number in range(2, 300):
        journal.accept(ticket(number), b"x" * 4000, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


def test_replayed_nonce_is_known_also_after_a_restart(path: Path) -> None:
    journal = Journal.open(path)
    assert journal.accept(ticket(7), b"content", 1)
    assert not journal.accept(ticket(7), b"content", 2)
    journal.close()
    again = Journal.open(path)
    assert not again.accept(ticket(7), b"content", 3)
    (open_round,) = again.open_rounds()
    assert open_round.ticket == b"content"
    assert open_round.attempts == 0


def test_round_leaves_the_open_ones_with_its_report_and_then_with_its_outcome(path: Path) -> None:
    journal = Journal.open(path)
    journal.accept(ticket(7), b"", 1)
    nonce = ticket(7).nonce
    assert journal.attempt(nonce) == 1
    assert journal.attempt(nonce) == 2
    journal.store_report(nonce, HEADER, "file", 1000, 5)
    assert journal.open_rounds() == []
    (report,) = journal.reports()
    assert report.header == HEADER
    assert report.until_ms == 1000
    assert journal.outbox_bytes() == 8
    assert journal.end(nonce, "reported", "", 6) == "file"
    assert journal.reports() == []
    assert journal.counters() == {"reported": 1}
    assert journal.end(nonce, "reported", "", 7) == ""
    assert journal.counters() == {"reported": 1}, "an outcome is counted once"


def test_refusals_are_counted_by_code_and_their_reasons_kept(path: Path) -> None:
    journal = Journal.open(path)
    for number in range(3):
        journal.refuse(Code.TICKET_FORGED, f"try {number}", 0, number)
    assert journal.counters() == {"ticket_forged": 3}
    assert [reason.detail for reason in journal.reasons(2)] == ["try 2", "try 1"]


def test_what_went_well_is_counted_and_is_no_reason(path: Path) -> None:
    """`why-not` said of every order that was carried out that something had gone wrong inside."""
    journal = Journal.open(path)
    for number, outcome in enumerate((REPORTED, DONE, Code.INSTANCE_FAILED.value)):
        journal.accept(ticket(number), b"", 1)
        journal.end(ticket(number).nonce, outcome, "", 1)
    assert journal.counters() == {"done": 1, "instance_failed": 1, "reported": 1}
    assert [reason.code for reason in journal.reasons()] == ["instance_failed"]


def test_nonces_are_kept_until_their_deadline_however_many_there_are(path: Path) -> None:
    journal = Journal.open(path)
    for number in range(1, ROUNDS_KEPT + 20):
        journal.accept(ticket(number, until_ms=10 if number < 10 else 1000), b"", number)
        journal.end(ticket(number).nonce, "reported", "", number)
    journal.prune(now_ms=100)
    assert journal.accept(ticket(1, 10), b"", 1), (
        "past its deadline: forgotten, and refused as expired by then"
    )
    assert not journal.accept(ticket(10), b"", 1)


def test_file_and_its_helpers_are_private(path: Path) -> None:
    journal = Journal.open(path)
    journal.accept(ticket(1), b"", 1)
    for found in path.parent.iterdir():
        assert found.stat().st_mode & 0o077 == 0, found


@pytest.mark.parametrize("damage", ["garbage", "truncated", "newer"])
def test_damaged_journal_is_refused_with_what_to_do(path: Path, damage: str) -> None:
    journal = Journal.open(path)
    for number in range(1, 200):
        journal.accept(ticket(number), b"x" * 100, 1)
    journal.close()
    if damage == "garbage":
        path.write_bytes(b"not a database, whatever it may say here" * 200)
    elif damage == "truncated":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 3])
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
    with pytest.raises(LocalError) as caught:
        check(path)
    assert caught.value.code is Code.STATE_CORRUPT
    assert caught.value.fix


def test_full_disk_has_a_name_and_nothing_is_lost(path: Path) -> None:
    journal = Journal.open(path)
    journal.accept(ticket(1), b"", 1)
    journal._db.execute(f"PRAGMA max_page_count = {journal._db.execute('PRAGMA page_count').fetchone()[0]}")
    with pytest.raises(LocalError) as caught:
        fill(journal)
    assert caught.value.code is Code.DISK_FULL
    assert [r.nonce for r in journal.open_rounds()][:1] == [ticket(1).nonce]


def test_clock_floor_is_the_last_time_heard(path: Path) -> None:
    journal = Journal.open(path)
    assert journal.clock_floor() == 0
    journal.set_clock(5000, 5100)
    assert journal.clock_floor() == 5000


def test_versions_only_rise(path: Path) -> None:
    journal = Journal.open(path)
    journal.saw_version("f", 3)
    journal.saw_version("f", 2)
    assert journal.newest_version("f") == 3
    assert journal.newest_version("g") == 0


def test_a_round_that_begins_at_once_is_noted_as_begun_with_its_ticket(path: Path) -> None:
    journal = Journal.open(path)
    assert journal.accept(ticket(7), b"content", 1, begun=True)
    assert [one.attempts for one in journal.open_rounds()] == [1]
    assert journal.attempt(ticket(7).nonce) == 2
    journal.close()


def test_what_was_erased_is_not_on_the_disk_though_the_journal_stays_open(path: Path) -> None:
    journal = Journal.open(path)
    secret = b"a seed that was used" * 40
    journal.save_mask_state(secret, b"")
    journal.settle()
    journal.save_mask_state(b"erased", b"")
    assert secret in path.read_bytes(), "it is there until the log is taken over"
    journal.settle()
    left = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert secret[:20] not in left
    assert journal.mask_state() == b"erased"
    journal.close()


def test_a_journal_that_was_moved_away_is_known(path: Path) -> None:
    journal = Journal.open(path)
    found = [journal.present]
    path.rename(path.with_name("away.db"))
    found.append(journal.present)
    Journal.open(path).close()  # another one is in its place
    found.append(journal.present)
    assert found == [True, False, False]
    journal.close()
