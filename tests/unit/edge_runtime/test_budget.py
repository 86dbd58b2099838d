"""One budget of memory for all instances: who may run, who waits, and what a crash leaves."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime import budget
from edge_runtime.budget import Budget
from fedless.protocol.errors import Code, LocalError, PeerError
from tests.running_fleet import wait_until

HOLD = """
import sys, time
from pathlib import Path
from edge_runtime.budget import Budget
with Budget(Path(sys.argv[1]), 300).claim(int(sys.argv[2]), 30):
    print("held", flush=True)
    sys.stdin.read()
"""


def code_of(call: Callable[[], object]) -> Code:
    with pytest.raises(PeerError) as caught:
        call()
    return caught.value.code


def files(state: Path) -> list[str]:
    return sorted(path.suffix for path in (state / budget.FOLDER).glob("*.*"))


def test_those_run_together_that_fit_together(tmp_path: Path) -> None:
    shared = Budget(tmp_path, 300)
    with shared.claim(200, 0), shared.claim(100, 0):
        assert files(tmp_path) == [".run", ".run"]
        with pytest.raises(PeerError) as caught:
            shared.take(1, 0)
        assert caught.value.code is Code.BUSY
        assert caught.value.retry_after_ms
        assert "300 are taken" in caught.value.detail
    assert files(tmp_path) == []


def test_who_waits_gets_what_becomes_free(tmp_path: Path) -> None:
    shared, got = Budget(tmp_path, 300), threading.Event()

    def wait() -> None:
        with shared.claim(200, 60):
            got.set()

    with shared.claim(200, 0):
        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: files(tmp_path) == [".run", ".wait"], 60)
        assert not got.is_set()
    waiting.join(60)
    assert got.is_set()


def test_large_need_is_not_overtaken_by_small_ones(tmp_path: Path) -> None:
    shared, got = Budget(tmp_path, 300), threading.Event()

    def wait() -> None:
        with shared.claim(250, 60):
            got.set()

    with shared.claim(100, 0):
        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: ".wait" in files(tmp_path), 60)
        assert code_of(lambda: shared.take(50, 0)) is Code.BUSY, "it would fit, but somebody came before it"
    waiting.join(60)
    assert got.is_set()
    with shared.claim(50, 0):
        pass


def test_more_than_the_whole_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        Budget(tmp_path, 300).take(301, 60)
    assert caught.value.code is Code.CONFIG_INVALID
    assert "total_mb" in caught.value.detail + caught.value.fix


def test_queue_is_bounded(tmp_path: Path) -> None:
    shared, refused = Budget(tmp_path, 300), []

    def wait() -> None:
        try:
            shared.take(300, 60)()
        except PeerError as error:
            refused.append(error.code)

    with shared.claim(300, 0):
        waiting = [threading.Thread(target=wait) for _ in range(budget.WAITING_MAX)]
        for thread in waiting:
            thread.start()
        wait_until(lambda: files(tmp_path).count(".wait") == budget.WAITING_MAX, 60)
        assert code_of(lambda: shared.take(1, 60)) is Code.QUEUE_FULL
    for thread in waiting:
        thread.join(60)
    assert refused == []
    assert files(tmp_path) == []


def test_one_alone_may_always_run_where_nothing_is_set(tmp_path: Path) -> None:
    shared = Budget(tmp_path)
    with shared.claim(2**30, 0):
        assert code_of(lambda: shared.take(1, 0)) is Code.BUSY


def test_killed_process_leaves_nothing_taken(tmp_path: Path) -> None:
    """The budget holds across processes, and with SIGKILL at any time."""
    command = [sys.executable, "-c", HOLD, str(tmp_path), "300"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert code_of(lambda: Budget(tmp_path, 300).take(1, 0)) is Code.BUSY
        other.kill()
    with Budget(tmp_path, 300).claim(300, 0):
        assert files(tmp_path) == [".run"]
