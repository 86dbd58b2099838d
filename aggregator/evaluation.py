"""Central evaluation: a model on the task's test set, with the TFLite runtime in a child process.

Called by the run's driver after rounds that are to be judged. The aggregator itself never imports the runtime.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from aggregator.blobs import Blobs
from edge_runtime import bundle
from edge_runtime.instance import Instance
from edge_runtime.jobs import Job, JobKind
from fedless.protocol.errors import Code, FedlessError, PeerError
from fedless.protocol.manifest import Manifest

TIMEOUT_MS = 900_000
MEMORY_MB = 4096
THREADS_MAX = 4


@dataclass(frozen=True)
class Evaluation:
    """Means over `examples` examples; `metrics` has `loss` and, for classifiers, `accuracy`."""

    examples: int
    metrics: Mapping[str, float]


class Judge(Protocol):
    """What the drivers need."""

    def check(self, bundle_digest: bytes) -> Manifest:
        """The manifest of a bundle that is trusted here and has a model; blocks.

        Raises `PeerError` UNKNOWN_BLOB, BUNDLE_*, MANIFEST_INVALID.
        """
        ...

    async def evaluate(self, bundle_digest: bytes, model_digest: bytes, test_set_digest: bytes) -> Evaluation:
        """How good a model is on a test set (npz with an array for each input and label).

        Raises `FedlessError`: what the child said (DATA_*, ...), INSTANCE_*, NOT_INSTALLED, BUNDLE_*.
        """
        ...


class Evaluator:
    """Runs evaluations, one child process each."""

    def __init__(
        self, blobs: Blobs, functions: Path, publishers: Callable[[], Mapping[bytes, bytes]]
    ) -> None:
        """`functions` is a folder for unpacked bundles; `publishers`: key id -> raw Ed25519 key, as they are now."""
        self._blobs = blobs
        self._functions = functions
        self._publishers = publishers

    def check(self, bundle_digest: bytes) -> Manifest:
        """As `Judge.check`."""
        data = self._blobs.path(bundle_digest).read_bytes()
        manifest, _ = bundle.verify(data, bundle_digest.hex(), self._publishers())
        if manifest.model is None:
            raise PeerError(Code.MANIFEST_INVALID, f"The function {manifest.name} has no model to train.")
        return manifest

    async def evaluate(self, bundle_digest: bytes, model_digest: bytes, test_set_digest: bytes) -> Evaluation:
        """As `Judge.evaluate`."""
        directory = await asyncio.to_thread(self._unpacked, bundle_digest)
        model, test_set = await asyncio.to_thread(
            lambda: (self._blobs.path(model_digest), self._blobs.path(test_set_digest))
        )
        job = Job(
            kind=JobKind.EVALUATE,
            function_dir=str(directory),
            parameters=str(model),
            data={"kind": "npz", "path": str(test_set)},
            threads=min(os.cpu_count() or 1, THREADS_MAX),
            memory_mb=MEMORY_MB,
        )
        instance = Instance.start()  # a few ms, here: in a thread it would be lost when this is cancelled
        try:
            outcome = await asyncio.to_thread(instance.run, job, timeout_ms=TIMEOUT_MS)
        finally:
            instance.close()  # also when this is cancelled: the thread then ends with the child
        return Evaluation(outcome.examples, means(outcome.sums, outcome.examples))

    def _unpacked(self, bundle_digest: bytes) -> Path:
        found = bundle.find(self._functions, bundle_digest.hex())
        if found is None:
            data = self._blobs.path(bundle_digest).read_bytes()
            found = bundle.unpack(data, bundle_digest.hex(), self._publishers(), self._functions)
        return found.directory


def means(sums: Mapping[str, float], examples: int) -> dict[str, float]:
    """Named sums over examples as means; `correct` becomes `accuracy`, of the model as it was sent as well."""
    names = {"correct": "accuracy", "global_correct": "global_accuracy"}
    return {names.get(name, name): value / examples for name, value in sums.items()} if examples else {}


def reason(error: FedlessError) -> str:
    """Why there are no figures, in one line."""
    return f"{error.code.value}: {error.detail or error.code.sentence}"[:300]
