"""The instance: one process that runs one job on a bundle's graph with the TFLite runtime, and ends.

Started by `instance` as `python -m edge_runtime.trainer --fd N`; everything goes over that socketpair
(`jobs.py`). It imports numpy, the runtime and the standard library, nothing else: its start is part of every
round. What it can do before its job is there (lock itself in, read the data, load the graph) it does when it is told
the place. It holds no key and needs no network. The only module that imports the TFLite runtime.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import confine, joblink, loops, partial
from edge_runtime.data import Dataset, DataSource, open_dataset
from edge_runtime.jobs import Job, JobKind, Part, Place, frame
from edge_runtime.optimizers import Vector
from edge_runtime.rules import Given
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError
from fedless.protocol.layout import Layout
from fedless.protocol.manifest import GRAPH_FILE, MANIFEST_FILE, Manifest, Model, parse_bytes

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    try:  # its predecessor, for machines that it has no wheel for
        from tflite_runtime.interpreter import Interpreter
    except ImportError:
        Interpreter = None

if TYPE_CHECKING:
    from edge_runtime.dpsgd import PrivateGradients


class Graph:
    """One signature of a `model.tflite`. Raises `PeerError(MODEL_NOT_PORTABLE)` if it does not load."""

    def __init__(self, path: Path, signature: str, threads: int) -> None:
        if Interpreter is None:
            raise LocalError(
                Code.NOT_INSTALLED,
                "There is no TFLite runtime.",
                fix="Install fedless[edge] (ai-edge-litert).",
            )
        try:
            self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
            self._run = self._interpreter.get_signature_runner(signature)
        except (ValueError, RuntimeError) as error:
            raise PeerError(
                Code.MODEL_NOT_PORTABLE, f"{GRAPH_FILE}, signature {signature}: {str(error)[:300]}."
            ) from None

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run it once. Raises `PeerError(MODEL_NOT_PORTABLE)` where the inputs do not fit the signature."""
        try:
            outputs: dict[str, NDArray[Any]] = self._run(**inputs)
        except (ValueError, RuntimeError) as error:
            raise PeerError(
                Code.MODEL_NOT_PORTABLE, f"{GRAPH_FILE} does not fit its manifest: {str(error)[:300]}."
            ) from None
        return outputs


@dataclass(frozen=True)
class Ready:
    """Data and graph of a place, in an instance that is confined; how long that took, ms."""

    model: Model
    dataset: Dataset
    graph: Graph
    timings_ms: Mapping[str, float]


def prepare(place: Place, event: object = None) -> Ready:
    """Read the data and load the graph. Raises `FedlessError` with the code of what went wrong."""
    clock = _Clock()
    manifest = _manifest(place.function_dir)
    _confine(place, manifest)
    if manifest.model is None:
        raise PeerError(Code.MANIFEST_INVALID, f"The function {manifest.name} has no model.")
    dataset = _dataset(place, event, manifest.model)
    clock.lap("data_ms")
    signature = "grad" if place.kind is JobKind.TRAIN else place.kind
    graph = Graph(Path(place.function_dir, GRAPH_FILE), signature, place.threads)
    clock.lap("load_ms")
    return Ready(manifest.model, dataset, graph, clock.laps)


def run(job: Job, emit: loops.Emit, ready: Ready | None = None) -> loops.Result:
    """Do the job, `ready` if its place was told before. Raises `FedlessError` with the code of what went wrong."""
    clock = _Clock()
    if job.kind is JobKind.INVOKE:
        return _invoke(job)
    private = _private(job)
    if ready is None:
        ready = prepare(job.place, job.event)
    model, directory = ready.model, Path(job.function_dir)
    shipped = _parameters(job.parameters, model)
    layout = Layout(model.parameters, job.personal) if job.personal else None
    start = _personal(shipped, layout, job.head)
    feed = loops.Feed(model, ready.dataset, labels=job.kind is not JobKind.INFER)
    indices = _indices(job, ready.dataset)
    work = loops.Work(model, ready.graph, feed, indices, start, _pauses(job, clock), layout)
    clock.skip()
    if job.kind is JobKind.TRAIN:
        result = loops.train(work, job.rule, emit, _given(job, work, directory), private)
    elif job.kind is JobKind.EVALUATE:
        result = loops.evaluate(work)
        if layout is not None:
            result.sums |= _global_sums(work, shipped, result.sums)
    else:
        result = loops.infer(work)
    clock.lap(f"{job.kind}_ms")
    result.timings_ms = {**ready.timings_ms, **clock.laps}
    return result


def _personal(shipped: Vector, layout: Layout | None, head: str) -> Vector:
    """The model with this client's own elements. Raises `LocalError(STATE_CORRUPT)`."""
    if layout is None or not head:
        return shipped
    with joblink.opened(head) as file:
        _, of, own = partial.from_bytes(file.read())
    if of != layout:
        raise LocalError(Code.STATE_CORRUPT, "These personal parameters are of another task.")
    return partial.with_head(shipped, layout, own)


def _global_sums(work: loops.Work, shipped: Vector, own: Mapping[str, float]) -> dict[str, float]:
    """The same sums of the model as the fleet sent it, by names that begin with `global_`."""
    same = shipped is work.parameters
    sums = own if same else loops.evaluate(replace(work, parameters=shipped)).sums
    return {f"global_{name}": value for name, value in sums.items()}


def _private(job: Job) -> PrivateGradients | None:
    """What local differential privacy needs; None without. It is imported before the way to its modules is shut.

    Of an instance that is ready the way is shut: then they are read as numpy's are, which lie beside them.
    """
    if not job.rule.example_noise or job.kind is not JobKind.TRAIN:
        return None
    from edge_runtime.dpsgd import PrivateGradients  # noqa: PLC0415  (cryptography, which others do without)

    model = _manifest(job.function_dir).model
    if model is None:
        return None
    return PrivateGradients(job.rule, model.parameters, model.batch, os.urandom(32))


def _manifest(function_dir: str) -> Manifest:
    return parse_bytes(Path(function_dir, MANIFEST_FILE).read_bytes())


def _confine(place: Place, manifest: Manifest, files: Iterable[str] = ()) -> None:
    """Before any of the function's own code: no way back from here. `files` may still be opened by name."""
    if place.confinement:
        wanted = confine.Confinement(**place.confinement)
        confine.apply(replace(wanted, read=(*wanted.read, *files)))
    else:
        _limit_memory(place.memory_mb or manifest.memory_mb)


def _invoke(job: Job) -> loops.Result:
    from edge_runtime import handler  # noqa: PLC0415  (training needs none of it)

    manifest = _manifest(job.function_dir)
    _confine(job.place, manifest, filter(None, job.files))  # open descriptors, which its author opens by name
    clock = _Clock()
    answer = handler.serve(job, manifest)
    clock.lap("invoke_ms")
    return loops.Result(0, payload=memoryview(answer), timings_ms=clock.laps)


def _dataset(place: Place, event: object, model: Model) -> Dataset:
    """The examples that lie on the device, or those that came with the event."""
    labels = place.kind is not JobKind.INFER
    if event is None:
        return open_dataset(DataSource.parse(place.data), model, place.function_dir, labels=labels)
    inputs = event.get("inputs") if isinstance(event, dict) else None
    if not isinstance(inputs, dict):
        raise LocalError(Code.DATA_SHAPE, 'Expected {"inputs": {NAME: [[...], ...]}}.')
    try:
        return Dataset({name: np.asarray(rows) for name, rows in inputs.items()}, model, labels=labels)
    except ValueError as error:  # rows of different lengths
        raise LocalError(Code.DATA_SHAPE, f"The inputs are no arrays: {str(error)[:200]}.") from None


class _Clock:
    """Named stretches of time, one after another, in milliseconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.began = self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """End the present stretch and call it `name`."""
        now = time.monotonic()
        self.laps[name] = round((now - self._last) * 1000, 3)
        self._last = now

    def skip(self) -> None:
        """Begin a stretch now; what was since the last one has no name."""
        self._last = time.monotonic()


def _given(job: Job, work: loops.Work, directory: Path) -> Given:
    """What the task's rule needs beside the model: control variates, the loss before training."""
    controls = [_parameters(path, work.model) if path else None for path in (job.control, job.own_control)]
    loss = 0.0
    if job.rule.fair_q:
        judge = replace(work, graph=Graph(directory / GRAPH_FILE, JobKind.EVALUATE, job.threads))
        loss = loops.evaluate(judge).sums["loss"] / work.indices.size
    return Given(loss, *controls)


def _pauses(job: Job, clock: _Clock) -> loops.Pauses:
    """When the training shall stop at the latest, and from where it goes on."""
    state = b""
    if job.state:
        with joblink.opened(job.state) as file:
            state = file.read()
    return loops.Pauses(clock.began + job.stop_after_ms / 1000 if job.stop_after_ms else None, state)


def _indices(job: Job, dataset: Dataset) -> NDArray[np.intp]:
    if job.part is Part.ALL:
        return np.arange(dataset.count)
    return dataset.part(job.holdout, held_out=job.part is Part.HELD_OUT)


def _parameters(path: str, model: Model) -> Vector:
    """The model's weights, mapped read-only so that they cost no private memory."""
    with joblink.opened(path) as file:
        expected, found = model.parameters * 4, os.fstat(file.fileno()).st_size
        if found != expected:
            detail = f"The model must have {expected} bytes of float32, has {found}."
            raise PeerError(Code.WRONG_LENGTH, detail)
        vector: Vector = np.memmap(file, "<f4", "r").view(np.ndarray)
    return vector


def _limit_memory(memory_mb: int) -> None:
    """RLIMIT_DATA, not RLIMIT_AS: the latter counts mapped libraries, which are three times the real use."""
    limit = memory_mb << 20
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit <= hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def runtime_name() -> str:
    """Which TFLite runtime this interpreter has, with its version; empty if none."""
    from importlib import metadata  # noqa: PLC0415  (10 ms that a start does not need)

    module = "" if Interpreter is None else Interpreter.__module__.split(".")[0]
    name = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}.get(module, "")
    return f"{name} {metadata.version(name)}" if name else ""


def peak_rss_mb() -> float:
    """This process's peak memory: VmHWM, as ru_maxrss would carry the parent's peak over the exec."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def serve(link: socket.socket) -> int:
    """Say ready, take one job, do it, answer. 0 if the answer is `done` or there was no job."""

    def emit(values: Mapping[str, object]) -> None:
        link.sendall(frame(values))

    preload()
    emit({"event": "ready", "monotonic_ms": time.monotonic() * 1000})
    job, ready = joblink.receive(link), _nowhere
    if isinstance(job, Place):
        ready, job = _tried(job), joblink.receive(link)
    if not isinstance(job, Job):
        return 0
    emit({"event": "started", "monotonic_ms": time.monotonic() * 1000})
    try:
        result = run(job, emit, ready())
    except FedlessError as error:
        emit(_failed(error.code, error.detail, error.fix))
    except MemoryError as error:
        limit_mb = resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20
        emit(_failed(Code.INSTANCE_MEMORY, f"Its limit is {limit_mb} MB. {error}"))
    except OSError as error:
        emit(_failed(Code.INSTANCE_FAILED, f"{type(error).__name__}: {error}."))
        raise
    except Exception as error:
        emit(_failed(Code.INSTANCE_FAILED, f"{type(error).__name__}: {str(error)[:500]}."))
        raise
    else:
        emit(_done(result))
        link.sendall(result.payload)
        return 0
    return 1


def preload() -> None:
    """What numpy imports when it is first asked for it, and every training asks for."""
    np.random  # noqa: B018


def _nowhere() -> Ready | None:
    """No place was told before the job."""
    return None


def _tried(place: Place) -> Callable[[], Ready | None]:
    """What gives the place that was made ready, or raises what went wrong with it: the answer to the job."""
    try:
        ready = prepare(place)
    except Exception as error:  # noqa: BLE001  (a function's own provider raises what it likes)
        found = error

        def refuse() -> Ready:
            raise found

        return refuse
    return lambda: ready


def _failed(code: Code, detail: str, fix: str = "") -> dict[str, object]:
    return {"event": "failed", "code": code.value, "detail": detail[:1000], "fix": fix}


def _done(result: loops.Result) -> dict[str, object]:
    return {
        "event": "done",
        "examples": int(result.examples),
        "steps": result.steps,
        "sums": result.sums,
        "shape": list(result.shape),
        "timings_ms": result.timings_ms,
        "peak_rss_mb": peak_rss_mb(),
        "payload_bytes": result.payload.nbytes,
        "unfinished": result.unfinished,
    }


def serve_and_close(link: socket.socket) -> int:
    """`serve`; 1 if the parent is gone, since nobody wants the answer then."""
    with link:
        try:
            return serve(link)
        except (BrokenPipeError, ConnectionResetError):
            return 1


def main(arguments: list[str] | None = None) -> int:
    """`python -m edge_runtime.trainer --fd N`."""
    flag, number = sys.argv[1:] if arguments is None else arguments
    if flag != "--fd":
        sys.exit("usage: python -m edge_runtime.trainer --fd N")
    return serve_and_close(socket.socket(fileno=int(number)))


if __name__ == "__main__":
    sys.exit(main())
