"""kill -9 of the broker while a wake-up waits in it for a device that is away: the device hears it all the same."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from fedless.authoring.sign import initial_weights, pack_and_sign
from fedless.console.link import open_link
from fedless.experiments import datasets
from fedless.experiments.config import Data
from fedless.experiments.fleet import Device, LocalFleet
from fedless.protocol.tables import write_tables
from tests.restartable import until

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(300)]

MNIST = Path(__file__).parents[2] / "examples" / "mnist"
FUNCTION = MNIST / "function-mlp"
TASK = write_tables(
    {
        "name": "killed",
        "function": "function.bundle",
        "mode": "plain",
        "rounds": 1,
        "cohort": {"size": 1, "over_selection": 1.0, "minimum_reports": 1},
        "round": {"deadline_s": 3600},
        "evaluation": {"central_every": 0},
    }
)
"""Its deadline is longer than the test may take: without a second wake-up it would not end."""


def examples() -> bytes:
    data = Data("idx", MNIST / "data", MNIST / "data", 40, "y")
    return datasets.to_npz(datasets.load(data, seed=1).train)


def value(fleet: LocalFleet, query: str) -> object:
    """One value of the aggregator's database."""
    with closing(sqlite3.connect(fleet.aggregator_folder / "state" / "fedless.db", timeout=30)) as database:
        row = database.execute(query).fetchone()
    return row[0] if row else None


def brokers(fleet: LocalFleet) -> list[psutil.Process]:
    """The aggregator's broker, of which it knows."""
    children = psutil.Process(fleet.aggregator.process.pid).children(recursive=True)
    return [child for child in children if child.name() == "mosquitto"]


def test_a_wake_up_that_the_broker_forgot_comes_again(tmp_path: Path) -> None:
    with LocalFleet(tmp_path / "fleet", [Device("edge-1", examples())], open_link) as fleet:
        fleet.kill_device("edge-1")
        until(lambda: value(fleet, "SELECT online FROM clients") == 0, fleet)
        with open_link(fleet.aggregator_folder) as operator:
            bundle = pack_and_sign(FUNCTION, fleet.aggregator_folder / "publisher" / "publisher.key")
            weights = operator.put(initial_weights(FUNCTION))
            operator.start_run(TASK, operator.put(bundle), weights, b"")
        until(lambda: value(fleet, "SELECT count(*) FROM rounds WHERE phase = 'collecting'"), fleet)
        time.sleep(1)  # the broker has taken it by then; if not, it is sent again anyway
        [broker] = brokers(fleet)
        broker.kill()
        until(lambda: brokers(fleet) and brokers(fleet) != [broker], fleet)
        fleet.start_agent("edge-1")
        until(lambda: value(fleet, "SELECT state FROM runs") == "finished", fleet)
        assert value(fleet, "SELECT count(*) FROM events WHERE event = 'report_arrived'") == 1
