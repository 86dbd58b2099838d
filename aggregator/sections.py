"""*Pure.* The sections of a task file that keep from the aggregator what it need not see.

Masks, noise, personal parameters. Used by `tasks`, which has the other sections and says what cannot be together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from aggregator.privacy import Place
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.layout import RANGES_MAX, Layout, merged
from fedless.protocol.manifest import Model, Tensor
from fedless.protocol.messages import NOISE_MAX, Task
from fedless.protocol.secagg.epochs import COHORT_MAX, MINIMUM_COHORT, Trust


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """A check that a text is one of these."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"expected one of {', '.join(names)}, found {value[:64]!r}")
        return value

    return check


class Section(BaseModel):
    """A table of a task file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SecaggSettings(Section):
    """How single updates are hidden (modes pairwise and helper).

    `bits` of a ring word, 16 or 32. Coordinates of an update are clipped to `clip`, its L2 norm to `l2_clip` (0: not).
    A cohort has at least `minimum` members; in mode pairwise a selection of more than 128 clients is split into cohorts
    of about 100 with a sum each, or any selection into cohorts of about `cohort_size` (0: not). `trust`: what members
    assume of the aggregator; it sets how many of them must agree to open a sum. Each step of a key epoch's set-up takes
    at most `setup_s` seconds, the answers that open a sum at most `unmask_s`. Mean losses above `loss_limit` count as
    this much.
    """

    bits: Literal[16, 32] = 32
    clip: float = Field(1.0, gt=0.0, le=1e6)
    l2_clip: float = Field(0.0, ge=0.0, le=1e9)
    minimum: int = Field(MINIMUM_COHORT, ge=2, le=100_000)
    cohort_size: int = Field(0, ge=0, le=COHORT_MAX)
    trust: Trust = Field(Trust.CHEATING, strict=False)
    setup_s: int = Field(60, ge=1, le=604_800)
    unmask_s: int = Field(300, ge=1, le=604_800)
    loss_limit: float = Field(20.0, gt=0.0, le=1e6)


class PrivacySettings(Section):
    """Differential privacy (docs/privacy.md). `noise` says who adds it: the server, the helper, the members together
    (distributed), or each client in its own training (local). Its standard deviation is `multiplier` times `clip`, the
    L2 norm that an update (local: one example's gradient) is clipped to; `adaptive` clipping follows the `quantile` of
    the updates' norms with `rate`. No client's epsilon, at `delta` and over all its rounds, passes `epsilon` (0: no
    limit).
    """  # noqa: D205

    noise: Annotated[str, AfterValidator(one_of([place.value for place in Place]))]
    multiplier: float = Field(gt=0.0, le=NOISE_MAX)
    clip: float = Field(gt=0.0, le=1e6)
    adaptive: bool = False
    quantile: float = Field(0.5, gt=0.0, lt=1.0)
    rate: float = Field(0.2, gt=0.0, le=10.0)
    epsilon: float = Field(0.0, ge=0.0, le=1e6)
    delta: float = Field(1e-5, gt=0.0, lt=1.0)

    @property
    def place(self) -> Place:
        """Who adds the noise."""
        return Place(self.noise)


class PersonaliseSettings(Section):
    """Which part of the model stays on its device (docs/strategies.md): `layers` by the names of layers or tensors, or
    the last so many layers. With `epochs` 0 all is trained together (FedPer); else these local epochs of the personal
    part alone come before those of the shared part alone (FedRep).
    """  # noqa: D205

    layers: Annotated[int, Field(ge=1, le=10_000)] | Annotated[list[str], Field(min_length=1, max_length=256)]
    epochs: int = Field(0, ge=0, le=100_000)

    def complaints(
        self, *, control: bool, max_steps: int, local_noise: bool, central_target: bool
    ) -> Iterator[str]:
        """What cannot be had together with it."""
        if control:
            yield "strategy scaffold with [personalise]: its control variates correct steps of the whole model"
        if self.epochs and max_steps:
            yield "client.max_steps with personalise.epochs: expected 0, since it would cut the shared part off"
        if self.epochs and local_noise:
            yield "personalise.epochs with local noise: expected 0; the ledger charges the steps of local_epochs"
        if central_target:
            yield "stop.test_accuracy with [personalise]: the aggregator has nobody's personal parameters to judge"

    def applied(self, task: Task, model: Model) -> Task:
        """The task with these layers of its model personal. Raises `LocalError(CONFIG_INVALID)`."""
        personal = merged([(tensor.offset, tensor.size) for tensor in self._tensors(model.tensors)])
        if not Layout(model.parameters, personal).common:
            raise LocalError(Code.CONFIG_INVALID, "personalise.layers: nothing of the model would be shared.")
        if len(personal) > RANGES_MAX:
            detail = (
                f"personalise.layers: {len(personal)} places of the model; at most {RANGES_MAX} can be told."
            )
            raise LocalError(Code.CONFIG_INVALID, detail)
        return replace(task, personal=personal, rule=replace(task.rule, personal_epochs=self.epochs))

    def _tensors(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        names = list(dict.fromkeys(_layer(tensor) for tensor in tensors))
        wanted = names[-self.layers :] if isinstance(self.layers, int) else self.layers
        found = [
            t for t in tensors if any(t.name == name or t.name.startswith(f"{name}/") for name in wanted)
        ]
        unknown = [name for name in wanted if not any(f"{t.name}/".startswith(f"{name}/") for t in tensors)]
        if unknown:
            detail = f"personalise.layers: expected some of {', '.join(names)}; found {', '.join(unknown)}."
            raise LocalError(Code.CONFIG_INVALID, detail[:1000])
        return found


def _layer(tensor: Tensor) -> str:
    """dense_1 of dense_1/kernel; a tensor that is in no layer is one."""
    return tensor.name.rpartition("/")[0] or tensor.name
