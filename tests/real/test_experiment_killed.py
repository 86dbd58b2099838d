"""kill -9 of an experiment: none of its processes outlives it, whatever session it is in."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fedless.experiments.processes import Children
from tests.running_fleet import ROOT, wait_until

pytestmark = pytest.mark.real
# An experiment with three children: one asleep, one with a child in a session of its own, one that ended in time.
EXPERIMENT = """
import sys, threading, time
from pathlib import Path
from fedless.experiments.processes import Children

children = Children(Path(sys.argv[1]))
parent = (
    "import subprocess, time\\n"
    "print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)\\n"
    "time.sleep(600)"
)
starting = [
    threading.Thread(target=children.start, args=(name, argv))  # the thread ends before the child
    for name, argv in (("sleeper", ["sleep", "600"]), ("parent", [sys.executable, "-c", parent]))
]
for thread in starting:
    thread.start()
for thread in starting:
    thread.join()
children.run("short", ["true"], b"", 20)
print("started", flush=True)
time.sleep(600)
"""


def test_killed_experiment_leaves_nothing_behind(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", EXPERIMENT, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        wait_until((tmp_path / "parent.log").read_text, 60)
        family = psutil.Process(process.pid).children(recursive=True)
        grandchild = psutil.Process(int((tmp_path / "parent.log").read_text()))
        assert grandchild in family
        assert len(family) == 4, "two children, the child of one, the watcher"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


def test_watcher_ends_with_the_children_and_kills_nobody(tmp_path: Path) -> None:
    children = Children(tmp_path)
    bystander = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        children.start("sleeper", ["sleep", "600"])
        killed = children.start("killed", ["sleep", "600"])
        children.kill(killed)
        watcher = children._watcher
        assert watcher is not None
        children.stop(lambda _child: True, 5.0)
        assert watcher.poll() == 0
        assert children._watcher is None
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
