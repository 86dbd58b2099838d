"""A real PostgreSQL on a Unix socket in a folder of its own: started, stopped and killed by its process id."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

VERSIONS = Path("/usr/lib/postgresql")  # where Debian installs it, outside of PATH
START_S = 30
# fsync off: tests kill processes, not the machine, and the kernel keeps what a killed process has written.
OPTIONS = (
    "-c",
    "fsync=off",
    "-c",
    "full_page_writes=off",
    "-c",
    "shared_buffers=16MB",
    "-c",
    "max_connections=20",
)


def program(name: str) -> str:
    """The path of one of PostgreSQL's programs; skips no test: it fails, and says what is missing."""
    found = sorted(VERSIONS.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    where = str(found[-1]) if found else shutil.which(name)
    if where is None:
        pytest.fail(f"PostgreSQL's {name} is missing: install Debian's package postgresql (`make test` does)")
    return where


class Server:
    """One cluster."""

    def __init__(self, port: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fedless-pg-"))
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0
        # initdb and postgres refuse to run as root
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:
            account = _account()
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        command = [program("initdb"), "-D", str(self.data), "-U", "fedless", "-A", "trust", "-E", "UTF8", "--locale=C",
                   "--no-sync", "--no-instructions"]  # fmt: skip
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, timeout=60, **self._as
        )

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Starts it and waits until it answers; after a kill it recovers first."""
        command = [program("postgres"), "-D", str(self.data), "-k", str(self.folder), "-p", str(self.port),
                   "-c", "listen_addresses=127.0.0.1", *OPTIONS]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self._as)
        ready = [
            program("pg_isready"),
            "-q",
            "-t",
            str(START_S),
            "-h",
            str(self.folder),
            "-p",
            str(self.port),
        ]
        for _ in range(10 * START_S):
            if subprocess.run(ready, check=False).returncode == 0:
                return
            try:
                self._process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            break
        pytest.fail(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-2000:]}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: a fast shutdown; SIGKILL: as if the power were cut; the children then end by themselves."""
        if self._process is not None:
            children = _children(self._process.pid)
            self._process.send_signal(how)
            self._process.wait(START_S)
            self._process = None
            for child in children:
                _wait_for_end(child)

    def url(self, name: str = "", *, user: str = "fedless") -> str:
        """The URL of a new database, or of the one with that name."""
        if not name:
            self._count += 1
            name = f"fleet{self._count}"
            self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://{user}@/{name}?host={self.folder}&port={self.port}"

    def execute(self, statement: str, name: str = "postgres") -> list[tuple[Any, ...]]:
        """Runs one statement; its rows."""
        where = f"postgresql://fedless@/{name}?host={self.folder}&port={self.port}"
        with psycopg.connect(where, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def remove(self) -> None:
        """Stops it and removes its folder."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)


def started(free_port: Callable[[], int]) -> Server:
    """A new server that answers."""
    server = Server(free_port())
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    return server


def _account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    pytest.fail("PostgreSQL needs an account to run as: there is neither postgres nor nobody")


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # it has ended by itself
        return []


def _wait_for_end(pid: int) -> None:
    """Until a process that is not our child has ended: a server that starts while one lives refuses."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select

    try:
        select.select([descriptor], [], [], START_S)
    finally:
        os.close(descriptor)
