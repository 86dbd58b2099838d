"""One budget of memory for every instance on this device, whoever asked for it: rounds, orders, local calls, the clock.

Fork servers that local calls keep for the next one are in it too, and give way to whoever waits (`pool`). Instances are
started by different processes, so the account is a folder: a file for each that runs, with its MB, and one for each
that waits, in the order of their coming. Each file is locked (flock) by the process that it belongs to; one that nobody
holds any more was left by a process that is gone, and is removed by whoever comes next. So no crash leaves anything
taken. Only the first who waits may take what is free: a large need is not overtaken by small ones.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedless.protocol.errors import Code, LocalError, PeerError

FOLDER = "memory"
WAITING_MAX = 16
_LOOK_S = 0.05
_RETRY_MS = 5_000


@dataclass(frozen=True)
class Budget:
    """`total_mb` for all instances together; 0: what this device has, and one that is alone may always run."""

    state: Path
    total_mb: int = 0

    @contextmanager
    def claim(self, need_mb: int, wait_s: float) -> Iterator[None]:
        """Hold `need_mb` while the block runs, after at most `wait_s` of waiting.

        Raises `LocalError` CONFIG_INVALID (more than the whole); `PeerError` QUEUE_FULL, or BUSY when the others took
        too long.
        """
        taken = self.take(need_mb, wait_s)
        try:
            yield
        finally:
            taken()

    def take(self, need_mb: int, wait_s: float) -> Callable[[], None]:
        """The same without a block: call what is returned when the instance is over. Raises as `claim`."""
        if self.total_mb and need_mb > self.total_mb:
            detail = f"It may need {need_mb} MB; all together have {self.total_mb} MB ([limits] total_mb)."
            raise LocalError(
                Code.CONFIG_INVALID, detail, fix="Raise total_mb, or lower memory_mb of [limits]."
            )
        folder = self.state / FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        waiting = folder / f"{time.monotonic_ns():020d}-{os.getpid()}-{need_mb}.wait"
        place = _queue_up(folder, waiting)
        try:
            running = self._await_turn(folder, waiting, need_mb, time.monotonic() + wait_s)
        except BaseException:
            _let_go(waiting, place)
            raise
        return lambda: _let_go(running, place)

    @property
    def wanted(self) -> bool:
        """Whether somebody waits: then nobody should keep what he can do without."""
        folder = self.state / FOLDER
        return any(held(path) for path in folder.glob("*.wait"))

    def _await_turn(self, folder: Path, waiting: Path, need_mb: int, end: float) -> Path:
        """The file of the instance that may run now."""
        while True:
            with _alone(folder):
                if self._mine(folder, waiting, need_mb):
                    return waiting.rename(waiting.with_suffix(".run"))
                used = sum(_present(folder, "run").values())
            if time.monotonic() >= end:
                detail = (
                    f"It may need {need_mb} MB; of {self._all_mb()} MB for all instances, {used} are taken."
                )
                raise PeerError(Code.BUSY, detail, retry_after_ms=_RETRY_MS)
            time.sleep(_LOOK_S)

    def _mine(self, folder: Path, name: Path, need_mb: int) -> bool:
        """Whether it is this one's turn, and there is enough."""
        waiting, running = _present(folder, "wait", own=name), _present(folder, "run")
        if min(waiting, default=name.name) != name.name:
            return False
        return not running or sum(running.values()) + need_mb <= self._all_mb()

    def _all_mb(self) -> int:
        return self.total_mb or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else looks at the account or changes it meanwhile."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _queue_up(folder: Path, path: Path) -> int:
    """A file that is this process's for as long as the descriptor is open. Raises `PeerError` QUEUE_FULL."""
    with _alone(folder):
        if len(_present(folder, "wait")) >= WAITING_MAX:
            detail = f"{WAITING_MAX} instances wait for memory."
            raise PeerError(Code.QUEUE_FULL, detail, retry_after_ms=_RETRY_MS)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def _let_go(path: Path, descriptor: int) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
    os.close(descriptor)


def _present(folder: Path, kind: str, own: Path | None = None) -> dict[str, int]:
    """Those who run or wait, by name, with their MB; files of processes that are gone are removed."""
    found: dict[str, int] = {}
    for path in folder.glob(f"*.{kind}"):
        if path != own and not held(path):
            path.unlink(missing_ok=True)
            continue
        found[path.name] = int(path.stem.rpartition("-")[2])
    return found


def held(path: Path) -> bool:
    """Whether a living process has locked that file. Raises PermissionError where this user may not ask."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
