"""From a round's updates to the next model: block by block from the old blobs to new ones.

Called by the run's driver in a worker thread. The same updates and model give the same bytes, so doing it again after
a crash finds the blobs that are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aggregator import ledger
from aggregator.blobs import Blobs
from aggregator.evaluation import means
from aggregator.members import Member, Stage
from aggregator.privacy import clipped_share
from aggregator.round import Round
from aggregator.store.records import ModelRecord
from aggregator.strategies.base import Beside, Doubles, Floats, Strategy
from aggregator.strategies.grouped import Grouped
from aggregator.strategies.robust import Robust
from aggregator.unmasking import Unmasked
from aggregator.uploads import BLOCK, FloatSum, float_blocks
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.layout import Layout
from fedless.protocol.messages import Kind

PERCENTILES = (10, 50, 90)
"""Of clients, in an evaluation."""
CLIENT_BLOCK = 1 << 10
"""Coordinates of one client that are read at a time, at least: 4 KiB."""


@dataclass(frozen=True)
class MeanSum:
    """The weighted mean of a masked round as if it were the sum of one report: float32[P], weight 1.

    `cohorts`: the means of its cohorts, for a rule that looks at them.
    """

    total: npt.NDArray[np.float32]
    weight: int = 1
    cohorts: Sequence[npt.NDArray[np.float32]] = ()


@dataclass(frozen=True)
class SingleReports:
    """The counted reports of a plain round in their spool files, for a rule that must see each of them."""

    files: Sequence[Path]
    parameters: int

    def blocks(self) -> Iterator[Floats]:
        """float32[k, n] of all k clients: n is such that a block has about `BLOCK` numbers, but at least `CLIENT_BLOCK`
        of each client. A file is opened for each block anew: cohorts may be larger than the number of files that a
        process may open.
        """  # noqa: D205
        size = max(BLOCK // len(self.files), CLIENT_BLOCK)
        for start in range(0, self.parameters, size):
            count = min(size, self.parameters - start)
            yield np.stack([_read(file, start, count) for file in self.files])


NOTHING_BESIDE = Beside({})


def mean_blocks(
    updates: FloatSum | MeanSum | SingleReports, strategy: Strategy, beside: Beside = NOTHING_BESIDE
) -> Iterator[Doubles]:
    """The round's mean update as the strategy takes it, block after block; blocks.

    float64[n], or float64[vectors, n] where an update has more than one vector.
    """
    if isinstance(updates, SingleReports):
        if not isinstance(strategy, Robust):
            raise TypeError(strategy)
        weights = strategy.weights(updates.blocks(), len(updates.files))
        yield from (strategy.mean(block, weights) for block in updates.blocks())
        return
    if isinstance(strategy, Grouped):
        if not isinstance(updates, MeanSum) or not updates.cohorts:
            raise TypeError(updates)
        for start in range(0, len(updates.total), BLOCK):
            yield strategy.of_cohorts(np.stack([mean[start : start + BLOCK] for mean in updates.cohorts]))
        return
    scale = np.array(strategy.scale(beside))[:, None] / updates.weight
    vectors = updates.total.reshape(len(scale), -1)
    for start in range(0, vectors.shape[1], BLOCK):
        part = vectors[:, start : start + BLOCK].astype(np.float64, copy=False) * scale
        yield part if len(scale) > 1 else part[0]


def next_model(
    blobs: Blobs,
    old: ModelRecord,
    mean: Iterable[Doubles],
    strategy: Strategy,
    round_id: int,
    layout: Layout | None = None,
) -> ModelRecord:
    """The next version and its strategy's state, which are then among the blobs; blocks.

    `mean` and the state are of the elements that `layout` shares (None: all); the others stay as they are. Raises
    `LocalError` DISK_FULL, STATE_CORRUPT (the old version's state is not there), `PeerError` UNKNOWN_BLOB.
    """
    names = list(strategy.state)
    if old.version and set(old.state) != set(names):
        found = ", ".join(sorted(old.state)) or "none"
        detail = f"Expected the strategy's state {', '.join(names) or 'none'} at version {old.version}, found {found}."
        raise LocalError(Code.STATE_CORRUPT, detail)

    def part(name: str, start: int, count: int) -> Floats:
        if not old.version:
            return np.full(count, strategy.state[name], np.float32)
        return _read(blobs.path(old.state[name]), start, count)

    def rows() -> Iterator[Sequence[memoryview]]:
        file, start, at = blobs.path(old.digest), 0, 0
        for block in mean:
            count = block.shape[-1]
            pieces = [(start, count)] if layout is None else list(layout.pieces(start, count))
            before = np.concatenate([_read(file, low, size) for low, size in pieces])
            state = [part(name, start, count) for name in names]
            start += count
            model, kept = strategy.step(before, block, state)
            arrays = [array.astype("<f4", copy=False) for array in (model, *kept)]
            done = 0
            for low, size in pieces:
                yield from _as_it_is(file, at, low, len(names))
                yield [array[done : done + size].data.cast("B") for array in arrays]
                done, at = done + size, low + size
        if layout is not None:
            yield from _as_it_is(file, at, layout.parameters, len(names))

    digest, *kept = blobs.put_together(rows(), 1 + len(names))
    return ModelRecord(old.version + 1, digest, round_id, dict(zip(names, kept, strict=True)))


def _as_it_is(file: Path, low: int, high: int, states: int) -> Iterator[Sequence[memoryview]]:
    """Elements `low` to `high` of a model, to which no state belongs."""
    for at in range(low, high, BLOCK):
        yield [_read(file, at, min(BLOCK, high - at)).data.cast("B"), *([memoryview(b"")] * states)]


def _read(file: Path, start: int, count: int) -> Floats:
    """`count` numbers of a file of little-endian float32, from number `start` on."""
    found: Floats = np.fromfile(file, "<f4", count, offset=4 * start)
    if len(found) != count:
        raise LocalError(Code.STATE_CORRUPT, f"{file.name} is shorter than expected.")
    return found


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
    """Means over all examples of the counted reports, as `<prefix>_loss` and so on, and `<prefix>_examples`.

    Of a private round none: they would have no noise.
    """
    if round_.terms.privacy is not None:
        return ledger.figures(round_.terms.privacy, None)
    headers = [member.header for member in reported(round_) if member.header is not None]
    examples = sum(header.examples for header in headers)
    sums: dict[str, float] = {}
    for header in headers:
        for name, value in header.sums.items():
            sums[name] = sums.get(name, 0.0) + value
    metrics = {f"{prefix}_{name}": value for name, value in means(sums, examples).items()}
    behind = [round_.terms.model_version - m.origin.model_version for m in reported(round_) if m.origin]
    if round_.terms.late is not None:
        metrics |= {"late_reports": float(len(behind)), "versions_behind": sum(behind) / len(headers)}
    return {**metrics, f"{prefix}_examples": float(examples)}


def spread(round_: Round) -> dict[str, float]:
    """How an evaluation's figures differ by client: percentiles, and the mean of the worst tenth of the clients.

    In plain rounds only: masks hide single figures, and of a private round none is told.
    """
    if round_.terms.is_masked or round_.terms.privacy is not None:
        return {}
    headers = [member.header for member in reported(round_) if member.header is not None]
    found: dict[str, float] = {}
    for name in sorted({name for header in headers for name in header.sums}):
        each = [means(header.sums, header.examples) for header in headers if name in header.sums]
        label = means({name: 0.0}, 1).popitem()[0]  # `correct` is told as `accuracy`
        values = np.sort([one[label] for one in each])
        worst = values[: _tenth(values)] if label.endswith("accuracy") else values[-_tenth(values) :]
        for percent in PERCENTILES:
            found[f"device_{label}_p{percent}"] = float(np.percentile(values, percent))
        found[f"device_{label}_worst_decile"] = float(worst.mean())
    return found


def _tenth(values: npt.NDArray[np.float64]) -> int:
    return max(1, len(values) // 10)


def masked_figures(round_: Round, unmasked: Unmasked) -> dict[str, float]:
    """The weighted means that came beside the sums, named as those of `figures`; of several cohorts, how many count."""
    decoded, cohorts = unmasked.whole, round_.terms.sums
    noise = round_.terms.privacy
    if noise is not None:
        return ledger.figures(noise, clipped_share(noise, decoded.extras))
    prefix = "train" if round_.terms.kind is Kind.TRAIN else "device"
    means_ = {f"{prefix}_{name}": value for name, value in means(decoded.extras, 1).items()}
    examples = decoded.weight * round_.terms.max_examples
    found = {**means_, f"{prefix}_examples": float(round(examples))}
    if cohorts > 1:
        found |= {
            "cohorts": float(len(unmasked.means)),
            "cohorts_abandoned": float(cohorts - len(unmasked.means)),
        }
    return found


def beside(round_: Round, extras: Mapping[str, float]) -> Beside:
    """What the round tells its strategy beside the mean update; `extras` as masks opened them, or as reports told."""
    terms, count = round_.terms, len(reported(round_))
    return Beside(extras, count / max(terms.population, count, 1))


def told(round_: Round) -> dict[str, float]:
    """The weighted mean of each further coordinate of a plain round."""
    weighed = [(round_.weight(m), m.header) for m in reported(round_) if m.header is not None]
    counts = sum(counted for (_, counted), _ in weighed)
    return {
        name: sum(weight * header.sums[name] / header.examples for (weight, _), header in weighed) / counts
        for name in dict(round_.terms.extras)
    }


def times(round_: Round) -> dict[str, float]:
    """Time per phase so far, in ms: `wake` to the first check-in, `train` from there to the last report."""
    checked_in = [m.checked_in_at_ms for m in round_.state.members.values() if m.checked_in_at_ms]
    settled = [member.settled_at_ms for member in reported(round_)]
    if not checked_in or not settled:
        return {}
    first, last = min(checked_in), max(settled)
    return {"wake": float(first - round_.terms.opened_at_ms), "train": float(last - first)}
