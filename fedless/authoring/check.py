"""The author's gate: nothing is signed that crashes a device or computes something else there.

Three parts. `inspect_graph` reads the .tflite and refuses what crashes a runtime: rank-0 inputs, more than
four dimensions, a dynamic batch, large embedded constants. `compare` runs one step with the TFLite runtime in
a subprocess (an abort of the runtime must not take the author's process with it), against TensorFlow. `learn`
trains a few steps on data of the author's.

`python -m fedless.authoring.check DIR` is that subprocess: it needs numpy and a TFLite runtime, not
tensorflow, and so runs on either runtime.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import instance
from edge_runtime.jobs import Job, JobKind
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.manifest import GRAPH_FILE, INITIAL_FILE
from fedless.protocol.messages import ClientRule, Optimizer

if TYPE_CHECKING:
    from fedless.authoring.model import Model

TOLERANCE = 1e-6
MAX_DIMENSIONS = 4
MAX_CONSTANT_BYTES = 256 * 1024
_TIMEOUT_S = 300
_STEPS = 30
_CASE_FILE = "case.npz"


@dataclass(frozen=True)
class Agreement:
    """One step on a runtime; `gradient_error` is the largest difference, relative to values above 1."""

    runtime: str
    gradient_error: float
    peak_memory_mb: int


def inspect_graph(graph: bytes) -> None:
    """Raises `LocalError(MODEL_NOT_PORTABLE)` with everything that is wrong with the .tflite."""
    from tensorflow.lite.python import schema_py_generated as schema  # noqa: PLC0415  (needs tensorflow)

    model = schema.ModelT.InitFromPackedBuf(graph, 0)
    complaints: list[str] = []
    constants = 0
    for subgraph in model.subgraphs:
        for index, tensor in enumerate(subgraph.tensors):
            name = (tensor.name or b"?").decode(errors="replace")
            shape = [] if tensor.shape is None else list(tensor.shape)
            signature = [] if tensor.shapeSignature is None else list(tensor.shapeSignature)
            if index in list(subgraph.inputs) and not shape:
                complaints.append(f"the input {name} has rank 0: give it the shape [1]")
            if len(shape) > MAX_DIMENSIONS:
                complaints.append(f"{name} has {len(shape)} dimensions: at most {MAX_DIMENSIONS}, so reshape")
            if -1 in signature:
                complaints.append(f"{name} has a dynamic dimension: the batch must be static")
            data = model.buffers[tensor.buffer].data
            constants += 0 if data is None else len(data)
    if constants > MAX_CONSTANT_BYTES:
        complaints.append(
            f"constants take {constants} bytes, at most {MAX_CONSTANT_BYTES}: "
            "weights belong into the flat vector, and tf.zeros([P]) is written params * 0.0"
        )
    if complaints:
        raise LocalError(Code.MODEL_NOT_PORTABLE, "; ".join(dict.fromkeys(complaints)) + ".")


def compare(model: Model, graph: bytes, python: str = sys.executable) -> Agreement:
    """One step of each signature on the runtime of the interpreter `python` against TensorFlow.

    Raises `LocalError(MODEL_NOT_PORTABLE)` if the runtime dies or differs by `TOLERANCE` or more.
    """
    with tempfile.TemporaryDirectory(prefix="fedless-check-") as directory:
        folder = Path(directory)
        (folder / GRAPH_FILE).write_bytes(graph)
        expected = _case(model, folder)
        report = _run(folder, python)
    error = max(report["errors"].values())
    if set(report["errors"]) != expected or not error < TOLERANCE:
        raise LocalError(
            Code.MODEL_NOT_PORTABLE,
            f"On {report['runtime']} one step differs from TensorFlow: {report['errors']}; "
            f"less than {TOLERANCE} is needed.",
        )
    return Agreement(report["runtime"], report["errors"]["grad/grad"], report["peak_memory_mb"])


def learn(function_dir: Path, data: Mapping[str, object]) -> tuple[float, float]:
    """The mean loss on the author's data (a data source of `edge_runtime.data`) before and after a few steps.

    Raises `LocalError(MODEL_NOT_PORTABLE)` if it does not fall, and what an instance raises (DATA_*, ...).
    """
    weights = function_dir / INITIAL_FILE
    rule = ClientRule(Optimizer.ADAM, 1e-3, local_epochs=_STEPS, max_steps=_STEPS)
    before = _mean_loss(Job(JobKind.EVALUATE, str(function_dir), str(weights), data))
    trained = instance.invoke(
        Job(JobKind.TRAIN, str(function_dir), str(weights), data, rule), timeout_ms=_TIMEOUT_S * 1000
    )
    after_file = function_dir / "after.f32"
    (np.fromfile(weights, "<f4") + np.frombuffer(trained.payload, "<f4")).tofile(after_file)
    after = _mean_loss(Job(JobKind.EVALUATE, str(function_dir), str(after_file), data))
    if not after < before:
        raise LocalError(
            Code.MODEL_NOT_PORTABLE,
            f"{trained.steps} steps on the given data do not lower the loss: {before:.4g}, then {after:.4g}.",
            fix="Check labels and value ranges, then the model.",
        )
    return before, after


def _mean_loss(job: Job) -> float:
    outcome = instance.invoke(job, timeout_ms=_TIMEOUT_S * 1000)
    return outcome.sums["loss"] / outcome.examples


def _case(model: Model, folder: Path) -> set[str]:
    """Random inputs and TensorFlow's outputs for all signatures, as arrays `signature/in|out/name`."""
    import tensorflow as tf  # noqa: PLC0415  (the subprocess does without)

    random = np.random.Generator(np.random.PCG64(1))
    arrays: dict[str, NDArray[Any]] = {}
    functions = {
        "grad": (model.grad, model.specs(labels=True, masks=True)),
        "evaluate": (model.evaluate, model.specs(labels=True, masks=False)),
        "infer": (model.infer, model.specs(labels=False, masks=False)),
    }
    expected = set()
    for signature, (function, specs) in functions.items():
        inputs = _inputs(model, specs, random)
        outputs = function({name: tf.constant(value) for name, value in inputs.items()})
        arrays |= {f"{signature}/in/{name}": value for name, value in inputs.items()}
        arrays |= {f"{signature}/out/{name}": value.numpy() for name, value in outputs.items()}
        expected |= {f"{signature}/{name}" for name in outputs}
    np.savez(folder / _CASE_FILE, **arrays)  # type: ignore[arg-type]
    return expected


def _inputs(model: Model, specs: Mapping[str, Any], random: np.random.Generator) -> dict[str, NDArray[Any]]:
    keeps = {item.name: item.keep for item in model.randomness}
    values: dict[str, NDArray[Any]] = {}
    for name, spec in specs.items():
        shape = tuple(spec.shape)
        if name == "params":
            values[name] = model.initial
        elif name == "weight":
            values[name] = (np.arange(shape[0]) < max(1, shape[0] - 1)).astype(np.float32)
        elif name in keeps:
            values[name] = (random.random(shape) < keeps[name]).astype(np.float32) / np.float32(keeps[name])
        elif spec.dtype.is_integer:
            classes = model.label.classes if name == "y" else int(model.input.maximum or 0) + 1
            values[name] = random.integers(0, classes, shape).astype(np.int32)
        else:
            bounds = (model.input.minimum, model.input.maximum) if name != "y" else (None, None)
            low, high = (0.0, 1.0) if bounds[0] is None or bounds[1] is None else (bounds[0], bounds[1])
            values[name] = random.uniform(low, high, shape).astype(np.float32)
    return values


def _run(folder: Path, python: str) -> dict[str, Any]:
    done = subprocess.run(
        [python, "-P", "-m", "fedless.authoring.check", str(folder)],
        capture_output=True,
        check=False,
        timeout=_TIMEOUT_S,
        env=instance.environment(),
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-400:]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        raise LocalError(Code.MODEL_NOT_PORTABLE, f"The TFLite runtime died of it ({how}): {said}")
    report: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return report


def main(folder: Path) -> None:
    """The subprocess: run the case, print one line of JSON (runtime, errors by output, peak_memory_mb)."""
    from edge_runtime import trainer  # noqa: PLC0415  (imports the runtime, which only this process needs)

    errors: dict[str, float] = {}
    with np.load(folder / _CASE_FILE) as case:
        for signature in sorted({name.split("/")[0] for name in case.files}):
            graph = trainer.Graph(folder / GRAPH_FILE, signature, 1)
            prefix = f"{signature}/in/"
            inputs = {name.removeprefix(prefix): case[name] for name in case.files if name.startswith(prefix)}
            for name, value in graph(**inputs).items():
                expected = case[f"{signature}/out/{name}"]
                scale = max(1.0, float(np.abs(expected).max()))
                errors[f"{signature}/{name}"] = float(np.abs(value - expected).max()) / scale
    report = {
        "runtime": trainer.runtime_name(),
        "errors": errors,
        "peak_memory_mb": round(trainer.peak_rss_mb()),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
