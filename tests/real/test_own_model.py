"""docs/own-model.md, executed: its files are written, its commands run in order, its model is good."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.real, pytest.mark.tensorflow, pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-model.md").read_text()
# A file's name on a line of its own, a block; or a block of commands, perhaps "terminal".
BLOCK = re.compile(
    r"(?:^`(?P<file>[\w./-]+)`:\n\n)?^```(?P<kind>[a-z ]+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
PROGRAMS = {
    "fedless": "-c 'from fedless.console.main import main; main()'",
    "fedless-edge": "-m edge_runtime.cli",
    "python": "",
}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A folder with the page's programs on the PATH."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in PROGRAMS.items():
        script = programs / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    found = Shell(work, programs)
    yield found
    found.close()


class Shell:
    """Runs the page's commands one block after another; variables stay from block to block."""

    def __init__(self, work: Path, programs: Path) -> None:
        self.work = work
        self.said = ""
        self._variables = work / "variables"
        self._variables.write_text("")
        self._terminals: list[subprocess.Popen[bytes]] = []
        self._environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def write(self, name: str, text: str) -> None:
        path = self.work / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def run(self, commands: str) -> None:
        """One block, as a process of its own; the page's variables are kept for the next."""
        save = f'for name in RUN FEDLESS_FLEET; do echo "export $name=${{!name:-}}"; done > {self._variables}'
        script = f"set -euo pipefail\n. {self._variables}\n{commands}\n{save}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.work, env=self._environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        self.said += done.stdout
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}\n{self.logs()}"

    def terminal(self, command: str) -> None:
        """A block that goes on running: its own session, its output in a file."""
        log = self.work / f"terminal-{len(self._terminals)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.work, env=self._environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._terminals.append(process)
        if "aggregator serve" in command:
            end = time.monotonic() + 30
            while not (self.work / "my-fleet/state/endpoints.json").is_file():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.work.glob("terminal-*.log")))

    def close(self) -> None:
        for process in reversed(self._terminals):
            family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            finally:
                for child in family:
                    if child.is_running():
                        child.kill()


@pytest.mark.long
def test_every_step_of_the_page_works(shell: Shell) -> None:
    for block in BLOCK.finditer(PAGE):
        text = block["text"]
        if block["kind"] == "sh terminal":
            shell.terminal(text.strip())
        elif block["kind"] == "sh":
            # The only change: free ports instead of the fixed ones, which this machine may use.
            ports = "fedless init --fleet-port 0 --enrollment-port 0 --mqtt-port 0"
            shell.run(text.replace("fedless init", ports))
        else:
            assert block["file"], f"a block of {block['kind']} without a file name: {text}"
            shell.write(block["file"], text)
    check_model(shell)


def check_model(shell: Shell) -> None:
    accuracy = re.search(r"^accuracy (\d\.\d+);", shell.said, re.MULTILINE)
    assert accuracy is not None, shell.said
    assert float(accuracy[1]) > 0.85
    assert "300 examples fit motor" in shell.said
    assert "10 of 10" in shell.said
    assert (shell.work / "motor.f32").stat().st_size == 4 * (3 * 16 + 16 + 16 * 3 + 3)
    assert "device_accuracy" in shell.said
