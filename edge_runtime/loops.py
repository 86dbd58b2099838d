"""What a job does with the graph: loops over batches, in numpy, for one data set and one parameter vector.

Called by `trainer`, which has the process around it: here are no files, no sockets and no runtime. A graph is
a callable from named arrays to named arrays (training.md, section 1); a last, partial batch is padded with
examples of weight 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import partial, paused
from edge_runtime.data import Dataset
from edge_runtime.optimizers import LocalOptimizer, Vector
from edge_runtime.paused import Paused
from edge_runtime.rules import Given, finish
from fedless.protocol.client_rule import ClientRule
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.layout import Layout
from fedless.protocol.manifest import Input, Label, Model

if TYPE_CHECKING:
    from edge_runtime.dpsgd import PrivateGradients

Emit = Callable[[Mapping[str, object]], None]
Graph = Callable[..., Mapping[str, NDArray[Any]]]
_PROGRESS_MS = 500.0


@dataclass
class Result:
    """As `jobs.Outcome`; `payload` is a view of raw bytes."""

    examples: int
    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    payload: memoryview = field(default_factory=lambda: memoryview(b""))
    timings_ms: dict[str, float] = field(default_factory=dict)
    unfinished: bool = False


@dataclass(frozen=True)
class Pauses:
    """`until` (time.monotonic): stop behind the first step that ends later; `state`: go on from there."""

    until: float | None = None
    state: bytes = field(default=b"", repr=False)

    @property
    def due(self) -> bool:
        """Whether it is time to stop."""
        return self.until is not None and time.monotonic() >= self.until


NO_PAUSE = Pauses()


class Feed:
    """The batch arrays that go into the graph, made once and filled again for every step."""

    def __init__(self, model: Model, dataset: Dataset, *, labels: bool) -> None:
        self._dataset = dataset
        specs: list[Input | Label] = [*model.inputs, *(model.labels if labels else ())]
        self.arrays = {spec.name: np.zeros((model.batch, *spec.shape), spec.dtype) for spec in specs}
        self.weight: NDArray[np.float32] = np.zeros(model.batch, np.float32)
        if labels:
            self.arrays["weight"] = self.weight

    def fill(self, indices: NDArray[np.intp]) -> None:
        """The examples at `indices`, at most a batch; rows after them are zero and have weight 0."""
        self._dataset.fill(indices, self.arrays)
        self.weight[: indices.size] = 1.0
        self.weight[indices.size :] = 0.0


@dataclass(frozen=True)
class Work:
    """What a loop works on: `indices` of the data set in `feed`, and the model's `parameters`, float32[P].

    `layout`: which of them are this client's own; None: none are.
    """

    model: Model
    graph: Graph
    feed: Feed
    indices: NDArray[np.intp]
    parameters: Vector
    pauses: Pauses = NO_PAUSE
    layout: Layout | None = None

    def batches(self) -> Iterator[tuple[int, Mapping[str, NDArray[Any]]]]:
        """The graph's outputs on one batch after another, each with the number of examples in it."""
        for at in range(0, self.indices.size, self.model.batch):
            batch = self.indices[at : at + self.model.batch]
            self.feed.fill(batch)
            yield batch.size, self.graph(params=self.parameters, **self.feed.arrays)


NOTHING_GIVEN = Given()


def train(
    work: Work,
    rule: ClientRule,
    emit: Emit,
    given: Given = NOTHING_GIVEN,
    private: PrivateGradients | None = None,
) -> Result:
    """Local epochs of optimiser steps; the payload is the delta float32[P], last weights less first.

    With a `layout` it is the delta of the shared elements, and behind it the new personal ones. One that stops for want
    of time is `unfinished`: the payload is then its state (`paused`). `sums` has the loss of the last local epoch,
    before each step; of a part of it, if `max_steps` ended it. What a strategy's rule makes of both: `rules`. With
    `private` each step is one of DP-SGD, and `sums` is empty: a loss would have no noise. Raises
    `PeerError(NOT_FINITE)` if training diverged.
    """
    model, count = work.model, work.indices.size
    weights = work.parameters.copy()
    per_epoch = -(-count // model.batch)
    alone = per_epoch * rule.personal_epochs
    optimizer = _optimizer(work, rule, given, alone)
    random = np.random.Generator(np.random.PCG64(rule.seed))
    noise = _Noise(model, rule.seed)
    every = per_epoch * rule.local_epochs + alone
    total = min(rule.max_steps or every, every)
    reporter = _Reporter(emit, total)
    first, loss_sum, seen = 0, 0.0, 0
    if work.pauses.state:
        before = paused.from_bytes(work.pauses.state, weights.size, len(optimizer.moments))
        first, loss_sum, seen, weights = before.steps, before.loss_sum, before.seen, before.weights
        optimizer.go_on(first, before.moments)
        random.bit_generator.state, noise.state = before.order, before.noise
    order, drawn = work.indices, random.bit_generator.state
    for step in range(first, total):
        at = step % per_epoch * model.batch
        if at == 0 or step == first:  # a local epoch's order is drawn again where it was interrupted
            drawn, order = random.bit_generator.state, random.permutation(work.indices)
        if at == 0:
            loss_sum, seen = 0.0, 0
        batch = order[at : at + model.batch]
        if private is None:
            gradient, loss = _batch_gradient(work, weights, batch, noise)
        else:
            ones = (_batch_gradient(work, weights, batch[i : i + 1], noise)[0] for i in range(batch.size))
            gradient, loss = private.mean(ones), 0.0
        loss_sum, seen = loss_sum + loss * batch.size, seen + batch.size
        optimizer.step(weights, gradient)
        reporter.step(step + 1, step // per_epoch + 1, loss)
        if work.pauses.due and step + 1 < total:
            state = random.bit_generator.state if (step + 1) % per_epoch == 0 else drawn
            left = Paused(step + 1, loss_sum, seen, state, noise.state, weights, optimizer.moments)
            return Result(count, step + 1, payload=memoryview(left.to_bytes()), unfinished=True)
    update, told = _update(work, rule, weights, total - alone, given)
    means = {} if private is not None else {"loss": loss_sum / seen, **told}
    sums = {name: value * count for name, value in means.items()}
    return Result(count, total, sums, update.shape, update.data.cast("B"))


def _optimizer(work: Work, rule: ClientRule, given: Given, alone: int) -> LocalOptimizer:
    """`alone`: how many steps of the personal elements come first."""
    if work.layout is not None and alone:
        return partial.Alternating(rule, work.parameters, work.layout, alone)
    return LocalOptimizer(rule, work.parameters, given.correction())


def _update(
    work: Work, rule: ClientRule, weights: Vector, steps: int, given: Given
) -> tuple[Vector, dict[str, float]]:
    """What `train` gives, from the last weights (changed in place), and what the rule tells beside it."""
    head = None if work.layout is None else partial.taken(weights, work.layout.personal)
    weights -= work.parameters
    _check_finite(weights, steps)
    if work.layout is None or head is None:
        return finish(rule, weights, steps, given)
    update, told = finish(rule, partial.taken(weights, work.layout.shared), steps, given)
    return np.concatenate([update, head]), told


def _check_finite(delta: Vector, steps: int) -> None:
    if not np.isfinite(np.dot(delta, delta)):
        raise PeerError(
            Code.NOT_FINITE,
            f"After {steps} steps the weights hold NaN or infinite numbers.",
            fix="Lower the task's learning rate.",
        )


def _batch_gradient(
    work: Work, weights: Vector, batch: NDArray[np.intp], noise: _Noise
) -> tuple[Vector, float]:
    """The mean gradient, float32[P], and loss of these examples, at most a batch of them."""
    work.feed.fill(batch)
    return _gradient(work.graph(params=weights, **work.feed.arrays, **noise.draw()), work.model)


def _gradient(outputs: Mapping[str, NDArray[Any]], model: Model) -> tuple[Vector, float]:
    gradient, loss = _output(outputs, "grad"), _output(outputs, "loss")
    if gradient.shape != (model.parameters,):
        raise PeerError(
            Code.MODEL_NOT_PORTABLE,
            f"The graph must return grad [{model.parameters}]; it returns {list(gradient.shape)}.",
        )
    return gradient, float(loss[0])


def evaluate(work: Work) -> Result:
    """Sums over the examples: `loss` and the manifest's metrics. Raises `PeerError(NOT_FINITE)`."""
    names = {"loss": "loss_sum", **{metric: metric for metric in work.model.metrics}}
    sums = dict.fromkeys(names, 0.0)
    for _, outputs in work.batches():
        for name, output in names.items():
            sums[name] += float(_output(outputs, output)[0])
    if not np.isfinite(list(sums.values())).all():
        raise PeerError(Code.NOT_FINITE, "The evaluation gave NaN or infinite numbers.")
    return Result(work.indices.size, sums=sums)


def infer(work: Work) -> Result:
    """The graph's `outputs` float32[N, ...], in the order of the data."""
    rows = [_output(outputs, "outputs")[:size] for size, outputs in work.batches()]
    joined = np.ascontiguousarray(np.concatenate(rows), "<f4")
    return Result(work.indices.size, shape=joined.shape, payload=joined.data.cast("B"))


def _output(outputs: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in outputs:
        found = ", ".join(f"{other} {list(value.shape)}" for other, value in outputs.items())
        raise PeerError(Code.MODEL_NOT_PORTABLE, f"The graph must return {name}; it returns {found}.")
    return outputs[name]


class _Noise:
    """The random inputs that the manifest declares (dropout masks); they are no secret."""

    def __init__(self, model: Model, seed: int) -> None:
        self._specs = [
            (spec.name, (model.batch, *spec.shape), np.float32(spec.keep)) for spec in model.randomness
        ]
        self._random = np.random.Generator(np.random.PCG64([seed, 1]))

    @property
    def state(self) -> Mapping[str, Any]:
        """Of the generator."""
        return self._random.bit_generator.state

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self._random.bit_generator.state = state

    def draw(self) -> dict[str, NDArray[np.float32]]:
        """New masks for one step: 1/keep with probability keep, else 0."""
        return {
            name: (self._random.random(shape, np.float32) < keep).astype(np.float32) / keep
            for name, shape, keep in self._specs
        }


class _Reporter:
    """Events while training: the first step at once, progress at most every half second and at the end."""

    def __init__(self, emit: Emit, total: int) -> None:
        self._emit, self._total = emit, total
        self._last_ms = 0.0

    def step(self, step: int, epoch: int, loss: float) -> None:
        """Called after each optimiser step."""
        now_ms = time.monotonic() * 1000
        if step == 1:
            self._emit({"event": "first_step", "monotonic_ms": now_ms, "wall_ms": round(time.time() * 1000)})
        if now_ms - self._last_ms >= _PROGRESS_MS or step == self._total:
            self._last_ms = now_ms
            self._emit({"event": "progress", "epoch": epoch, "step": step, "of": self._total, "loss": loss})
