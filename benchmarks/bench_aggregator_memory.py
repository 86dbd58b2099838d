"""Memory of the aggregator while 100 clients report 6,603,710 parameters each (FedLess's FEMNIST CNN, 26.4 MB).

The aggregator is the real one; the clients are simulated in this process, but enroll, wait on MQTT, check in and
report over mTLS as devices do. Reports are added as they arrive: what is held must not grow with the clients.
Reference, in the same run: the resident memory of the idle aggregator before the run. Goal: under 150 MB above idle;
holding every reply, as Flower 1.41 does, would take 2,640 MB.
"""

from __future__ import annotations

import argparse
import hashlib
import selectors
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil

from edge_runtime.enroll import enroll
from edge_runtime.keystore import Keystore
from edge_runtime.link import Link
from edge_runtime.wake import WakeLine
from fedless.console.link import open_link
from fedless.experiments.fleet import LocalFleet
from fedless.experiments.run import train
from fedless.protocol import manifest, wire
from fedless.protocol.messages import CHUNK_BYTES, CheckIn, Encoding, Offer, ReportHeader, Ticket

CLIENTS = 100
PARAMETERS = 6_603_710
AT_ONCE = 16
SAMPLE_S = 0.05


def main() -> None:
    """Enroll, run one round, watch the aggregator's memory."""
    parser = argparse.ArgumentParser(description="Memory of the aggregator during one large round.")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    clients = parser.parse_args().clients
    with (
        harness.scratch() as folder,
        harness.quiet() as progress,
        LocalFleet(folder / "fleet", [], open_link) as fleet,
    ):
        function = write_function(folder / "function")
        states = enroll_all(fleet, folder / "clients", clients)
        crowd = Crowd(states, update())
        crowd.start()
        idle = psutil.Process(fleet.aggregator.process.pid).memory_info().rss / harness.MB
        harness.say(f"idle aggregator: {idle:.1f} MB; the round begins")
        watch = Watch(fleet.aggregator.process.pid)
        watch.start()
        task = harness.task("memory", 1, clients)
        info, rounds = train(fleet, fleet.operator(), function, task, b"", folder / "rounds.jsonl", progress)
        watch.stopped.set()
        crowd.stopped.set()
        watch.join()
        crowd.join()
        reported_peak = fleet.operator().info().peak_rss_mb
    if info.state != "finished" or rounds[0]["reported"] != clients:
        message = f"the round did not take every report: {rounds}; {crowd.errors[:3]}"
        raise SystemExit(message)
    harness.finish(
        "aggregator_memory",
        peak_rss_mb=round(watch.peak_mb, 1),
        peak_rss_mb_as_the_service_says=round(reported_peak, 1),
        reference={
            "idle_rss_mb": round(idle, 1),
            "all_replies_mb": round(clients * 4 * PARAMETERS / harness.MB),
        },
        above_idle_mb=round(watch.peak_mb - idle, 1),
        ratio=round(watch.peak_mb / idle, 2),
        model_mb=round(4 * PARAMETERS / harness.MB, 1),
        round_s=rounds[0]["seconds"],
        ingest_mb_per_s=round(clients * 4 * PARAMETERS / harness.MB / rounds[0]["seconds"]),
        phases_ms={name: round(ms, 1) for name, ms in rounds[0]["phases_ms"].items()},
        goal_above_idle_mb=150,
        clients=clients,
        clients_at_once=AT_ONCE,
        parameters=PARAMETERS,
    )


def write_function(folder: Path) -> Path:
    """A function with that many parameters; nobody runs it, so its graph is the MNIST example's."""
    folder.mkdir()
    initial = np.zeros(PARAMETERS, "<f4").tobytes()
    described = manifest.Manifest(
        name="large",
        version=1,
        model=manifest.Model(
            parameters=PARAMETERS,
            batch=32,
            loss="none",
            initial_sha256=hashlib.sha256(initial).hexdigest(),
            tensors=(manifest.Tensor("all", (PARAMETERS,), 0),),
            inputs=(manifest.Input("x", (28, 28)),),
            labels=(manifest.Label("y"),),
        ),
    )
    (folder / manifest.MANIFEST_FILE).write_text(manifest.dump(described))
    (folder / manifest.INITIAL_FILE).write_bytes(initial)
    (folder / manifest.GRAPH_FILE).write_bytes(
        (harness.MNIST / "function" / manifest.GRAPH_FILE).read_bytes()
    )
    return folder


def enroll_all(fleet: LocalFleet, folder: Path, clients: int) -> list[Path]:
    """The state directories of freshly enrolled clients."""
    claims = fleet.operator().issue_claims([f"client-{number:03d}" for number in range(clients)])
    for client_id, claim in claims.items():
        enroll(folder / client_id, claim)
    return [folder / client_id for client_id in claims]


def update() -> bytes:
    """One client's update; all send the same."""
    return np.random.default_rng(1).standard_normal(PARAMETERS, np.float32).astype("<f4").tobytes()


class Crowd(threading.Thread):
    """The clients: all wait on MQTT in this thread, `AT_ONCE` of them report at a time."""

    def __init__(self, states: list[Path], payload: bytes) -> None:
        super().__init__(daemon=True)
        self._states = states
        self._payload = payload
        self._digest = hashlib.sha256(payload).digest()
        self._online = 0
        self.stopped = threading.Event()
        self.errors: list[str] = []

    def start(self) -> None:
        """Connect everybody; returns when all are online."""
        super().start()
        give_up_at = time.monotonic() + 60
        while self._online < len(self._states):
            if time.monotonic() > give_up_at:
                raise SystemExit(f"only {self._online} clients are online")
            time.sleep(0.05)

    def run(self) -> None:
        """Wait for wake-ups until stopped."""
        with ThreadPoolExecutor(AT_ONCE) as pool, selectors.DefaultSelector() as selector:
            for state in self._states:
                line = self._connect(state, pool)
                assert line.socket is not None
                selector.register(line.socket, selectors.EVENT_READ, line)
            while not self.stopped.is_set():
                for key, _ in selector.select(timeout=0.2):
                    key.data.read()

    def _connect(self, state: Path, pool: ThreadPoolExecutor) -> WakeLine:
        def woken(mid: int, data: bytes) -> None:
            line.acknowledge(mid)
            pool.submit(self._report, state, data)

        def changed(connected: bool, reason: str) -> None:  # noqa: FBT001 - WakeLine's callback
            del reason
            self._online += connected

        line = WakeLine(str(state), 600, 8, woken, changed)
        line.connect()
        return line

    def _report(self, state: Path, data: bytes) -> None:
        try:
            ticket = wire.ticket_from_bytes(wire.signed_ticket_from_bytes(data).ticket)
            own = Keystore(state).load()
            with Link(
                ticket.endpoints, own.server_name, own.key_pem, own.chain_pem, own.authority_pem
            ) as link:
                self._send(link, ticket)
        except Exception as error:  # noqa: BLE001 - a thread of a pool: told at the end
            self.errors.append(f"{state.name}: {error}")

    def _send(self, link: Link, ticket: Ticket) -> None:
        if not isinstance(link.check_in(CheckIn(ticket.round_id, ticket.nonce)), Offer):
            raise SystemExit("not admitted")
        header = ReportHeader(
            ticket.round_id,
            Encoding.FLOAT32,
            len(self._payload),
            self._digest,
            examples=10,
            sums={"loss": 1.0},
        )
        offset, _ = link.begin_report(header)
        link.put_report(ticket.round_id, offset, self._chunks(offset))

    def _chunks(self, offset: int) -> Iterator[bytes]:
        for start in range(offset, len(self._payload), CHUNK_BYTES):
            yield self._payload[start : start + CHUNK_BYTES]


class Watch(threading.Thread):
    """The highest resident memory of a process while it is watched."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process = psutil.Process(pid)
        self.stopped = threading.Event()
        self.peak_mb = 0.0

    def run(self) -> None:
        """Look often enough to see every report's arrival."""
        while not self.stopped.wait(SAMPLE_S):
            rss: Any = self._process.memory_info().rss
            self.peak_mb = max(self.peak_mb, rss / harness.MB)


if __name__ == "__main__":
    main()
