"""Children of an experiment: none outlives it, whatever it does, and one that fails says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedless.experiments.processes import Child, Children, wait_until
from fedless.protocol.errors import Code, LocalError

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
# As the agent does with its participants: a group of its own in the same session.
PARENT = f"""
import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, "-c", {STUBBORN!r}], os.environ, setpgroup=0)
print("child", pid, flush=True)
import time; time.sleep(600)
"""


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    """Stopped at the end, their watcher with them."""
    children = Children(tmp_path)
    yield children
    children.stop(lambda _: True, grace_s=0.2)


def said(child: Child, word: str) -> str:
    """The rest of the log's first line with that word, once it is there."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for line in child.log.read_text().splitlines():
            if line.startswith(word):
                return line.removeprefix(word).strip()
        time.sleep(0.02)
    raise AssertionError(child.log.read_text())


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_child_that_ignores_sigterm_is_killed(children: Children) -> None:
    child = children.start("stubborn", python(STUBBORN))
    said(child, "up")
    children.stop(lambda _: True, grace_s=0.2)
    assert child.process.returncode is not None
    assert not runs(child.process.pid)


def test_grandchild_in_a_group_of_its_own_is_killed(children: Children) -> None:
    child = children.start("parent", python(PARENT))
    grandchild = int(said(child, "child"))
    said(child, "up")
    children.stop(lambda _: True, grace_s=0.2)
    assert not runs(grandchild)


def test_orphan_of_a_killed_child_is_killed(children: Children) -> None:
    child = children.start("parent", python(PARENT))
    orphan = int(said(child, "child"))
    said(child, "up")
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait()
    assert runs(orphan)
    children.stop(lambda _: True, grace_s=0.2)
    assert not runs(orphan)


def test_those_that_come_first_are_stopped_first(children: Children) -> None:
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print(time.monotonic()), sys.exit()));"
    late, early = (
        children.start(name, python(code + "print('up', flush=True); time.sleep(600)")) for name in "ab"
    )
    for child in (late, early):
        said(child, "up")
    children.stop(lambda child: child.name == "b", grace_s=10)
    ended = [float(child.log.read_text().splitlines()[1]) for child in (early, late)]
    assert ended == sorted(ended)


def test_child_that_fails_is_told_with_its_last_words(children: Children) -> None:
    children.start("broken", python("import sys; sys.exit('no broker here')"))
    with pytest.raises(LocalError, match=r"(?s)broken ended with status 1.*no broker here.*broken\.log"):
        wait_until(lambda: False, 20, lambda: "never", children)


def test_waiting_has_an_end_and_a_reason(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="2 of 3 are missing"):
        wait_until(lambda: False, 0.1, lambda: "2 of 3 are missing", Children(tmp_path))


def test_short_child_gets_its_input_and_its_failure_is_told(children: Children, tmp_path: Path) -> None:
    children.run("good", python("print(input())"), b"claim\n", 20)
    assert (tmp_path / "good.log").read_text() == "claim\n"
    with pytest.raises(LocalError, match="status 3"):
        children.run("bad", python("raise SystemExit(3)"), b"", 20)
    with pytest.raises(LocalError, match="did not end within"):
        children.run("slow", python("import time; time.sleep(600)"), b"", 0.2)


def test_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        Children(tmp_path).start("absent", ("/nowhere/program",))
    assert caught.value.code is Code.NOT_INSTALLED
    assert "/nowhere/program" in caught.value.detail


def test_children_get_no_signal_of_the_terminal(children: Children) -> None:
    """A Ctrl-C reaches the experiment's own group only; the experiment stops its children in order."""
    child = children.start("other-session", python("import time; print('up', flush=True); time.sleep(600)"))
    said(child, "up")
    assert os.getsid(child.process.pid) == child.process.pid != os.getsid(0)
    children.stop(lambda _: True, grace_s=5)
    assert child.process.returncode in (0, -signal.SIGTERM)


def test_nothing_here_waits_for_a_dead_process() -> None:
    """The test's own tool: a zombie does not count as running."""
    dead = subprocess.Popen(python("pass"))
    end = time.monotonic() + 20
    while runs(dead.pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not runs(dead.pid)
    dead.wait()
