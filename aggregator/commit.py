"""From a round's sum to the next model: block by block from the old blob to a new one.

Called by the run's driver in a worker thread. The same sum and model give the same bytes, so doing it again after
a crash finds the blob that is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aggregator.blobs import Blobs
from aggregator.evaluation import means
from aggregator.members import Member, Stage
from aggregator.round import Round
from aggregator.strategies import Strategy
from aggregator.uploads import FloatSum, float_blocks
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Kind
from fedless.protocol.secagg.ring import Decoded


@dataclass(frozen=True)
class MeanSum:
    """The weighted mean of a masked round as if it were the sum of one report: float32[P], weight 1."""

    total: npt.NDArray[np.float32]
    weight: int = 1


def next_model(blobs: Blobs, model_digest: bytes, sum_: FloatSum | MeanSum, strategy: Strategy) -> bytes:
    """The digest of the next model, which is then among the blobs; blocks.

    Raises `LocalError` DISK_FULL, `PeerError` UNKNOWN_BLOB.
    """

    def blocks() -> Iterator[memoryview]:
        start = 0
        for block in float_blocks(blobs.path(model_digest)):
            part = sum_.total[start : start + len(block)].astype(np.float64, copy=False)
            start += len(block)
            yield strategy.next_block(block, part, sum_.weight).astype("<f4", copy=False).data.cast("B")

    digest, _ = blobs.put_blocks(blocks())
    return digest


def check_model(blobs: Blobs, digest: bytes, parameters: int) -> None:
    """Whether a blob is a model of this many parameters; blocks. Raises `PeerError`."""
    found, expected = blobs.size(digest), 4 * parameters
    if found != expected:
        raise PeerError(Code.WRONG_LENGTH, f"Initial weights: expected {expected} bytes, found {found}.")
    if not all(bool(np.isfinite(block).all()) for block in float_blocks(blobs.path(digest))):
        raise PeerError(Code.NOT_FINITE, "Initial weights must be finite.")


def reported(round_: Round) -> list[Member]:
    """The members whose reports are counted."""
    return [member for member in round_.state.members.values() if member.stage is Stage.REPORTED]


def figures(round_: Round, prefix: str) -> dict[str, float]:
    """Means over all examples of the counted reports, as `<prefix>_loss` and so on, and `<prefix>_examples`."""
    headers = [member.header for member in reported(round_) if member.header is not None]
    examples = sum(header.examples for header in headers)
    sums: dict[str, float] = {}
    for header in headers:
        for name, value in header.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    metrics = {f"{prefix}_{name}": value for name, value in means(sums, examples).items()}
    return {**metrics, f"{prefix}_examples": float(examples)}


def masked_figures(round_: Round, decoded: Decoded) -> dict[str, float]:
    """The weighted means that came beside the sum, named as those of `figures`; who took part, and who did not."""
    prefix = "train" if round_.terms.kind is Kind.TRAIN else "device"
    names = {"correct": "accuracy"}
    means_ = {f"{prefix}_{names.get(name, name)}": value for name, value in decoded.extras.items()}
    examples = decoded.weight * round_.terms.max_examples
    return {**means_, f"{prefix}_examples": float(round(examples))}


def times(round_: Round) -> dict[str, float]:
    """Time per phase so far, in ms: `wake` to the first check-in, `train` from there to the last report."""
    checked_in = [m.checked_in_at_ms for m in round_.state.members.values() if m.checked_in_at_ms]
    settled = [member.settled_at_ms for member in reported(round_)]
    if not checked_in or not settled:
        return {}
    first, last = min(checked_in), max(settled)
    return {"wake": float(first - round_.terms.opened_at_ms), "train": float(last - first)}
