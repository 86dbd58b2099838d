"""What masks cost from end to end: the demo's rounds, masked and plain in turn, on one fleet in one run.

10 devices train the MNIST CNN (582,026 parameters) on 500 images each, 2 local epochs, batch 32, as `make demo` does.
Runs of `ROUNDS` rounds in plain and in pairwise mode follow each other, so that a busy machine burdens both; the figure
is the ratio of the medians, of a round's seconds and of the CPU seconds of all processes. The set-up of key epochs,
which precedes rounds, is in the CPU seconds and in `run_s`, not in a round's. Goal: under 10 % of a round's time.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np

from fedless.console.link import open_link
from fedless.experiments.fleet import Device, LocalFleet
from fedless.experiments.run import train
from fedless.protocol.tables import write_tables

DEVICES, IMAGES, ROUNDS, TURNS = 10, 500, 3, 3
FUNCTION = harness.MNIST / "function"


def main() -> None:
    """Measure both, in turn."""
    devices = [Device(f"edge-{number:02d}", harness.images(IMAGES), {}) for number in range(1, DEVICES + 1)]
    found: dict[str, list[dict[str, Any]]] = {"plain": [], "pairwise": []}
    with (
        harness.scratch() as folder,
        harness.quiet() as progress,
        LocalFleet(folder / "fleet", devices, open_link) as fleet,
    ):
        pids = [child.process.pid for child in (*fleet.agents.values(), fleet.aggregator)]
        for turn in range(TURNS):
            for mode, results in found.items():
                harness.say(f"turn {turn + 1} of {TURNS}: {mode}")
                cpu, began = harness.family_cpu_s(pids), time.monotonic()
                file = folder / f"{mode}-{turn}.jsonl"
                function = fresh(folder / f"function-{mode}-{turn}", len(results))
                _, rounds = train(fleet, fleet.operator(), function, task(mode), b"", file, progress)
                if any(entry["state"] != "committed" for entry in rounds):
                    message = f"a round was not committed: {[entry['reason'] for entry in rounds]}"
                    raise RuntimeError(message)
                seconds = [entry["seconds"] for entry in rounds]
                cpu = (harness.family_cpu_s(pids) - cpu) / ROUNDS
                results.append({"round_s": seconds, "cpu_s": cpu, "run_s": time.monotonic() - began})
    figures = {mode: summary(results) for mode, results in found.items()}
    harness.finish(
        "masking",
        **figures,
        ratio_round=round(figures["pairwise"]["round_s"] / figures["plain"]["round_s"], 3),
        ratio_cpu=round(figures["pairwise"]["cpu_s_per_round"] / figures["plain"]["cpu_s_per_round"], 3),
        goal={"ratio_round": 1.1},
        devices=DEVICES,
        rounds_measured=ROUNDS * TURNS,
    )


def fresh(folder: Path, turn: int) -> Path:
    """The demo's function with initial weights of its own: a device reports on a model once."""
    shutil.copytree(FUNCTION, folder)
    weights = np.fromfile(FUNCTION / "initial.f32", "<f4")
    weights[0] += np.float32(1e-4 * (turn + 1))
    weights.tofile(folder / "initial.f32")
    manifest = folder / "function.toml"
    old, new = (hashlib.sha256((at / "initial.f32").read_bytes()).hexdigest() for at in (FUNCTION, folder))
    manifest.write_text(manifest.read_text().replace(old, new))
    return folder


def task(mode: str) -> str:
    """The demo's task in one mode, without evaluation."""
    return write_tables(
        {
            "name": "masking",
            "function": "function.bundle",
            "mode": mode,
            "rounds": ROUNDS,
            "cohort": {"fraction": 1.0, "over_selection": 1.0, "minimum_reports": DEVICES},
            "evaluation": {"central_every": 0},
            "client": {"optimizer": "adam", "learning_rate": 0.001, "local_epochs": 2},
        }
    )


def summary(results: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over all rounds of all turns."""
    return {
        "round_s": harness.middle([seconds for result in results for seconds in result["round_s"]], 3),
        "cpu_s_per_round": harness.middle([result["cpu_s"] for result in results], 3),
        "run_s": harness.middle([result["run_s"] for result in results], 2),
    }


if __name__ == "__main__":
    main()
