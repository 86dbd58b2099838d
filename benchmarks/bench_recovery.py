"""From kill -9 of the aggregator in the middle of a round to the next report that is accepted, on either database.

Two devices train the MLP of the example, round after round; in each of `KILLS` rounds, as soon as it is open, the
aggregator is killed (its broker falls with it) and started again at once on the same ports. Measured from the kill: the
service is ready again; the next report is accepted, in the round that was open. What the devices need to find their way
back (a connection to the broker, a ticket, a training) is in the second figure. The reference is a plain process of the
same interpreter that imports what the aggregator imports, and ends. PostgreSQL runs beside it, and is not killed.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import harness
import numpy as np
from sqlalchemy import create_engine, text

from fedless.authoring.sign import initial_weights, pack_and_sign
from fedless.console.link import open_link
from fedless.experiments.fleet import Device, LocalFleet

sys.path.insert(0, str(harness.ROOT))
from tests.restartable import Restartable

DEVICES, KILLS, BOUND_S = 2, 5, 120.0
FUNCTION = harness.MNIST / "function-mlp"
IMPORTS = "import aggregator.main, fedless.console.main"


def main() -> None:
    """Measure the reference, SQLite and PostgreSQL."""
    floor = harness.middle([start_s() for _ in range(5)], 3)
    sqlite = measure("sqlite")
    postgresql = measure("postgresql")
    harness.finish(
        "recovery",
        sqlite=sqlite,
        postgresql=postgresql,
        reference={"start_s": floor, "what": "a process that imports what the aggregator imports, and ends"},
        ratio_sqlite_ready=round(sqlite["ready_s"] / floor, 2),
        ratio_postgresql_ready=round(postgresql["ready_s"] / floor, 2) if "ready_s" in postgresql else None,
        kills=KILLS,
        devices=DEVICES,
    )


def start_s() -> float:
    """The reference once, in seconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, cwd=harness.ROOT)
    return time.monotonic() - began


def measure(kind: str) -> dict[str, Any]:
    """Medians and the worst of all kills, in seconds; or why there is no figure."""
    with harness.scratch() as folder, contextlib.ExitStack() as exits:
        url = f"sqlite:///{folder / 'fleet' / 'fleet' / 'state' / 'fedless.db'}"
        environment = {}
        if kind == "postgresql":
            try:
                url = exits.enter_context(server())
            except ImportError as error:
                return {
                    "skipped": f"needs {error.name}: run it in the contributors' environment (.venv-test)"
                }
            environment = {"FEDLESS__STATE__DATABASE": url}
        devices = [Device(f"edge-{number}", harness.images(40)) for number in range(DEVICES)]
        fleet = exits.enter_context(LocalFleet(folder / "fleet", devices, open_link, environment=environment))
        restartable, database = Restartable(fleet), Onlooker(url)
        begin(fleet)
        draw, kills = np.random.default_rng(1), []
        for _ in range(KILLS):
            harness.say(f"{kind}: kill {len(kills) + 1} of {KILLS}")
            kills.append(one_kill(restartable, database, float(draw.uniform(0, 0.3))))
        database.close()
    ready, accepted = zip(*kills, strict=True)
    return {
        "ready_s": harness.middle(ready, 3), "next_report_s": harness.middle(accepted, 3),
        "worst_ready_s": round(max(ready), 3), "worst_next_report_s": round(max(accepted), 3),
    }  # fmt: skip


def one_kill(restartable: Restartable, database: Onlooker, later_s: float) -> tuple[float, float]:
    """Kills a round that has just opened; seconds until the service is ready, and until the next report counts."""
    rounds = database.rounds()
    until(lambda: database.rounds() > rounds)
    time.sleep(later_s)
    began = time.monotonic()
    restartable.kill()
    reports = database.reports()
    restartable.start(wait=False)
    until(restartable.endpoints.is_file)
    ready = time.monotonic() - began
    until(lambda: database.reports() > reports)
    return ready, time.monotonic() - began


def begin(fleet: LocalFleet) -> None:
    """Start a run that lasts longer than this."""
    with open_link(fleet.aggregator_folder) as operator:
        bundle = pack_and_sign(FUNCTION, fleet.aggregator_folder / "publisher" / "publisher.key")
        weights = operator.put(initial_weights(FUNCTION))
        task = harness.task("recovery", 1000, DEVICES)
        operator.start_run(task, operator.put(bundle), weights, b"")


def until(holds: Callable[[], bool]) -> None:
    """Ask every 10 ms, for a bounded time."""
    end = time.monotonic() + BOUND_S
    while not holds():
        if time.monotonic() > end:
            message = f"it did not happen within {BOUND_S:g} s"
            raise RuntimeError(message)
        time.sleep(0.01)


class Onlooker:
    """Reads the database, whether or not an aggregator lives."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    def rounds(self) -> int:
        """How many were opened."""
        return self._count("SELECT count(*) FROM rounds")

    def reports(self) -> int:
        """How many were accepted."""
        return self._count("SELECT count(*) FROM events WHERE event = 'report_arrived'")

    def _count(self, query: str) -> int:
        with self._engine.connect() as connection:
            return int(connection.scalar(text(query)) or 0)

    def close(self) -> None:
        """Closes the connection."""
        self._engine.dispose()


@contextmanager
def server() -> Iterator[str]:
    """The URL of a new database on a server of its own."""
    from tests.postgresql import started

    running = started(_free_port)
    try:
        yield running.url()
    finally:
        running.remove()


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
