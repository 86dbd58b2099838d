"""`build_function`: a `Model` becomes a function directory, through the author's gate.

The directory holds `function.toml`, `model.tflite`, `initial.f32` (raw little-endian float32, version 0 of
the model; it is not part of the bundle) and the author's own Python files. `sign.pack_and_sign` makes a
bundle of it.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from fedless.authoring import check
from fedless.authoring.convert import convert
from fedless.authoring.model import Model
from fedless.protocol import manifest
from fedless.protocol.errors import Code, LocalError

_SPARE = 1.5
_VECTORS = 6
_DATA_MB = 128
_STEP_MB = 64


def build_function(  # noqa: PLR0913  (the manifest's fields, by name)
    model: Model,
    out_dir: Path,
    *,
    name: str,
    version: int = 1,
    licence: str = "",
    timeout_ms: int = 600_000,
    memory_mb: int = 0,
    files: Sequence[Path] = (),
    pythons: Sequence[str] = (sys.executable,),
    data: Mapping[str, object] | None = None,
) -> manifest.Manifest:
    """The author: convert, check and write the function directory `out_dir`; the manifest that was written.

    `memory_mb` 0 means what the check needed, with room. `files` are the author's own Python files, such as
    `provider.py`. The check runs on the TFLite runtime of each interpreter in `pythons`, and, with `data`
    (a data source of `edge_runtime.data`), trains a few steps. Raises `LocalError`: MODEL_NOT_PORTABLE,
    DATA_*, or STATE_EXISTS if `out_dir` holds something that is not a function; then nothing is written.
    """
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / manifest.MANIFEST_FILE).exists():
        raise LocalError(
            Code.STATE_EXISTS,
            f"{out_dir} holds something that is not a function.",
            fix="Name an empty directory.",
        )
    graph = convert(model)
    check.inspect_graph(graph)
    record = _record(model, graph, pythons)
    initial = model.initial.astype("<f4").tobytes()
    described = manifest.Manifest(
        name=name,
        version=version,
        memory_mb=memory_mb or _memory_mb(record.peak_memory_mb, model.parameters),
        timeout_ms=timeout_ms,
        licence=licence,
        model=_described(model, initial),
        check=record,
    )
    manifest.parse(manifest.dump(described))
    if data is not None:
        with tempfile.TemporaryDirectory(prefix="fedless-build-") as trial:
            _write(Path(trial), described, graph, initial, files)
            check.learn(Path(trial), data)
    _write(out_dir, described, graph, initial, files)
    return described


def _write(
    directory: Path, described: manifest.Manifest, graph: bytes, initial: bytes, files: Sequence[Path]
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / manifest.GRAPH_FILE).write_bytes(graph)
    (directory / manifest.INITIAL_FILE).write_bytes(initial)
    for file in files:
        shutil.copyfile(file, directory / file.name)
    (directory / manifest.MANIFEST_FILE).write_text(manifest.dump(described), encoding="utf-8")


def _record(model: Model, graph: bytes, pythons: Sequence[str]) -> manifest.Check:
    """One step on each runtime; the worst figures."""
    agreements = [check.compare(model, graph, python) for python in pythons]
    error = max(agreement.gradient_error for agreement in agreements)
    return manifest.Check(
        tensorflow=tf.__version__,
        runtime=", ".join(agreement.runtime for agreement in agreements),
        gradient_error=float(np.format_float_scientific(error, 1)),
        model_bytes=len(graph),
        peak_memory_mb=max(agreement.peak_memory_mb for agreement in agreements),
    )


def _described(model: Model, initial: bytes) -> manifest.Model:
    return manifest.Model(
        parameters=model.parameters,
        batch=model.batch,
        loss=model.loss,
        initial_sha256=hashlib.sha256(initial).hexdigest(),
        tensors=model.tensors,
        inputs=(model.input,),
        labels=(model.label,),
        metrics=model.metrics,
        randomness=model.randomness,
    )


def _memory_mb(peak_mb: int, parameters: int) -> int:
    """A bound with room for the optimiser's vectors, the data and reservations, in steps of 64."""
    needed = peak_mb * _SPARE + _VECTORS * parameters * 4 / 2**20 + _DATA_MB
    return -(-int(needed) // _STEP_MB) * _STEP_MB
