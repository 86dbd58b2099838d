"""Cloud functions in a real fleet: registered by the command line, invoked by the service, trained by real servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedless.authoring.sign import pack_and_sign
from fedless.console.link import RunInfo
from fedless.protocol.errors import Code
from tests.contract.peers.process import PYTHON, Peer, free_port, start
from tests.real.test_helper_rounds import CLIENTS, HelperProcess, enroll, nonces, take_part
from tests.real.test_helper_rounds import TASK as HELPED
from tests.running_fleet import ROOT, RunningFleet, fedless, wait_until

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
FUNCTION = ROOT / "examples" / "mnist" / "function-mlp"
TASK = """
name = "clouds"
rounds = 2
mode = "plain"
function = "{function}"
[cohort]
size = 3
minimum_reports = 2
over_selection = 1.0
[round]
deadline_s = 25
[evaluation]
central_every = 0
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RunningFleet]:
    pytest.importorskip("httpx")
    with RunningFleet(tmp_path / "home") as running:
        yield running


def add(fleet: RunningFleet, client_id: str, folder: Path, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(2)
    np.savez(
        folder / "data.npz",
        x=random.random((40, 28, 28, 1), np.float32),
        y=random.integers(0, 10, 40, np.int32),
    )
    values = {"memory_mb": 1024, "timeout_s": 60, "mode": "http", "modes": ["plain"], **settings}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    data = f'[data.default]\npath = "file://{folder}/data.npz"\n'
    (folder / f"{client_id}.toml").write_text("\n".join([*lines, data]))
    out = folder / f"{client_id}.json"
    config = folder / f"{client_id}.toml"
    done = fedless("fleet", "add-function", client_id, "--platform", "knative", "--config", config, "--out", out,
                   "--fleet", fleet.folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PRIVATE" not in out.read_text()
    return out


def serve(fleet: RunningFleet, tmp_path: Path, modes: list[str]) -> list[Any]:
    """Two functions, registered and running."""
    processes = []
    for number in (1, 2):
        port, folder = free_port(), tmp_path / f"fn-{number}"
        deployment = add(fleet, f"fn-{number}", folder, url=f"http://127.0.0.1:{port}/", modes=modes)
        environment = {"FEDLESS_DEPLOYMENT": str(deployment), "FEDLESS_SCRATCH": str(folder / "scratch"),
                       "PORT": str(port), "FEDLESS_TIMEOUT_S": "60"}  # fmt: skip
        processes.append(start([PYTHON, "-m", "cloud_adapters.handlers.server"], port, folder, environment))
    return processes


@pytest.mark.long
def test_functions_train_and_a_dead_one_costs_its_place_only(fleet: RunningFleet, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    processes = serve(fleet, tmp_path, ["plain"])
    add(fleet, "fn-gone", tmp_path / "fn-gone", url=f"http://127.0.0.1:{free_port()}/")
    try:
        with fleet.operator() as operator:
            assert {client.client_id: client.state for client in operator.clients()} == dict.fromkeys(
                ("fn-1", "fn-2", "fn-gone"), "enrolled"
            )
            events = train(fleet, tmp_path)
    finally:
        Peer("knative", {}, processes).stop()
    ended = [event for event in events if event["event"] == "invocation_ended"]
    assert sorted((event["round"], event["client"]) for event in ended) == [
        (number, client)
        for number in sorted({event["round"] for event in ended})
        for client in ("fn-1", "fn-2")
    ]
    assert {event["outcome"] for event in ended} == {"reported"}
    assert {event["start"] for event in ended} == {"cold", "warm"}
    assert all(event["usd"] >= 0 and event["measured"] is False for event in ended)
    lost = [event for event in events if event["event"] in ("invocation_failed", "invocation_given_up")]
    assert {event["client"] for event in lost} == {"fn-gone"}
    assert {event["code"] for event in lost} <= {Code.PLATFORM_UNREACHABLE.value, Code.PLATFORM_TIMEOUT.value}
    assert "knative, client fn-gone" in lost[0]["reason"]


def train(fleet: RunningFleet, tmp_path: Path) -> list[dict[str, Any]]:
    """A whole run; its events."""
    (tmp_path / "f.bundle").write_bytes(pack_and_sign(FUNCTION, fleet.folder / "publisher" / "publisher.key"))
    begin(fleet, tmp_path, TASK.format(function=FUNCTION))
    info, events = result(fleet)
    assert (info.state, info.model_version) == ("finished", 2), info.reason
    return events


def begin(fleet: RunningFleet, tmp_path: Path, task: str) -> None:
    (tmp_path / "task.toml").write_text(task)
    begun = fedless("run", "start", tmp_path / "task.toml", "--fleet", fleet.folder)
    assert begun.returncode == 0, begun.stderr


def result(fleet: RunningFleet) -> tuple[RunInfo, list[dict[str, Any]]]:
    with fleet.operator() as operator:
        run_id = operator.runs()[0].run_id
        wait_until(lambda: operator.run(run_id).state != "running", 120)
        events = [
            {
                "event": event.event,
                "round": event.round_id,
                "client": event.client_id,
                **json.loads(event.json),
            }
            for event in operator.watch(run_id)
        ]
        return operator.run(run_id), events


def test_functions_and_devices_in_one_masked_round(tmp_path: Path) -> None:
    """Helper mode: one message from each, nothing to keep; the helper sees certificates of both roles."""
    pytest.importorskip("obstore")
    fleet = RunningFleet(tmp_path / "home")
    second = HelperProcess(tmp_path / "helper", fleet)
    processes: list[Any] = []
    try:
        second.start()
        second.introduce()
        fleet.start()
        processes = serve(fleet, tmp_path, ["helper"])
        members = [enroll(fleet, f"client-{number}", second.pin) for number in range(CLIENTS)]
        begin(fleet, tmp_path, HELPED.replace(f"size = {CLIENTS}", f"size = {CLIENTS + 2}"))
        wait_until(lambda: len(nonces(fleet)) == CLIENTS + 2)
        woken = nonces(fleet)
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [
                pool.submit(take_part, fleet, number, who, woken[f"client-{number}"])
                for number, who in enumerate(members)
            ]
            for one in asked:
                one.result()
        info, events = result(fleet)
        found = (info.state, info.rounds[0].mode, info.rounds[0].reported)
        assert found == ("finished", "helper", CLIENTS + 2), fleet.log.read_text()[-3000:]
        told = {event["client"]: event["outcome"] for event in events if event["event"] == "invocation_ended"}
        assert told == {"fn-1": "reported", "fn-2": "reported"}
    finally:
        Peer("knative", {}, processes).stop()
        second.kill()
        fleet.close()


def test_registration_that_cannot_be_is_told_clearly(fleet: RunningFleet, tmp_path: Path) -> None:
    def said(*changes: str) -> str:
        config, out = tmp_path / "fn.toml", tmp_path / "out.json"
        config.write_text("\n".join(['memory_mb = 512\ntimeout_s = 60\nmode = "http"', *changes]))
        arguments = ("--config", config, "--out", out, "--fleet", fleet.folder)
        done = fedless("fleet", "add-function", "fn-1", "--platform", "knative", *arguments)
        assert done.returncode == 1
        assert not out.exists()
        return " ".join(done.stderr.split())

    assert "knative, client fn-1: url" in said()
    assert "colour" in said('url = "https://fn.example/"', 'colour = "red"')
    assert "cannot be read" in said("= broken")
    with fleet.operator() as operator:
        assert operator.clients() == []
