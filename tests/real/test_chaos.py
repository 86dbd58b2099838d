"""kill -9 of aggregator, broker, PostgreSQL and devices, drawn from a seed, while a run goes on: `make test-chaos`.

What must hold whatever was killed: the run ends by itself, no model version is skipped or reused, and each report that
a device was told is accepted is counted in its round. (That it is in the sum once is what `tests/simulation` shows,
where each report is a unit vector.)
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import create_engine, text

from edge_runtime.journal import Journal
from fedless.authoring.sign import initial_weights, pack_and_sign
from fedless.console.link import open_link
from fedless.experiments import datasets
from fedless.experiments.config import Data
from fedless.experiments.fleet import Device, LocalFleet
from fedless.protocol.tables import write_tables
from tests.postgresql import Server, started
from tests.restartable import Restartable, until

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not os.environ.get("FEDLESS_CHAOS"), reason="minutes of kills: make test-chaos"),
]

MNIST = Path(__file__).parents[2] / "examples" / "mnist"
FUNCTION = MNIST / "function-mlp"
SEED = int(os.environ.get("FEDLESS_CHAOS_SEED", "20261128"))
KILLS = int(os.environ.get("FEDLESS_CHAOS_KILLS", "12"))
ROUNDS, MINIMUM = 8, 3
DEVICES = {"plain": 4, "pairwise": 8}
END_S = 300.0


def examples(count: int) -> bytes:
    data = Data("idx", MNIST / "data", MNIST / "data", count, "y")
    return datasets.to_npz(datasets.load(data, seed=1).train)


def task(mode: str) -> str:
    return write_tables(
        {
            "name": "chaos", "function": "function.bundle", "mode": mode, "rounds": ROUNDS,
            "cohort": {"size": DEVICES[mode], "over_selection": 1.0, "wait_s": 600}
            | ({"minimum_reports": MINIMUM} if mode == "plain" else {}),
            "round": {"deadline_s": 30, "abandon_limit": 50},
            "secagg": {"setup_s": 20, "unmask_s": 30},
            "evaluation": {"central_every": 0},
        }
    )  # fmt: skip


class Chaos:
    """What is killed, one thing or two at a time, and started again a moment later."""

    def __init__(self, fleet: LocalFleet, server: Server | None, draw: random.Random) -> None:
        self.fleet, self.server, self.draw = fleet, server, draw
        self.restartable = Restartable(fleet)
        self.log: list[str] = []
        self.kinds: dict[str, Callable[[], Callable[[], None]]] = {
            "aggregator": self.aggregator, "broker": self.broker, "device": self.device,
        }  # fmt: skip
        if server is not None:
            self.kinds["postgresql"] = self.postgresql

    def strike(self) -> None:
        """Kills one kind of process or two together, then starts them, in either order."""
        chosen = self.draw.sample(sorted(self.kinds), self.draw.choice((1, 1, 2)))
        self.log.append("+".join(chosen))
        again = [self.kinds[kind]() for kind in chosen]
        time.sleep(self.draw.uniform(0, 2))
        self.draw.shuffle(again)
        for start in again:
            start()

    def aggregator(self) -> Callable[[], None]:
        self.restartable.kill()
        return lambda: self.restartable.start(wait=False)

    def broker(self) -> Callable[[], None]:
        """The aggregator starts it again by itself."""
        for child in _children(self.fleet.aggregator.process.pid):
            if child.name() == "mosquitto":
                child.kill()
        return lambda: None

    def device(self) -> Callable[[], None]:
        client_id = self.draw.choice(sorted(self.fleet.agents))
        self.fleet.kill_device(client_id)
        return lambda: self.fleet.start_agent(client_id)

    def postgresql(self) -> Callable[[], None]:
        assert self.server is not None
        self.server.stop(signal.SIGKILL)
        return self.server.start


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def database(kind: str, folder: Path, free_port: Callable[[], int]) -> Iterator[tuple[Server | None, str]]:
    """The server, if there is one, and the database's URL."""
    if kind == "sqlite":
        yield None, f"sqlite:///{folder / 'fleet' / 'fleet' / 'state' / 'fedless.db'}"
        return
    server = started(free_port)
    try:
        yield server, server.url()
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("kind", "mode"), [("sqlite", "plain"), ("postgresql", "plain"), ("postgresql", "pairwise")]
)
def test_run_goes_on_whatever_is_killed(
    kind: str, mode: str, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    draw = random.Random(f"{SEED} {kind} {mode}")
    devices = [Device(f"edge-{number}", examples(40 + number)) for number in range(1, DEVICES[mode] + 1)]
    with database(kind, tmp_path, free_port) as (server, url):
        environment = {} if server is None else {"FEDLESS__STATE__DATABASE": url}
        with LocalFleet(tmp_path / "fleet", devices, open_link, environment=environment) as fleet:
            chaos = Chaos(fleet, server, draw)
            with open_link(fleet.aggregator_folder) as operator:
                bundle = pack_and_sign(FUNCTION, fleet.aggregator_folder / "publisher" / "publisher.key")
                weights = operator.put(initial_weights(FUNCTION))
                run_id = operator.start_run(task(mode), operator.put(bundle), weights, b"").run_id
            for _ in range(KILLS):
                time.sleep(draw.uniform(0.5, 5))
                chaos.strike()
                if state(url) != "running":
                    break
            sys.stdout.write(f"{kind} {mode} killed: {' '.join(chaos.log)}\n")
            until(chaos.restartable.endpoints.is_file, fleet)
            until(lambda: state(url) != "running", fleet, pause_s=0.5, bound_s=END_S)
            with open_link(fleet.aggregator_folder) as operator:
                info = operator.run(run_id)
            assert (info.state, info.model_version) == ("finished", ROUNDS), info.reason
        check(url, fleet)


def state(url: str) -> str:
    """Of the only run, as the database says, whether or not an aggregator lives."""
    [(found,)] = rows(url, "SELECT state FROM runs")
    return str(found)


def rows(url: str, query: str) -> list[Any]:
    where = url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(where)
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(query))]
    finally:
        engine.dispose()


def check(url: str, fleet: LocalFleet) -> None:
    models = rows(url, "SELECT version, digest, round_id FROM models ORDER BY version")
    assert [version for version, _, _ in models] == list(range(ROUNDS + 1))
    for _, digest, _ in models:
        name = bytes(digest).hex()
        file = fleet.aggregator_folder / "state" / "blobs" / name[:2] / name
        assert hashlib.sha256(file.read_bytes()).hexdigest() == name
    rounds = rows(url, "SELECT round_id, phase, model_version FROM rounds WHERE kind = 1 ORDER BY round_id")
    committed = [(round_id, base) for round_id, phase, base in rounds if phase == "committed"]
    assert committed == [(round_id, version - 1) for version, _, round_id in models[1:]]
    assert {phase for _, phase, _ in rounds} <= {"committed", "abandoned"}
    counted = {
        (client_id, round_id)
        for client_id, round_id in rows(
            url, "SELECT client_id, round_id FROM cohort WHERE stage = 'reported'"
        )
    }
    told = {(client_id, round_id) for client_id in fleet.agents for round_id in reported(fleet, client_id)}
    assert told <= counted, "a device was told that its report is accepted, and it is not counted"
    for round_id, _ in committed:
        assert sum(one == round_id for _, one in counted) >= MINIMUM
    reports = dict(rows(url, "SELECT client_id, count FROM counters WHERE name = 'reports'"))
    for client_id in fleet.agents:
        assert reports.get(client_id, 0) == sum(one == client_id for one, _ in counted)


def reported(fleet: LocalFleet, client_id: str) -> list[int]:
    """Rounds of which a device says that its report was accepted; its journal is whole."""
    file = fleet.state_folder(client_id) / "journal.db"
    with closing(Journal.open(file, read_only=True)) as journal:
        journal.check()
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        query = "SELECT round_id FROM rounds WHERE outcome = 'reported' AND kind = 1"
        return [round_id for (round_id,) in connection.execute(query)]
