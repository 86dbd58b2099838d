"""Functions for the device's own programs: invoked over a Unix socket, bounded, on the newest version that works."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_runtime.budget import Budget
from edge_runtime.calls import unpacked as unpacked_of
from edge_runtime.cli import main
from edge_runtime.config import load
from edge_runtime.functions import Functions, statistics
from edge_runtime.install import install
from edge_runtime.local_api import Callers, serve
from edge_runtime.starts import Starts
from fedless.protocol import bundle_format
from fedless.protocol.errors import Code, FedlessError, PeerError
from tests.edge_fleet import FOREIGN_KEY, PUBLISHER_KEY, Fleet
from tests.edge_processes import below

pytestmark = pytest.mark.real
LOCAL = '[local]\nsocket = "local.sock"\nqueue = 1\nwait_s = 5\nper_minute = 10000\n'
SETTINGS = LOCAL + "[warm]\nmemory_mb = 500\nkeep_s = 2\n[limits]\ntotal_mb = 1000\n"
GOOD = "    return {'sum': sum(event), 'version': context.version}\n"


@pytest.fixture
def state(fleet: Fleet, tmp_path: Path) -> Path:
    state = fleet.device(tmp_path / "state", "device-1", 1)
    with (state / "edge.toml").open("a") as file:
        file.write(SETTINGS)
    return state


def bundle(version: int, body: str = GOOD, key: bytes = PUBLISHER_KEY, timeout_ms: int = 10_000) -> bytes:
    manifest = (
        f'format = 1\n[function]\nname = "adder"\nversion = {version}\nentry = "main:handle"\n'
        f"memory_mb = 150\ntimeout_ms = {timeout_ms}\n"
    )
    code = f"def handle(event, context):\n{body}"
    return bundle_format.pack({"function.toml": manifest.encode(), "main.py": code.encode()}, key)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("local", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


Call = Callable[..., tuple[int, Any]]


@pytest.fixture
def call(state: Path) -> Iterator[Call]:
    """A served socket, and a way to call it: the status and the JSON answer."""
    path = state / "local.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(16)
        thread = threading.Thread(target=serve, args=(state, listener))
        thread.start()

        def ask(
            method: str, url: str, body: object = None, raw: bytes | None = None, announced: int | None = None
        ) -> tuple[int, Any]:
            connection = _Connection(path)
            headers = {} if announced is None else {"Content-Length": str(announced)}
            try:
                connection.request(method, url, raw if raw is not None else json.dumps(body), headers)
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read())
            finally:
                connection.close()

        yield ask
        thread.join(20)
        assert not thread.is_alive(), "it leaves when nobody calls"


def test_a_function_of_a_few_lines_is_called(state: Path, call: Call) -> None:
    install(state, bundle(1))
    assert call("POST", "/functions/adder", [1, 2, 3]) == (200, {"sum": 6, "version": 1})
    assert call("POST", "/functions/adder", [4]) == (200, {"sum": 4, "version": 1})
    listed = call("GET", "/functions")[1]
    assert [(item["name"], item["version"]) for item in listed] == [("adder", 1)]
    functions = Functions(state)
    second, first = functions.calls()
    functions.close()
    assert (first.start, second.start) == ("cold", "warm")
    assert second.start_ms < first.total_ms
    assert first.queue_ms < first.start_ms, "nobody was before it: the start of its server is no queue"
    assert first.caller == str(os.getuid())
    assert statistics([first, second])["adder"]["calls"] == 2


def test_local_call_waits_for_memory_that_a_round_holds(state: Path, call: Call) -> None:
    install(state, bundle(1))
    with Budget(state, 1000).claim(900, 0):  # as a training would
        refused = call("POST", "/functions/adder", [1])
        assert refused[0] == 429
        assert "of 1000 MB for all instances, 900 are taken" in refused[1]["detail"]
    assert call("POST", "/functions/adder", [1]) == (200, {"sum": 1, "version": 1})


def test_round_waits_for_memory_that_a_local_call_holds(fleet: Fleet, state: Path) -> None:
    found = install(state, fleet.bundle)
    config = load(state / "edge.toml")
    unpacked = unpacked_of(state, found.digest)
    with (
        contextlib.closing(Functions(state)) as functions,
        contextlib.closing(Starts(state, functions)) as starts,
    ):
        taken = Budget(state, 1000).take(1000, 0)
        threading.Timer(0.5, taken).start()
        with starts.take(unpacked, "", config, 1):
            with pytest.raises(PeerError) as caught:
                Budget(state, 1000).take(1000, 0)
            assert caught.value.code is Code.BUSY
        Budget(state, 1000).take(1000, 0)()


def test_infer_on_the_newest_model_without_a_network(fleet: Fleet, state: Path, call: Call) -> None:
    installed = install(state, fleet.bundle)
    rows = [[[0] * 28] * 28] * 3
    status, refused = call("POST", "/functions/mnist-mlp", {"inputs": {"x": rows}})
    assert (status, refused["code"]) == (409, "unknown_blob")
    import hashlib
    from dataclasses import replace

    digest = hashlib.sha256(fleet.model).hexdigest()
    (state / "cache").mkdir(exist_ok=True)
    (state / "cache" / digest).write_bytes(fleet.model)
    functions = Functions(state)
    functions.install(replace(installed, model=digest), 1)
    functions.close()
    status, answer = call("POST", "/functions/mnist-mlp", {"inputs": {"x": rows}})
    assert status == 200, answer
    assert [len(row) for row in answer["outputs"]] == [10] * 3
    status, refused = call("POST", "/functions/mnist-mlp", {"inputs": {"x": [[1, 2]]}})
    assert (status, refused["code"]) == (400, "data_shape")


def test_a_version_that_fails_is_rolled_back_by_itself(state: Path, call: Call) -> None:
    install(state, bundle(1))
    assert call("POST", "/functions/adder", [1])[0] == 200
    install(state, bundle(2, "    raise ValueError('new and broken')\n"))
    failed = 0
    until = time.monotonic() + 20
    while time.monotonic() < until:  # the old version serves until the new one has started
        status, answer = call("POST", "/functions/adder", [1])
        if status == 200 and failed == 3:
            break
        failed += status != 200
    assert failed == 3
    assert answer == {"sum": 1, "version": 1}
    functions = Functions(state)
    assert [(item.version, item.given_up) for item in functions.versions("adder")] == [(2, True), (1, False)]
    broken = [item for item in functions.calls() if item.version == 2]
    assert [(item.outcome, item.run_ms > 0) for item in broken] == [("instance_failed", True)] * 3
    functions.close()


def test_older_foreign_and_damaged_bundles_are_refused(state: Path) -> None:
    install(state, bundle(3))
    refusals = {
        bundle(2): Code.BUNDLE_OLDER,
        bundle(4, key=FOREIGN_KEY): Code.BUNDLE_PUBLISHER,
        bundle(4)[:-1]: Code.BUNDLE_MALFORMED,
        bundle(4)[:-30] + bytes(30): Code.BUNDLE_FORGED,
    }
    for data, code in refusals.items():
        with pytest.raises(FedlessError) as caught:
            install(state, data)
        assert caught.value.code is code
    assert len(list((state / "functions").iterdir())) == 1


def test_only_the_newest_two_versions_stay_on_the_disk(state: Path) -> None:
    for version in (1, 2, 3):
        install(state, bundle(version))
    functions = Functions(state)
    assert [item.version for item in functions.versions("adder")] == [3, 2]
    assert functions.roll_back("adder").version == 2
    assert functions.current("adder").version == 2  # type: ignore[union-attr]
    with pytest.raises(FedlessError):
        functions.roll_back("adder")
    functions.close()
    assert len(list((state / "functions").iterdir())) == 2


def test_queue_is_bounded_and_says_so(state: Path, call: Call) -> None:
    install(state, bundle(1, "    import time\n    time.sleep(1)\n    return 1\n"))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: call("POST", "/functions/adder", [])[0], range(6)))
    assert sorted(set(answers)) == [200, 429]


def test_bad_calls_get_a_code_each(state: Path, call: Call) -> None:
    install(state, bundle(1, "    return {'hang': [__import__('time').sleep(9)]}[event]\n", timeout_ms=500))
    calls = [
        (call("POST", "/functions/absent", 1), 404, "unknown_task"),
        (call("POST", "/other", 1), 404, "unknown_task"),
        (call("GET", "/", 1), 404, "unknown_task"),
        (call("POST", "/functions/adder", raw=b"{"), 400, "malformed"),
        (call("POST", "/functions/adder", raw=b"", announced=2 << 20), 400, "malformed"),
        (call("POST", "/functions/adder", "hang"), 504, "instance_timeout"),
    ]
    for (status, answer), expected, code in calls:
        assert (status, answer["code"]) == (expected, code)


def test_callers_without_the_right_are_refused() -> None:
    callers = Callers(["4242"], 2)
    for uid in (0, os.getuid(), 4242):
        callers.admit(uid, 0.0)
    with pytest.raises(PeerError) as caught:
        callers.admit(4243, 0.0)
    assert caught.value.code is Code.CALLER_REFUSED


def test_a_server_that_was_killed_is_started_again_and_the_function_not_blamed(
    state: Path, call: Call
) -> None:
    install(state, bundle(1))
    assert call("POST", "/functions/adder", [1])[0] == 200
    for process in below():  # bubblewrap and what is in it: they end together
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(below(), 5)
    status, refused = call("POST", "/functions/adder", [1])
    assert (status, refused["code"]) == (429, "busy")
    assert call("POST", "/functions/adder", [1]) == (200, {"sum": 1, "version": 1})
    functions = Functions(state)
    assert functions.versions("adder")[0].failures == 0
    functions.close()


def test_each_caller_has_its_own_limit() -> None:
    callers = Callers(["4242", "4243"], 2)
    callers.admit(4242, 0.0)
    callers.admit(4242, 1.0)
    with pytest.raises(PeerError) as caught:
        callers.admit(4242, 2.0)
    assert caught.value.retry_after_ms == 58_000
    callers.admit(4243, 2.0)
    callers.admit(4242, 60.5)


def test_a_caller_who_says_nothing_costs_nothing(state: Path, call: Call) -> None:
    install(state, bundle(1))
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(state / "local.sock"))
        time.sleep(0.1)
        assert call("POST", "/functions/adder", [1])[0] == 200


def test_a_function_is_called_by_the_clock(state: Path) -> None:
    install(state, bundle(1))
    with (state / "edge.toml").open("a") as file:
        file.write('[schedule.often]\nfunction = "adder"\nevery_s = 1\nevent = [1, 2]\n')
        file.write('[schedule.broken]\nfunction = "absent"\nevery_s = 1\n')
    with (state / "agent.log").open("wb") as log:
        command = [sys.executable, "-m", "edge_runtime.cli", "run", "--state", str(state)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=log)
    functions = Functions(state)
    try:
        until = time.monotonic() + 30
        while len(functions.calls()) < 2 or b"unknown_task" not in (state / "agent.log").read_bytes():
            assert time.monotonic() < until, (state / "agent.log").read_text()
            time.sleep(0.05)
    finally:
        process.terminate()
        assert process.wait(20) == 0
    assert {(call.caller, call.name, call.outcome) for call in functions.calls()} == {
        ("schedule", "adder", "done")
    }
    functions.close()


def test_the_command_line_over_an_agent_that_has_no_network(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent starts the API when somebody calls, and has nothing of it while nobody does."""
    path = tmp_path / "adder.bundle"
    path.write_bytes(bundle(1))
    where = ["--state", str(state)]
    assert main(["functions", "install", *where, str(path)]) == 0
    with (state / "agent.log").open("wb") as log:
        command = [sys.executable, "-m", "edge_runtime.cli", "run", *where]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=log)
    try:
        until = time.monotonic() + 20
        while not (state / "local.sock").exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        agent = psutil.Process(process.pid)
        capsys.readouterr()
        for _ in range(2):
            assert main(["invoke", *where, "adder", "[1, 2]"]) == 0
            assert json.loads(capsys.readouterr().out) == {"sum": 3, "version": 1}
        assert agent.children()
        while agent.children():
            assert time.monotonic() < until
            time.sleep(0.05)
        assert main(["invoke", *where, "adder", "[3]"]) == 0
        assert main(["invoke", *where, "absent", "[3]"]) == 1
    finally:
        process.terminate()
        assert process.wait(20) == 0
    capsys.readouterr()
    assert main(["stats", *where, "--calls", "1"]) == 0
    said = capsys.readouterr().out
    assert "adder: 3 calls, 0 failed" in said
    assert "adder 1 invoke cold" in said
    assert main(["functions", "list", *where]) == 0
    assert "adder 1 serves (proved) main:handle" in capsys.readouterr().out
    assert main(["why-not", *where]) == 0
    assert "It may train now." in capsys.readouterr().out
    assert main(["invoke", *where, "adder", "[3]"]) == 1
    assert "Start the agent" in capsys.readouterr().err
