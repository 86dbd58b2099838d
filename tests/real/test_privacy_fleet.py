"""A private run on a real service: the ledger over gRPC and the command line, epsilon shown, the end at the budget."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from aggregator import ledger
from fedless.console.main import build
from fedless.protocol import wire
from fedless.protocol.messages import Encoding, Offer, ReportHeader
from fedless.v1 import rounds_pb2
from tests.running_fleet import ROOT, Credentials, RunningFleet, wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.long,  # both sides import the accounting, which takes scipy: most of a minute on a busy machine
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]
FUNCTION = ROOT / "examples" / "mnist" / "function-mlp"
PARAMETERS = 101_770
CLIENTS = ("dp-1", "dp-2")
TASK = """
name = "private"
function = "{function}"
rounds = 9
mode = "plain"
[cohort]
size = 2
minimum_reports = 2
over_selection = 1.0
[privacy]
noise = "server"
multiplier = 1.0
clip = 1.0
epsilon = {epsilon}
"""
WAIT_S = 240.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFleet]:
    with RunningFleet(tmp_path_factory.mktemp("fleet") / "home") as running:
        yield running


def command(*arguments: str | Path) -> Result:
    words = list(map(str, arguments))
    return CliRunner().invoke(build(words[0]), words)


def open_rounds(fleet: RunningFleet, client_id: str) -> list[tuple[int, bytes]]:
    """What this client's wake-ups say, from the aggregator's own record of them: round and nonce."""
    database = sqlite3.connect(f"file:{fleet.folder}/state/fedless.db?mode=ro", uri=True)
    try:
        query = "SELECT round_id, nonce FROM cohort WHERE client_id = ? ORDER BY round_id"
        return database.execute(query, (client_id,)).fetchall()
    finally:
        database.close()


def report(fleet: RunningFleet, who: Credentials, round_id: int, nonce: bytes) -> None:
    """One client's whole round, as bytes on the wire."""
    payload = np.full(PARAMETERS, 0.01, "<f4").tobytes()
    header = ReportHeader(
        round_id, Encoding.FLOAT32, len(payload), hashlib.sha256(payload).digest(), 1, {"loss": 1.0}
    )
    with fleet.calls(who) as calls:
        asked = rounds_pb2.CheckInRequest(round_id=round_id, nonce=nonce)
        offer = wire.check_in_reply_from_pb(calls.rounds.CheckIn(asked, timeout=30))
        assert isinstance(offer, Offer)
        calls.rounds.BeginReport(wire.report_header_to_pb(header), timeout=30)
        size = 1 << 18
        chunks = [
            rounds_pb2.ReportChunk(round_id=round_id, offset=at, data=payload[at : at + size])
            for at in range(0, len(payload), size)
        ]
        assert calls.rounds.PutReport(iter(chunks), timeout=30).accepted


def test_a_private_run_shows_epsilon_keeps_the_ledger_and_stops_at_the_budget(
    fleet: RunningFleet, tmp_path: Path
) -> None:
    devices = {name: fleet.device(name) for name in CLIENTS}
    budget = ledger.epsilon_of(2.0, 1e-5) + 1e-6
    file = tmp_path / "task.toml"
    file.write_text(TASK.format(function=FUNCTION, epsilon=budget))
    on = ("--fleet", fleet.folder)
    started = command("run", "start", file, *on)
    assert started.exit_code == 0, started.output
    run = started.stdout.strip()
    for nth in (1, 2):
        for name, who in devices.items():
            wait_until(lambda name=name, nth=nth: len(open_rounds(fleet, name)) >= nth, WAIT_S)  # type: ignore[misc]
            report(fleet, who, *open_rounds(fleet, name)[nth - 1])
    with fleet.operator() as operator:
        wait_until(lambda: operator.run(run).state != "running", WAIT_S)
        info = operator.run(run)
    assert (info.state, info.model_version) == ("finished", 2)
    assert info.reason.startswith("privacy_budget: the next round would bring 2 of 2 clients past epsilon")
    epsilons = [each.metrics["epsilon"] for each in info.rounds]
    assert epsilons == pytest.approx([ledger.epsilon_of(n, 1e-5) for n in (1.0, 2.0)])
    shown = command("run", "show", run, *on).stdout
    assert f"epsilon {epsilons[1]:.4f}" in " ".join(shown.split())
    lines = json.loads(command("privacy", "--json", *on).stdout)
    assert [(line["client"], line["protects"], line["rounds"], line["spend"]) for line in lines] == [
        (name, "client", 2, 2.0) for name in CLIENTS
    ]
    assert [line["epsilon"] for line in lines] == pytest.approx([budget] * 2, rel=1e-4)
    table = command("privacy", "--delta", "1e-6", *on).stdout
    assert all(name in table for name in CLIENTS)
    assert f"{ledger.epsilon_of(2.0, 1e-6):.4f}" in table
