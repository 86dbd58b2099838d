"""From kill -9 in the middle of a round to work that goes on: of the aggregator, its broker, PostgreSQL, a device.

Two devices train the MLP of the example, round after round, and a round needs both. In `KILLS` rounds for each victim,
as soon as the round is open, the victim is killed and started again at once (the broker by its aggregator): with the
aggregator its broker falls as well, with a device its participant and training. Measured from the kill: the next
report is accepted (`next_report_s`); the first round that opened after the kill is committed (`next_round_s`), so that
everything has found its way back; for the aggregator also the service is ready again (`ready_s`). Beside them, of the
same run: a round that nothing disturbs. The reference for `ready_s` is a plain process of the same interpreter that
imports what the aggregator imports, and ends. Usage: `python benchmarks/bench_recovery.py [--kills N]`.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import harness
import numpy as np
import psutil
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from fedless.authoring.sign import initial_weights, pack_and_sign
from fedless.console.link import open_link
from fedless.experiments.fleet import Device, LocalFleet

sys.path.insert(0, str(harness.ROOT))
from tests.restartable import Restartable

if TYPE_CHECKING:
    from tests.postgresql import Server

DEVICES, KILLS, UNDISTURBED, BOUND_S = 2, 5, 5, 120.0
FUNCTION = harness.MNIST / "function-mlp"
IMPORTS = "import aggregator.main, fedless.console.main"


def main() -> None:
    """Measure the reference, then every victim on both databases."""
    parser = argparse.ArgumentParser(description="Recovery after kill -9.")
    parser.add_argument("--kills", type=int, default=KILLS, help="of each victim, on each database")
    kills = parser.parse_args().kills
    floor = harness.middle([start_s() for _ in range(5)], 3)
    found = {kind: measure(kind, kills) for kind in ("sqlite", "postgresql")}
    ratios = {
        f"ratio_{kind}_ready": round(figures["aggregator"]["ready_s"] / floor, 2)
        for kind, figures in found.items()
        if "aggregator" in figures
    }
    harness.finish(
        "recovery",
        **found,
        reference={"start_s": floor, "what": "a process that imports what the aggregator imports, and ends"},
        **ratios,
        kills=kills,
        devices=DEVICES,
    )


def start_s() -> float:
    """The reference once, in seconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, cwd=harness.ROOT)
    return time.monotonic() - began


def measure(kind: str, kills: int) -> dict[str, Any]:
    """Medians and the worst of all kills of each victim, in seconds; or why there is no figure."""
    with harness.scratch() as folder, contextlib.ExitStack() as exits:
        url, database, environment = (
            f"sqlite:///{folder / 'fleet' / 'fleet' / 'state' / 'fedless.db'}",
            None,
            {},
        )
        if kind == "postgresql":
            try:
                database = exits.enter_context(server())
            except ImportError as error:
                return {
                    "skipped": f"needs {error.name}: run it in the contributors' environment (.venv-test)"
                }
            url = database.url()
            environment = {"FEDLESS__STATE__DATABASE": url}
        devices = [Device(f"edge-{number}", harness.images(40)) for number in range(1, DEVICES + 1)]
        fleet = exits.enter_context(LocalFleet(folder / "fleet", devices, open_link, environment=environment))
        onlooker = exits.enter_context(closing(Onlooker(url)))
        begin(fleet)
        victims = Victims(fleet, database)
        draw, figures = np.random.default_rng(1), {"undisturbed": {"round_s": undisturbed(onlooker)}}
        for name, kill in victims.kinds.items():
            times = []
            for number in range(1, kills + 1):
                harness.say(f"{kind}: {name}, kill {number} of {kills}")
                times.append(one_kill(kill, victims, onlooker, float(draw.uniform(0, 0.3))))
            figures[name] = spread(times)
    return figures


def undisturbed(onlooker: Onlooker) -> float:
    """Seconds of a round, the median of a few."""
    took = []
    for _ in range(UNDISTURBED + 1):
        rounds, began = onlooker.committed(), time.monotonic()
        until(lambda rounds=rounds: onlooker.committed() > rounds)
        took.append(time.monotonic() - began)
    return harness.middle(took[1:], 3)


def spread(times: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median and the worst of each figure."""
    found = {}
    for name in times[0]:
        values = [one[name] for one in times]
        found |= {name: harness.middle(values, 3), f"worst_{name}": round(max(values), 3)}
    return found


class Victims:
    """What can be killed: each kills it, begins to start it again, and returns."""

    def __init__(self, fleet: LocalFleet, database: Server | None) -> None:
        self._fleet = fleet
        self._restartable = Restartable(fleet)
        self.kinds: dict[str, Callable[[], None]] = {
            "aggregator": self._aggregator,
            "broker": self._broker,
            "device": self._device,
        }
        if database is not None:
            self.kinds["postgresql"] = lambda: _restart(database)

    def is_ready(self) -> bool:
        """Whether the aggregator says where it listens."""
        return self._restartable.endpoints.is_file()

    def _aggregator(self) -> None:
        self._restartable.kill()
        self._restartable.start(wait=False)

    def _broker(self) -> None:
        aggregator = psutil.Process(self._fleet.aggregator.process.pid)
        for child in aggregator.children(recursive=True):
            if child.name() == "mosquitto":
                child.kill()

    def _device(self) -> None:
        self._fleet.kill_device("edge-1")
        self._fleet.start_agent("edge-1")


def _restart(database: Server) -> None:
    database.stop(signal.SIGKILL)
    database.start()


def one_kill(
    kill: Callable[[], None], victims: Victims, onlooker: Onlooker, later_s: float
) -> dict[str, float]:
    """Kills in a round that has just opened; seconds until the next report counts, and the next round is committed."""
    opened = onlooker.newest()
    until(lambda: onlooker.newest() > opened)
    time.sleep(later_s)
    reports, last, began = onlooker.reports(), onlooker.newest(), time.monotonic()
    kill()
    times: dict[str, float] = {}
    if not victims.is_ready():
        until(victims.is_ready)
        times["ready_s"] = time.monotonic() - began
    until(lambda: onlooker.reports() > reports)
    times["next_report_s"] = time.monotonic() - began
    until(lambda: onlooker.committed_after(last))
    times["next_round_s"] = time.monotonic() - began
    return times


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
    """Reads the database, whether or not an aggregator lives; one that is away has nothing new."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        self._known: dict[str, int] = {}

    def newest(self) -> int:
        """The id of the round that was opened last."""
        return self._number("SELECT max(round_id) FROM rounds")

    def committed(self) -> int:
        """How many rounds have a model."""
        return self._number("SELECT count(*) FROM rounds WHERE phase = 'committed'")

    def committed_after(self, round_id: int) -> bool:
        """Whether a later round has a model."""
        return self._number("SELECT max(round_id) FROM rounds WHERE phase = 'committed'") > round_id

    def reports(self) -> int:
        """How many were accepted."""
        return self._number("SELECT count(*) FROM events WHERE event = 'report_arrived'")

    def _number(self, query: str) -> int:
        with contextlib.suppress(DBAPIError), self._engine.connect() as connection:
            self._known[query] = int(connection.scalar(text(query)) or 0)
        return self._known.get(query, 0)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()


@contextmanager
def server() -> Iterator[Server]:
    """A database server of its own."""
    from tests.postgresql import started

    running = started(_free_port)
    try:
        yield running
    finally:
        running.remove()


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
