"""From the wake-up's arrival on a device to its first training step: MNIST CNN, one device, otherwise idle machine.

The device starts a participant and a training instance, verifies the ticket, checks in over mTLS, reads bundle and
model (both cached after the first round) and does one step. Reference, in the same run: a plain process that imports
the TFLite runtime, loads the same graph and does the same step. Goal: 600 ms or less.
"""

from __future__ import annotations

import time

import harness

from fedless.console.link import open_link
from fedless.experiments.fleet import Device, LocalFleet
from fedless.experiments.run import train

ROUNDS = 12
REFERENCES = 7
FUNCTION = harness.MNIST / "function"
PLAIN = """
import sys
import numpy as np
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter
grad = Interpreter(model_path=sys.argv[1], num_threads=1).get_signature_runner("grad")
inputs = {name: np.zeros(d["shape"], d["dtype"]) for name, d in grad.get_input_details().items()}
inputs["params"][:] = np.fromfile(sys.argv[2], "<f4")
grad(**inputs)
print("stepped", flush=True)
"""


def main() -> None:
    """Measure rounds of one device, then plain processes."""
    with (
        harness.scratch() as folder,
        harness.quiet() as progress,
        LocalFleet(folder / "fleet", [Device("edge-1", harness.images(32))], open_link) as fleet,
    ):
        harness.wait_idle()
        task = harness.task("cold-start", ROUNDS, 1, max_steps=1)
        _, rounds = train(fleet, fleet.operator(), FUNCTION, task, b"", folder / "rounds.jsonl", progress)
    clients = [entry["clients"]["edge-1"] for entry in rounds]
    steps = [client["timings_ms"]["first_step"] for client in clients]
    reference = [plain_ms() for _ in range(REFERENCES)]
    cached, plain = harness.middle(steps[1:], 1), harness.middle(reference, 1)
    harness.finish(
        "cold_start",
        first_step_ms={"first_round_with_downloads": round(steps[0], 1), "median_later_rounds": cached},
        slowest_ms=round(max(steps[1:]), 1),
        starts=[client["start"] for client in clients],
        phases_ms={
            name: harness.middle([client["timings_ms"].get(name, 0.0) for client in clients[1:]], 1)
            for name in clients[-1]["timings_ms"]
        },
        reference={"plain_tflite_process_ms": plain, "what": "python, numpy, TFLite runtime, the same step"},
        ratio=round(cached / plain, 2),
        goal_ms=600,
        rounds=ROUNDS,
    )


def plain_ms() -> float:
    """Milliseconds from starting a plain process to its first step's end."""
    started = time.monotonic()
    with harness.python(PLAIN, str(FUNCTION / "model.tflite"), str(FUNCTION / "initial.f32")) as process:
        harness.line_of(process)
        return (time.monotonic() - started) * 1000


if __name__ == "__main__":
    main()
