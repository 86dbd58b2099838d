"""What this device has seen, promised and not yet delivered: SQLite, durable before anything is said outside.

Only the participant writes; `status` and `doctor` read. Every method is one transaction (WAL, synchronous FULL), so
a power cut leaves the state before or after it. Ticket nonces are kept until their round's deadline: after that the
ticket itself is refused as expired. Times are Unix ms of the aggregator's clock unless said otherwise.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_runtime.entries import OpenRound, Reason, StoredAnswer, StoredReport, header_of, header_text
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import DONE, Kind, ReportHeader, Ticket

FILE = "journal.db"
SCHEMA = 1
ROUNDS_KEPT = 200
REASONS_KEPT = 50
_TABLES = """
CREATE TABLE rounds (
    nonce BLOB PRIMARY KEY, round_id INTEGER NOT NULL, kind INTEGER NOT NULL, run_id TEXT NOT NULL,
    ticket BLOB NOT NULL, until_ms INTEGER NOT NULL, received_at_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, outcome TEXT, ended_at_ms INTEGER
) WITHOUT ROWID;
CREATE TABLE outbox (
    nonce BLOB PRIMARY KEY, header TEXT NOT NULL, file TEXT NOT NULL, bytes INTEGER NOT NULL,
    until_ms INTEGER NOT NULL, stored_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE reasons (number INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, code TEXT NOT NULL,
    detail TEXT NOT NULL, round_id INTEGER NOT NULL);
CREATE TABLE functions (name TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE masks (only INTEGER PRIMARY KEY CHECK (only = 1), state BLOB NOT NULL, mark BLOB NOT NULL);
"""
_LATER_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    nonce BLOB PRIMARY KEY, result TEXT NOT NULL, until_ms INTEGER NOT NULL, stored_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
"""
REPORTED = "reported"


class Journal:
    """`DIR/journal.db`. One writer at a time; use `close` at the end."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db = connection
        self._path = path
        self._file = 0

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> Journal:
        """Open or create. Raises `LocalError` STATE_CORRUPT, DISK_FULL or STATE_MISSING (read-only and absent)."""
        if read_only and not path.exists():
            raise LocalError(Code.STATE_MISSING, f"There is no {path} yet.")
        new = not path.exists()
        journal = cls(sqlite3.connect(path, isolation_level=None, timeout=10), path)
        try:
            with journal._explained():
                journal._prepare(new=new, read_only=read_only)
        except LocalError:
            journal.close()
            raise
        journal._file = path.stat().st_ino
        return journal

    @property
    def path(self) -> Path:
        """Of its file."""
        return self._path

    @property
    def present(self) -> bool:
        """Whether the open file is still the one of that name, which its owner may have moved away."""
        return self._path.exists() and self._path.stat().st_ino == self._file

    def settle(self) -> None:
        """Between two wake-ups, as `close` does: what was erased is not left in the write-ahead log, or behind it."""
        self._read("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # -- tickets and rounds

    def accept(self, ticket: Ticket, signed_content: bytes, now_ms: int, *, begun: bool = False) -> bool:
        """Remember a verified ticket; False if its nonce is known (nothing changes then).

        `begun`: the round begins at once, so this is noted with it (`attempt`).
        """
        with self._change() as db:
            row = (ticket.nonce, ticket.round_id, int(ticket.kind), ticket.run_id, signed_content, int(begun))
            cursor = db.execute(
                "INSERT OR IGNORE INTO rounds (nonce, round_id, kind, run_id, ticket, attempts, until_ms,"
                " received_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, ticket.not_after_ms, now_ms),
            )
            return cursor.rowcount == 1

    def open_rounds(self) -> list[OpenRound]:
        """Accepted tickets without an outcome or a stored report, oldest first."""
        rows = self._read(
            "SELECT nonce, ticket, attempts FROM rounds WHERE outcome IS NULL"
            " AND nonce NOT IN (SELECT nonce FROM outbox UNION SELECT nonce FROM answers)"
            " ORDER BY received_at_ms, round_id"
        )
        return [OpenRound(*row) for row in rows]

    def attempt(self, nonce: bytes) -> int:
        """Note that the round is begun once more; how many times that makes."""
        with self._change() as db:
            db.execute("UPDATE rounds SET attempts = attempts + 1 WHERE nonce = ?", (nonce,))
            return int(db.execute("SELECT attempts FROM rounds WHERE nonce = ?", (nonce,)).fetchone()[0])

    def end(self, nonce: bytes, outcome: str, detail: str, now_ms: int) -> str:
        """The round is over with `reported` or a code: count it, empty its outbox entry.

        Returns the name of the outbox file that may be removed now, or "".
        """
        with self._change() as db:
            row = db.execute("SELECT file FROM outbox WHERE nonce = ?", (nonce,)).fetchone()
            for table in ("outbox", "answers"):
                db.execute(f"DELETE FROM {table} WHERE nonce = ?", (nonce,))  # noqa: S608 - the two names above
            ended = db.execute(
                "UPDATE rounds SET outcome = ?, ended_at_ms = ? WHERE nonce = ? AND outcome IS NULL"
                " RETURNING round_id",
                (outcome, now_ms, nonce),
            ).fetchall()
            if ended:  # else it was counted when it ended
                self._count(outcome, detail, ended[0][0], now_ms)
            return str(row[0]) if row else ""

    def refuse(self, code: Code, detail: str, round_id: int, now_ms: int) -> None:
        """Count a refusal that ends no round of ours: a forged ticket, a repeat."""
        with self._change():
            self._count(code.value, detail, round_id, now_ms)

    def last_round(self) -> dict[str, object] | None:
        """The newest ticket: round, run, kind, when it came, its outcome (None: not ended)."""
        rows = self._read(
            "SELECT round_id, run_id, kind, received_at_ms, outcome, ended_at_ms FROM rounds"
            " ORDER BY received_at_ms DESC, round_id DESC LIMIT 1"
        )
        if not rows:
            return None
        names = ("round_id", "run_id", "kind", "received_at_ms", "outcome", "ended_at_ms")
        found: dict[str, object] = dict(zip(names, rows[0], strict=True))
        return found | {"kind": Kind(rows[0][2]).name.lower()}

    # -- the outbox

    def store_report(
        self,
        nonce: bytes,
        header: ReportHeader,
        file: str,
        until_ms: int,
        now_ms: int,
        masks: tuple[bytes, bytes] | None = None,
    ) -> None:
        """A complete report is on the disk: from now on only these bytes are sent for this round.

        `masks`: state and mark of masked rounds, which know that the bytes were masked; None: unchanged.
        """
        text = header_text(header)
        with self._change() as db:
            if masks is not None:
                db.execute("INSERT OR REPLACE INTO masks VALUES (1, ?, ?)", masks)
            db.execute(
                "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?)",
                (nonce, text, file, header.length_bytes, until_ms, now_ms),
            )

    def reports(self) -> list[StoredReport]:
        """Reports that are not delivered, oldest first."""
        rows = self._read("SELECT nonce, header, file, until_ms FROM outbox ORDER BY stored_at_ms")
        return [StoredReport(nonce, header_of(text), file, until) for nonce, text, file, until in rows]

    def outbox_bytes(self) -> int:
        """Payload bytes of all of them, and of the answers."""
        reports = self._read("SELECT COALESCE(SUM(bytes), 0) FROM outbox")[0][0]
        answers = self._read("SELECT COALESCE(SUM(LENGTH(CAST(result AS BLOB))), 0) FROM answers")[0][0]
        return int(reports + answers)

    def store_answer(self, nonce: bytes, result: str, until_ms: int, now_ms: int) -> None:
        """An order was carried out: from now on only this result (JSON) is sent for it."""
        with self._change() as db:
            db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", (nonce, result, until_ms, now_ms))

    def answers(self) -> list[StoredAnswer]:
        """Results of orders that are not delivered, oldest first."""
        rows = self._read("SELECT nonce, result, until_ms FROM answers ORDER BY stored_at_ms")
        return [StoredAnswer(*row) for row in rows]

    # -- secure aggregation

    def mask_state(self) -> bytes:
        """What pairwise mode keeps on this client (`secagg.state.ClientState`, codec); empty: nothing yet."""
        rows = self._read("SELECT state FROM masks")
        return bytes(rows[0][0]) if rows else b""

    def mask_mark(self) -> bytes:
        """How far that state has come (`secagg.state.Mark`, codec), for check-ins; empty: nothing yet."""
        rows = self._read("SELECT mark FROM masks")
        return bytes(rows[0][0]) if rows else b""

    def save_mask_state(self, state: bytes, mark: bytes) -> None:
        """Replace both; what was erased from the state is overwritten on the disk (`secure_delete`)."""
        with self._change() as db:
            db.execute("INSERT OR REPLACE INTO masks VALUES (1, ?, ?)", (state, mark))

    # -- facts

    def newest_version(self, function: str) -> int:
        """The highest version of a function that was run here; 0: none."""
        rows = self._read("SELECT version FROM functions WHERE name = ?", (function,))
        return int(rows[0][0]) if rows else 0

    def saw_version(self, function: str, version: int) -> None:
        """Raise the mark under which bundles of this function are refused."""
        if version > self.newest_version(function):
            with self._change() as db:
                db.execute("INSERT OR REPLACE INTO functions VALUES (?, ?)", (function, version))

    def fact(self, name: str) -> int:
        """A number that was noted under a name; 0: none."""
        rows = self._read("SELECT value FROM facts WHERE name = ?", (name,))
        return int(rows[0][0]) if rows else 0

    def set_fact(self, name: str, value: int) -> None:
        """Note a number under a name."""
        with self._change() as db:
            db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def clock_floor(self) -> int:
        """The aggregator's clock when it was last heard, Unix ms; 0: never. Time does not run back under it."""
        return self.fact("clock_floor_ms")

    def set_clock(self, theirs_ms: int, ours_ms: int) -> None:
        """The aggregator said its time; ours at that moment is kept to show how far apart they are."""
        with self._change() as db:
            for name, value in (("clock_floor_ms", theirs_ms), ("clock_ahead_ms", ours_ms - theirs_ms)):
                db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def counters(self) -> dict[str, int]:
        """How often each outcome and refusal happened, by its code's value."""
        return dict(self._read("SELECT name, count FROM counters ORDER BY name"))

    def reasons(self, most: int = 10) -> list[Reason]:
        """The newest reasons, newest first."""
        rows = self._read(
            "SELECT at_ms, code, detail, round_id FROM reasons ORDER BY number DESC LIMIT ?", (most,)
        )
        return [Reason(*row) for row in rows]

    def prune(self, now_ms: int) -> None:
        """Forget rounds past their deadline but for the newest ones, and old reasons."""
        with self._change() as db:
            db.execute(
                "DELETE FROM rounds WHERE outcome IS NOT NULL AND until_ms < ? AND nonce NOT IN"
                " (SELECT nonce FROM rounds ORDER BY received_at_ms DESC LIMIT ?)",
                (now_ms, ROUNDS_KEPT),
            )
            db.execute(
                "DELETE FROM reasons WHERE number <= (SELECT MAX(number) FROM reasons) - ?", (REASONS_KEPT,)
            )

    def check(self) -> None:
        """`doctor`: read the whole file. Raises `LocalError` STATE_CORRUPT."""
        found = self._read("PRAGMA quick_check(1)")[0][0]
        if found != "ok":
            raise self._corrupt(str(found))

    # -- inside

    def _prepare(self, *, new: bool, read_only: bool) -> None:
        db = self._db
        db.execute("PRAGMA query_only = ON" if read_only else "PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA secure_delete = ON")
        if new:
            self._path.chmod(0o600)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0 and not read_only:
            db.executescript(
                f"BEGIN IMMEDIATE; {_TABLES} {_LATER_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;"
            )
        elif version == 0:
            raise LocalError(Code.STATE_MISSING, f"{self._path} is being made.")
        elif version != SCHEMA:
            raise LocalError(
                Code.STATE_CORRUPT,
                f"{self._path} has layout {version}; this program knows {SCHEMA}.",
                fix="Update fedless on this device.",
            )
        if not read_only:
            db.execute(_LATER_TABLES)

    def _count(self, name: str, detail: str, round_id: int, now_ms: int) -> None:
        self._db.execute(
            "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET count = count + 1", (name,)
        )
        if name not in {REPORTED, DONE}:  # nothing that went well is a reason
            self._db.execute(
                "INSERT INTO reasons (at_ms, code, detail, round_id) VALUES (?, ?, ?, ?)",
                (now_ms, name, detail[:500], round_id),
            )

    def _read(self, text: str, values: tuple[object, ...] = ()) -> list[Any]:
        with self._explained():
            return self._db.execute(text, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise LocalError(
                    Code.DISK_FULL, f"{self._path} cannot grow.", fix="Free some space on this disk."
                ) from error
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise LocalError(Code.BUSY, f"{self._path} is locked by another process.") from error
            raise self._corrupt(str(error)) from error
        except sqlite3.DatabaseError as error:
            raise self._corrupt(str(error)) from error

    def _corrupt(self, why: str) -> LocalError:
        return LocalError(
            Code.STATE_CORRUPT,
            f"{self._path}: {why}.",
            fix=f"Move {self._path.name}, {self._path.name}-wal and {self._path.name}-shm away: this device then begins"
            " with an empty journal; reports that were not delivered are lost, its identity is not.",
        )
