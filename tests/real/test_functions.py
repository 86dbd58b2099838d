"""Cloud functions in a real fleet: registered by the command line, invoked by the service, trained by real servers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedless.authoring.sign import pack_and_sign
from fedless.protocol.errors import Code
from tests.contract.peers.process import PYTHON, Peer, free_port, start
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
    running = RunningFleet(tmp_path / "home")
    running.start()
    yield running
    running.close()


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


def test_functions_train_and_a_dead_one_costs_its_place_only(fleet: RunningFleet, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    processes = []
    for number in (1, 2):
        port, folder = free_port(), tmp_path / f"fn-{number}"
        deployment = add(fleet, f"fn-{number}", folder, url=f"http://127.0.0.1:{port}/")
        environment = {"FEDLESS_DEPLOYMENT": str(deployment), "FEDLESS_SCRATCH": str(folder / "scratch"),
                       "PORT": str(port), "FEDLESS_TIMEOUT_S": "60"}  # fmt: skip
        processes.append(start([PYTHON, "-m", "cloud_adapters.handlers.server"], port, folder, environment))
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
    (tmp_path / "task.toml").write_text(TASK.format(function=FUNCTION))
    begun = fedless("run", "start", tmp_path / "task.toml", "--fleet", fleet.folder)
    assert begun.returncode == 0, begun.stderr
    with fleet.operator() as operator:
        run_id = operator.runs()[0].run_id
        wait_until(lambda: operator.run(run_id).state != "running", 120)
        info = operator.run(run_id)
        assert (info.state, info.model_version) == ("finished", 2), info.reason
        return [
            {
                "event": event.event,
                "round": event.round_id,
                "client": event.client_id,
                **json.loads(event.json),
            }
            for event in operator.watch(run_id)
        ]
