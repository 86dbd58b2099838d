"""Masked runs of real processes: kill -9 of the aggregator in each phase; the run goes on by itself.

(A device that drops out of a masked experiment is in test_experiment.py.)
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.store.engine import Database
from aggregator.store.masks import load_masked
from fedless.authoring.sign import initial_weights, pack_and_sign
from fedless.console.link import open_link
from fedless.experiments import datasets
from fedless.experiments.config import Data
from fedless.experiments.fleet import Device, LocalFleet
from fedless.protocol.tables import write_tables
from tests.restartable import Restartable, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]

MNIST = Path(__file__).parents[2] / "examples" / "mnist"
FUNCTION = MNIST / "function-mlp"
DEVICES, ROUNDS = 8, 4
PARAMETERS = 101_770
BOUND_S = 120.0
SETTING_UP = {"key_epoch_opened", "keys_arrived", "roster_made", "shares_arrived"}
"""As long as one of these is the newest event, a key epoch is being set up."""


def examples(count: int) -> bytes:
    data = Data("idx", MNIST / "data", MNIST / "data", count, "y")
    return datasets.to_npz(datasets.load(data, seed=1).train)


def task() -> str:
    return write_tables(
        {
            "name": "masked",
            "function": "function.bundle",
            "rounds": ROUNDS,
            "cohort": {"size": DEVICES, "over_selection": 1.0},
            "round": {"deadline_s": 60},
            "secagg": {"setup_s": 40, "unmask_s": 60},
            "evaluation": {"central_every": 0},
        }
    )


class Onlooker:
    """Reads the aggregator's database while it lives, and when it is dead."""

    def __init__(self, fleet: LocalFleet) -> None:
        self.file = fleet.aggregator_folder / "state" / "fedless.db"

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=5)) as connection:
            return connection.execute(query).fetchall()

    def newest_event(self) -> str:
        found = self.rows("SELECT event FROM events ORDER BY sequence DESC LIMIT 1")
        return str(found[0][0]) if found else ""

    def phase(self) -> str:
        found = self.rows("SELECT phase FROM rounds ORDER BY round_id DESC LIMIT 1")
        return str(found[0][0]) if found else ""

    def count(self, event: str) -> int:
        return int(self.rows(f"SELECT count(*) FROM events WHERE event = '{event}'")[0][0])


@pytest.mark.long
def test_aggregator_killed_in_each_phase_goes_on_by_itself(tmp_path: Path) -> None:
    devices = [Device(f"edge-{number}", examples(40)) for number in range(1, DEVICES + 1)]
    with LocalFleet(tmp_path / "fleet", devices, open_link) as fleet:
        restartable, onlooker, operator = Restartable(fleet), Onlooker(fleet), fleet.operator()
        bundle = pack_and_sign(FUNCTION, fleet.aggregator_folder / "publisher" / "publisher.key")
        run = operator.start_run(task(), operator.put(bundle), operator.put(initial_weights(FUNCTION)), b"")
        operator.close()
        phases: dict[str, Callable[[], bool]] = {
            "set-up": lambda: onlooker.newest_event() in SETTING_UP and onlooker.count("keys_arrived") >= 2,
            "collecting": lambda: onlooker.phase() == "collecting" and onlooker.count("report_arrived") >= 2,
            "unmasking": lambda: onlooker.phase() == "unmasking",
        }
        left_in = []
        for in_phase in phases.values():
            until(in_phase, fleet, pause_s=0.002)
            restartable.kill()
            left_in.append((onlooker.newest_event(), onlooker.phase()))
            restartable.start()
        assert left_in[0][0] in SETTING_UP
        assert left_in[1][1] in {"collecting", "grace"}
        assert left_in[2][1] == "unmasking"
        until(lambda: onlooker.rows("SELECT state FROM runs")[0][0] != "running", fleet)
        with open_link(fleet.aggregator_folder) as link:
            info = link.run(run.run_id)
            model = b"".join(link.fetch(info.model_digest))
    assert (info.state, info.model_version) == ("finished", ROUNDS), info.reason
    assert np.isfinite(np.frombuffer(model, "<f4")).all()
    assert len(model) == 4 * PARAMETERS
    check_rounds(onlooker, info)


def check_rounds(onlooker: Onlooker, info: Any) -> None:
    """Nothing accepted was lost or counted twice: each round's sum is of exactly the reports that were accepted."""
    assert {round_.mode for round_ in info.rounds} == {"pairwise"}
    committed = [round_ for round_ in info.rounds if round_.state == "committed"]
    assert [round_.number for round_ in committed] == list(range(1, ROUNDS + 1))
    database = Database.open(f"sqlite:///{onlooker.file}")
    for round_ in committed:
        [masked] = database.run_now(partial(load_masked, round_id=round_.round_id))
        assert masked.result is not None
        assert masked.result.survivors == round_.reported >= 6
        assert all(answer.shares == b"" for answer in masked.responses)
    database.close()
