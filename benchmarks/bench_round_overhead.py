"""What a round costs without its training: 10 devices x 582,026 float32, everything real.

Wake-ups over MQTT, ten participants and instances, mTLS, the model down, a report of 2.3 MB up, verified, spooled,
added, a new model. Each device does one step on one image, the least that its function can do (subtracted nowhere).
The machine's floor, in the same run: as many plain processes, as many at once as there are cores, that import what a
device needs, load the graph, do one step and hash a report. Goal: 3 s cold and at most twice the floor.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness

from fedless.console.link import open_link
from fedless.experiments.fleet import Device, LocalFleet
from fedless.experiments.run import train

DEVICES = 10
ROUNDS = 7
WARM_MB = 512
FUNCTION = harness.MNIST / "function"
FLOOR = """
import hashlib, sys
import numpy as np
import grpc, cryptography.x509, google.protobuf.message
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter
params = np.fromfile(sys.argv[2], "<f4")
grad = Interpreter(model_path=sys.argv[1], num_threads=1).get_signature_runner("grad")
inputs = {name: np.zeros(d["shape"], d["dtype"]) for name, d in grad.get_input_details().items()}
inputs["params"][:] = params
grad(**inputs)
print(hashlib.sha256(params).hexdigest(), flush=True)
"""


def main() -> None:
    """Measure the floor, cold rounds and warm rounds."""
    floors = [floor_s() for _ in range(3)]
    cold, warm = measure(0), measure(WARM_MB)
    floor = harness.middle(floors, 3)
    harness.finish(
        "round_overhead",
        cold=cold,
        warm=warm,
        reference={"floor_s": floor, "what": "10 plain TFLite processes, as many at once as cores"},
        ratio_cold=round(cold["round_s"]["median_later"] / floor, 2),
        ratio_warm=round(warm["round_s"]["median_later"] / floor, 2),
        goal={"cold_s": 3.0, "warm_s": 0.6, "ratio_cold": 2.0},
        anchors={"flower_1.41_round_s": [10.2, 17.0]},
        devices=DEVICES,
        parameters=582_026,
    )


def measure(warm_mb: int) -> dict[str, Any]:
    """Rounds of devices that keep so much between wake-ups."""
    settings = {"warm": {"memory_mb": warm_mb}}
    devices = [Device(f"edge-{number:02d}", harness.images(1), settings) for number in range(1, DEVICES + 1)]
    with (
        harness.scratch() as folder,
        harness.quiet() as progress,
        LocalFleet(folder / "fleet", devices, open_link) as fleet,
    ):
        harness.wait_idle()
        pids = [child.process.pid for child in (*fleet.agents.values(), fleet.aggregator)]
        cpu = harness.family_cpu_s(pids)
        task = harness.task("overhead", ROUNDS, DEVICES, max_steps=1)
        _, rounds = train(fleet, fleet.operator(), FUNCTION, task, b"", folder / "rounds.jsonl", progress)
        cpu = (harness.family_cpu_s(pids) - cpu) / ROUNDS
    seconds = [entry["seconds"] for entry in rounds]
    invocations = [client for entry in rounds[1:] for client in entry["clients"].values()]
    return {
        "round_s": {
            "first_with_downloads": round(seconds[0], 3),
            "median_later": harness.middle(seconds[1:], 3),
            "slowest_later": max(seconds[1:]),
        },
        "phases_ms": {name: round(ms, 1) for name, ms in rounds[-1]["phases_ms"].items()},
        "device_ms": {
            name: harness.middle([client["timings_ms"].get(name, 0.0) for client in invocations], 1)
            for name in sorted(invocations[0]["timings_ms"])
        },
        "starts": {kind: sum(c["start"] == kind for c in invocations) for kind in ("cold", "warm")},
        "cpu_s_per_round": round(cpu, 3),
        "cpu_bound_s": round(cpu / (os.cpu_count() or 1), 3),
    }


def floor_s() -> float:
    """Seconds that the plain processes take."""

    def one(_: int) -> None:
        with harness.python(FLOOR, str(FUNCTION / "model.tflite"), str(FUNCTION / "initial.f32")) as process:
            harness.line_of(process)

    started = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, range(DEVICES)))
    return time.monotonic() - started


if __name__ == "__main__":
    main()
