"""The functions on this device: which versions are here, how they did, what their newest model is, how calls went.

`DIR/functions.db` (SQLite), beside the unpacked bundles in `DIR/functions/<digest>/`. The newest two versions of a
function are kept; an older one than was ever seen here is refused; a version that fails its first invocations is given
up (`lifecycle`), which stays written. Written by the participant, which installs, and by the local API, which invokes.
Losing this file loses statistics and trials, never a report: it is not synced to the disk with every call.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.sandbox import Space
from fedless.protocol.errors import Code, LocalError

if TYPE_CHECKING:
    from edge_runtime.lifecycle import Version

FILE = "functions.db"
FOLDER = "functions"
FLEET, SCHEDULE = "fleet", "schedule"
KEPT = 2
CALLS_KEPT = 1000
_SCHEMA = 1
_PATIENCE_S = 10.0
_TABLES = """
CREATE TABLE IF NOT EXISTS versions (
    digest TEXT PRIMARY KEY, name TEXT NOT NULL, version INTEGER NOT NULL, entry TEXT NOT NULL,
    proved INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0, given_up INTEGER NOT NULL DEFAULT 0,
    space TEXT NOT NULL, model TEXT NOT NULL DEFAULT '', installed_at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (name TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS traffic (day TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
    number INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL,
    kind TEXT NOT NULL, start TEXT NOT NULL, caller TEXT NOT NULL, queue_ms REAL NOT NULL, start_ms REAL NOT NULL,
    run_ms REAL NOT NULL, total_ms REAL NOT NULL, peak_rss_mb REAL NOT NULL, outcome TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Installed:
    """One version that is on this disk. `space` None: it runs without namespaces.

    `model` is the digest of the newest model seen with it, hex, or empty.
    """

    digest: str
    name: str
    version: int
    entry: str
    proved: bool
    failures: int
    given_up: bool
    space: Space | None
    model: str

    def as_version(self) -> Version:
        """For the automaton: cold, or failed for good."""
        from edge_runtime.lifecycle import Phase, Version  # noqa: PLC0415  (a round asks no automaton)

        phase = Phase.FAILED if self.given_up else Phase.COLD
        return Version(self.version, self.digest, self.proved, self.failures, phase)


@dataclass(frozen=True)
class Call:
    """One invocation as users of functions count them: when, of what, cold or warm, for how long, with which outcome.

    Times in ms: `queue_ms` before an instance was asked for, `start_ms` until it had its job, `run_ms` in it.
    `caller` is `fleet`, `schedule` or a local user's number; `outcome` is `done` or a code.
    """

    at_ms: int
    name: str
    version: int
    kind: str
    start: str
    caller: str
    outcome: str
    queue_ms: float = 0.0
    start_ms: float = 0.0
    run_ms: float = 0.0
    total_ms: float = 0.0
    peak_rss_mb: float = 0.0


class Functions:
    """`functions.db` of one state directory. Several processes may have it open, and threads may share one object.

    A connection has one transaction at a time: without the lock a second thread's statements would join, or break,
    the first one's.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self._one_at_a_time = threading.RLock()
        path = state / FILE
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)
        with self._explained():
            self._prepare(path)

    def _prepare(self, path: Path) -> None:
        """Set the file up, once, though several processes may open it for the first time at the same moment."""
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")  # does not wait for others by itself
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
                time.sleep(0.01)
        self._db.execute("PRAGMA synchronous = NORMAL")
        if self._db.execute("PRAGMA user_version").fetchone()[0] == _SCHEMA:
            return
        self._db.execute("BEGIN IMMEDIATE")
        if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:  # nobody was faster
            path.chmod(0o600)
            for statement in filter(str.strip, _TABLES.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {_SCHEMA}")
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def folder(self, digest: str) -> Path:
        """Where that version is unpacked."""
        return self.state / FOLDER / digest

    # -- versions

    def install(self, new: Installed, now_ms: int) -> list[str]:
        """A verified version is unpacked here, or its `space` has changed. Digests that are to be removed now."""
        row = (new.digest, new.name, new.version, new.entry, _space_text(new.space), new.model, now_ms)
        with self._change():
            self._db.execute(
                "INSERT INTO versions (digest, name, version, entry, space, model, installed_at_ms)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET space = excluded.space,"
                " model = excluded.model",
                row,
            )
            self._db.execute(
                "INSERT INTO seen VALUES (?, ?) ON CONFLICT (name)"
                " DO UPDATE SET version = max(version, excluded.version)",
                (new.name, new.version),
            )
            mine = self.versions(new.name)
            usable = [item.digest for item in mine if not item.given_up][:KEPT]
            gone = [item.digest for item in mine if item.digest not in {*usable, new.digest}]
            self._db.executemany("DELETE FROM versions WHERE digest = ?", [(digest,) for digest in gone])
        return gone

    def newest_seen(self, name: str) -> int:
        """The highest version of this function that ever was here; 0: none."""
        rows = self._read("SELECT version FROM seen WHERE name = ?", (name,))
        return int(rows[0][0]) if rows else 0

    def versions(self, name: str = "") -> list[Installed]:
        """Of one function or of all, the newest first."""
        rows = self._read(
            "SELECT digest, name, version, entry, proved, failures, given_up, space, model FROM versions"
            " WHERE ? IN ('', name) ORDER BY name, version DESC",
            (name,),
        )
        return [_installed(row) for row in rows]

    def find(self, digest: str) -> Installed | None:
        """One version."""
        return next((item for item in self.versions() if item.digest == digest), None)

    def current(self, name: str) -> Installed | None:
        """The version that serves: the newest that is not given up."""
        return next((item for item in self.versions(name) if not item.given_up), None)

    def judge(self, version: Version) -> None:
        """Write down how a version does."""
        from edge_runtime.lifecycle import Phase  # noqa: PLC0415  (as above)

        given_up = version.phase is Phase.FAILED
        with self._change():
            self._db.execute(
                "UPDATE versions SET proved = ?, failures = ?, given_up = ? WHERE digest = ?",
                (version.proved, version.failures, given_up, version.digest),
            )

    def roll_back(self, name: str) -> Installed:
        """The owner's wish: give the newest version up. Raises `LocalError(WRONG_STATE)` if there is no other."""
        usable = [item for item in self.versions(name) if not item.given_up]
        if len(usable) < KEPT:
            raise LocalError(
                Code.WRONG_STATE,
                f"Expected two versions of {name}, found {len(usable)}.",
                fix="See `fedless-edge functions`.",
            )
        with self._change():
            self._db.execute("UPDATE versions SET given_up = 1 WHERE digest = ?", (usable[0].digest,))
        return usable[1]

    # -- calls

    def record(self, call: Call) -> None:
        """Keep one invocation's figures; the oldest beyond `CALLS_KEPT` go."""
        row = (
            call.at_ms,
            call.name,
            call.version,
            call.kind,
            call.start,
            call.caller,
            call.queue_ms,
            call.start_ms,
        )
        row += (call.run_ms, call.total_ms, call.peak_rss_mb, call.outcome)  # type: ignore[assignment]
        with self._change():
            cursor = self._db.execute(f"INSERT INTO calls VALUES (NULL{', ?' * len(row)})", row)  # noqa: S608
            self._db.execute("DELETE FROM calls WHERE number <= ?", ((cursor.lastrowid or 0) - CALLS_KEPT,))

    def add_bytes(self, day: str, count: int) -> None:
        """So many bytes went over the link; other days than `day` are forgotten."""
        with self._change():
            self._db.execute("DELETE FROM traffic WHERE day != ?", (day,))
            self._db.execute(
                "INSERT INTO traffic VALUES (?, ?) ON CONFLICT (day) DO UPDATE SET bytes = bytes + excluded.bytes",
                (day, count),
            )

    def used_bytes(self, day: str) -> int:
        """What went over the link that day."""
        return int(sum(row[0] for row in self._read("SELECT bytes FROM traffic WHERE day = ?", (day,))))

    def calls(self, name: str = "", most: int = CALLS_KEPT) -> list[Call]:
        """The newest invocations, newest first."""
        rows = self._read(
            "SELECT at_ms, name, version, kind, start, caller, outcome, queue_ms, start_ms, run_ms, total_ms,"
            " peak_rss_mb FROM calls WHERE ? IN ('', name) ORDER BY number DESC LIMIT ?",
            (name, most),
        )
        return [Call(*row) for row in rows]

    def _read(self, text: str, values: Sequence[object] = ()) -> list[Any]:
        with self._one_at_a_time, self._explained():
            return self._db.execute(text, tuple(values)).fetchall()

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._one_at_a_time, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_BUSY:
                raise LocalError(Code.BUSY, f"{self.state / FILE} is locked by another process.") from error
            raise LocalError(
                Code.STATE_CORRUPT,
                f"{self.state / FILE}: {error}.",
                fix=f"Move {FILE} away: statistics are lost, nothing else.",
            ) from error


def statistics(calls: Sequence[Call]) -> dict[str, Mapping[str, float]]:
    """For each function: how many calls, failed, cold and warm; of the latter p50/p95 (nearest rank) of each time, ms.

    A call that was refused before it had an instance, for a full queue say, is neither cold nor warm.
    """
    found: dict[str, Mapping[str, float]] = {}
    for name in sorted({call.name for call in calls}):
        mine = [call for call in calls if call.name == name]
        figures: dict[str, float] = {
            "calls": len(mine),
            "failed": sum(call.outcome not in ("done", "reported") for call in mine),
        }
        for start in ("cold", "warm"):
            group = [call for call in mine if call.start == start and call.version]
            figures[start] = len(group)
            for what in ("queue_ms", "start_ms", "run_ms", "total_ms") if group else ():
                values = sorted(getattr(call, what) for call in group)
                for percent in (50, 95):
                    figures[f"{start}_{what}_p{percent}"] = values[-(-len(values) * percent // 100) - 1]
        found[name] = figures
    return found


def _space_text(space: Space | None) -> str:
    return "" if space is None else json.dumps([list(space.read), space.scratch_mb, space.network])


def _installed(row: Any) -> Installed:  # noqa: ANN401  (SQLite's)
    digest, name, version, entry, proved, failures, given_up, space, model = row
    seen = None
    if space:
        read, scratch_mb, network = json.loads(space)
        seen = Space(tuple(read), scratch_mb, network)
    return Installed(digest, name, version, entry, bool(proved), failures, bool(given_up), seen, model)
