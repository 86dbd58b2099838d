"""The task file: what to train, with whom, how long. TOML into frozen typed settings.

`fedless run start TASK.toml` reads it, resolves the file names and sends the text; the aggregator reads the text
again. An unknown key, a wrong type and a number outside its range are errors, and all of them are told at once.
deploy/samples/task.toml shows every field with its unit and default.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator

from aggregator import own, selection
from aggregator.judgement import Aim
from aggregator.privacy import Place, complaints, with_local_noise
from aggregator.sections import PersonaliseSettings, PrivacySettings, SecaggSettings, Section, one_of
from aggregator.selection import SELECTIONS
from aggregator.strategies import STRATEGIES, hidden, make
from aggregator.strategies.grouped import unsplit
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import EXAMPLES_MAX, ID, ClientRule, Mode, Optimizer, Task
from fedless.protocol.secagg.epochs import COHORT_MAX, COHORT_TARGET, cohort_sizes

TASK_BYTES_MAX = 256 * 1024
NAME_MAX = 48
"""The run's id is the name and a few characters, and an id has at most 64."""
MAX_EXAMPLES = {Mode.PLAIN: 1_000_000, Mode.PAIRWISE: 10_000, Mode.HELPER: 10_000}
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(ge=0.0, le=1e6)]
FileName = Annotated[str, Field(min_length=1, max_length=1024)]


def _run_name(value: str) -> str:
    if not ID.fullmatch(value) or len(value) > NAME_MAX:
        raise ValueError(f"expected 1 to {NAME_MAX} characters a-z, 0-9 and '-', found {value[:64]!r}")
    return value


class CohortSettings(Section):
    """Who takes part in a round. `size` reports are wanted; `size` or `fraction` of the eligible clients.

    With `over_selection` 1.3, 30 % more clients than wanted are woken, and the slowest are not waited for.
    Fewer than `minimum_reports` abandon the round (0: four fifths of the wanted ones; in pairwise mode as many as
    must agree to open a sum, and of several cohorts' sums half of that). Only clients that have all `labels` are
    eligible. A run waits at most `wait_s` seconds for enough of them.
    """

    size: int = Field(0, ge=0, le=100_000)
    fraction: Fraction | None = None
    minimum_reports: int = Field(0, ge=0, le=100_000)
    over_selection: float = Field(1.3, ge=1.0, le=10.0)
    selection: Annotated[str, AfterValidator(one_of(SELECTIONS))] = "uniform"
    labels: dict[str, str] = Field(default={}, max_length=32)
    wait_s: int = Field(600, ge=0, le=604_800)

    @model_validator(mode="after")
    def _is_consistent(self) -> CohortSettings:
        if (self.size == 0) == (self.fraction is None):
            raise ValueError("expected either size (clients) or fraction (of the eligible ones)")
        if self.size and self.minimum_reports > self.size:
            raise ValueError(f"minimum_reports {self.minimum_reports} is above size {self.size}")
        return self

    def admits(self, labels: Mapping[str, str]) -> bool:
        """Whether a client with these labels may take part."""
        return self.labels.items() <= labels.items()

    def goal(self, eligible: int) -> int:
        """How many reports are wanted when this many clients are eligible."""
        return self.size or max(1, self.minimum_reports, math.ceil((self.fraction or 0.0) * eligible))

    def minimum(self, goal: int) -> int:
        """How many reports are enough."""
        return self.minimum_reports or math.ceil(0.8 * goal)

    def selected(self, goal: int) -> int:
        """How many clients to wake."""
        return math.ceil(goal * self.over_selection)


class RoundSettings(Section):
    """When a round ends. `deadline_s` seconds after its opening at the latest; `grace` times the median report
    time after the minimum was reached. After `abandon_limit` abandoned rounds in a row the run has failed.
    """  # noqa: D205

    deadline_s: int = Field(600, ge=1, le=604_800)
    grace: float = Field(1.5, ge=0.0, le=100.0)
    abandon_limit: int = Field(3, ge=1, le=1000)


class ClientSettings(Section):
    """What a client does with its data (`messages.ClientRule`), and what it may count.

    `max_examples` 0 means 1,000,000 in plain rounds, and 10,000 in masked ones, where a larger bound costs precision.
    """

    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    learning_rate: Positive = 0.01
    momentum: Positive = 0.9
    beta1: Positive = 0.9
    beta2: Positive = 0.999
    epsilon: Positive = 1e-7
    weight_decay: Positive = 0.0
    clip_norm: Positive = 0.0
    proximal_mu: Positive = 0.0
    local_epochs: int = Field(1, ge=1, le=100_000)
    max_steps: int = Field(0, ge=0, le=10**9)
    seed: int = Field(0, ge=0, lt=2**63)
    max_examples: int = Field(0, ge=0, le=EXAMPLES_MAX)
    holdout: float = Field(0.0, ge=0.0, le=0.9)
    update_limit: float = Field(1e6, gt=0.0, le=1e30)

    def rule(self) -> ClientRule:
        """What goes into the task."""
        values = self.model_dump(exclude={"max_examples", "holdout", "update_limit"})
        return ClientRule(**{**values, "optimizer": Optimizer(self.optimizer)})


class StrategyOptions(Section):
    """Numbers of the server's rule; each strategy has its own (docs/strategies.md), and refuses those of others.

    A user's own strategy may have options by other names; it checks them itself.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, float] = Field(init=False)

    learning_rate: float | None = Field(None, gt=0.0, le=1e6)
    momentum: float | None = Field(None, ge=0.0, lt=1.0)
    beta1: float | None = Field(None, ge=0.0, lt=1.0)
    beta2: float | None = Field(None, ge=0.0, lt=1.0)
    tau: float | None = Field(None, gt=0.0, le=1.0)
    trim: float | None = Field(None, gt=0.0, lt=0.5)
    byzantine: int | None = Field(None, ge=0, le=100_000)
    keep: int | None = Field(None, ge=1, le=100_000)
    norm: float | None = Field(None, gt=0.0, le=1e30)
    q: float | None = Field(None, gt=0.0, le=100.0)
    limit: float | None = Field(None, gt=0.0, le=1e6)
    buffer: int | None = Field(None, ge=1, le=100_000)
    ratio: float | None = Field(None, gt=0.0, le=1.0)
    tolerance: int | None = Field(None, ge=0, le=100_000)

    def given(self) -> dict[str, float]:
        """The options that the task file names."""
        values: dict[str, float] = self.model_dump(exclude_none=True)
        return values


class EvaluationSettings(Section):
    """How models are judged: centrally every `central_every` rounds (0: never), on `devices` devices after each
    round (0: none; on their held-out examples), which have `deadline_s` seconds. `best` is the metric that tells the
    best model (empty: the first of test_accuracy, device_accuracy, train_accuracy, test_loss, device_loss, train_loss
    that there is), and `best_is` whether its highest or its lowest value is.
    """  # noqa: D205

    central_every: int = Field(1, ge=0, le=100_000)
    devices: int = Field(0, ge=0, le=100_000)
    deadline_s: int = Field(120, ge=1, le=604_800)
    best: str = Field("", max_length=64, pattern=r"^([a-z][a-z0-9_]*)?$")
    best_is: Literal["highest", "lowest"] = "highest"


class StopSettings(Section):
    """When to stop before the last round: at this accuracy on the central test set; or when the metric
    `evaluation.best` has not improved by more than `min_delta` for `patience` judged models (0: never).
    """  # noqa: D205

    test_accuracy: Fraction | None = None
    patience: int = Field(0, ge=0, le=100_000)
    min_delta: float = Field(0.0, ge=0.0, le=1e6)


class TaskSettings(Section):
    """A whole task file. Names of files are relative to it; the command line resolves them."""

    name: Annotated[str, AfterValidator(_run_name)]
    function: FileName
    initial: FileName = ""
    test_set: str = Field("", max_length=1024)
    mode: Annotated[str, AfterValidator(one_of([mode.value for mode in Mode]))] = Mode.PAIRWISE.value
    strategy: Annotated[str, AfterValidator(one_of(STRATEGIES))] = "fedavg"
    rounds: int = Field(ge=1, le=1_000_000)
    cohort: CohortSettings
    round: RoundSettings = RoundSettings()
    client: ClientSettings = ClientSettings()
    strategy_options: StrategyOptions = StrategyOptions()
    secagg: SecaggSettings = SecaggSettings()
    privacy: PrivacySettings | None = None
    personalise: PersonaliseSettings | None = None
    evaluation: EvaluationSettings = EvaluationSettings()
    stop: StopSettings = StopSettings()

    @model_validator(mode="after")
    def _is_consistent(self) -> TaskSettings:
        problems = self._strategy_complaints() + self._privacy_complaints() + self._personal_complaints()
        if self.mode == Mode.PAIRWISE:
            problems += self._cohort_complaints()
        if self.stop.test_accuracy is not None and not (self.test_set and self.evaluation.central_every):
            problems.append("stop.test_accuracy: expected a test_set and evaluation.central_every above 0")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _cohort_complaints(self) -> list[str]:
        least, size = self.secagg.minimum, self.secagg.cohort_size
        if least > COHORT_MAX:
            return [f"secagg.minimum: expected at most {COHORT_MAX} in mode pairwise, found {least}"]
        if size and not least <= size <= COHORT_MAX:
            return [f"secagg.cohort_size: expected secagg.minimum ({least}) to {COHORT_MAX}, found {size}"]
        return []

    def _strategy_complaints(self) -> list[str]:
        try:
            strategy = make(self.strategy, self.strategy_options.given())
        except ValueError as error:
            return [str(error)]
        problems = strategy.complaints(self.client.rule())
        if (why := hidden(strategy)) and self.mode != Mode.PLAIN:
            problems.append(f"strategy {self.strategy} in mode {self.mode}: {why}; or choose mode plain")
        if why := unsplit(strategy, Mode(self.mode)):
            problems.append(f"strategy {self.strategy} in mode {self.mode}: {why}")
        elif self.cohort.size and len(sizes := self.cohort_sizes(0)) < strategy.least_cohorts:
            problems.append(
                f"secagg.cohort_size: {self.strategy} needs {strategy.least_cohorts} cohorts at least; "
                f"{self.cohort.size} clients make {len(sizes)}"
            )
        if strategy.late is not None and strategy.late.counts and self.cohort.size:
            wanted = strategy.closes_at(self.cohort.size)
            if self.cohort.minimum_reports > wanted:
                problems.append(
                    f"cohort.minimum_reports: {self.strategy} makes a model of {wanted} reports, found more"
                )
        if (why := selection.hidden(self.cohort.selection)) and self.mode != Mode.PLAIN:
            problems.append(
                f"cohort.selection {self.cohort.selection} in mode {self.mode}: {why}; or choose mode plain"
            )
        minimum, least = self.cohort.minimum(self.cohort.goal(0)), strategy.least_reports
        if minimum < least:
            problems.append(
                f"cohort.minimum_reports: {self.strategy} needs at least {least} reports, found {minimum}"
            )
        return problems

    def _privacy_complaints(self) -> list[str]:
        """What would be sent without noise, or noised twice over."""
        privacy = self.privacy
        if privacy is None:
            return []
        problems = list(complaints(privacy.place, Mode(self.mode), adaptive=privacy.adaptive))
        if self.evaluation.devices:
            problems.append(
                "evaluation.devices: expected 0 with [privacy]: its means would be sent without noise"
            )
        if self.client.max_examples > 1:
            problems.append("client.max_examples: expected none with [privacy]: every client counts the same")
        if self.secagg.l2_clip and privacy.place is not Place.LOCAL:
            problems.append("secagg.l2_clip: expected none with [privacy], whose own clip it is")
        return problems + self._vectors_without_noise(privacy.place)

    def _vectors_without_noise(self, place: Place) -> list[str]:
        try:
            strategy = make(self.strategy, self.strategy_options.given())
        except ValueError:
            return []  # told by the strategy
        rule, why = strategy.client(self.client.rule()), ""
        if rule.vectors > 1 or strategy.extras(rule, 1):
            why = "what it reports beside the update would have no noise"
        elif strategy.late is not None:
            why = "the ledger charges a round's own cohort, and it counts reports of earlier ones"
        elif place is not Place.LOCAL and hidden(strategy):
            why = "noise is for the sum, and it looks at single updates"
        return [f"strategy {self.strategy} with [privacy]: {why}"] if why else []

    def _personal_complaints(self) -> list[str]:
        if self.personalise is None:
            return []
        found = self.personalise.complaints(
            control=self.strategy == "scaffold",
            max_steps=self.client.max_steps,
            local_noise=self.privacy is not None and self.privacy.place is Place.LOCAL,
            central_target=self.stop.test_accuracy is not None,
        )
        return list(found)

    def aim(self) -> Aim:
        """What its models are judged by."""
        chosen = self.evaluation
        return Aim(chosen.best, chosen.best_is == "highest", personal=self.personalise is not None)

    def rule(self) -> ClientRule:
        """What clients do with their data."""
        rule = make(self.strategy, self.strategy_options.given()).client(self.client.rule())
        privacy = self.privacy
        if privacy is None or privacy.place is not Place.LOCAL:
            return rule
        return with_local_noise(rule, privacy.clip, privacy.multiplier)

    def cohort_sizes(self, eligible: int) -> list[int]:
        """How many clients each cohort of a selection in mode pairwise has, when so many are eligible."""
        wanted = max(self.cohort.goal(eligible), self.secagg.minimum)
        return cohort_sizes(wanted, self.secagg.cohort_size or COHORT_TARGET, self.secagg.minimum)

    def task(self, bundle_digest: bytes, parameters: int) -> Task:
        """What clients get."""
        return Task(
            name=self.name,
            bundle_digest=bundle_digest,
            parameters=parameters,
            mode=Mode(self.mode),
            rule=self.rule(),
            max_examples=1 if self.privacy else self.client.max_examples or MAX_EXAMPLES[Mode(self.mode)],
            holdout=self.client.holdout,
        )


def parse(text: str, where: str = "task file") -> TaskSettings:
    """The settings in a task file's text; raises `LocalError` CONFIG_INVALID that tells every mistake."""
    if len(text.encode()) > TASK_BYTES_MAX:
        raise LocalError(Code.CONFIG_INVALID, f"{where}: expected at most {TASK_BYTES_MAX} bytes.")
    own.load()
    try:
        return TaskSettings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise LocalError(Code.CONFIG_INVALID, f"{where} is not TOML: {error}.") from error
    except ValidationError as error:
        lines = "".join(f"\n  {line}" for line in _complaints(error))
        raise LocalError(Code.CONFIG_INVALID, f"{where}:{lines}") from error


def load(path: Path) -> TaskSettings:
    """The settings in a task file; raises `LocalError` CONFIG_INVALID."""
    try:
        return parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(Code.CONFIG_INVALID, f"{path} cannot be read: {error}.") from error


def _complaints(error: ValidationError) -> Iterator[str]:
    """TOML path, what was expected, what was found; one line each."""
    for mistake in error.errors(include_url=False):
        where = ".".join(str(part) for part in mistake["loc"])
        found = str(mistake["input"])
        match mistake["type"]:
            case "extra_forbidden":
                yield f"{where}: unknown key"
            case "missing":
                yield f"{where}: missing"
            case "value_error":
                said = mistake["msg"].removeprefix("Value error, ")
                yield f"{where}: {said}" if where else said
            case _:
                said = mistake["msg"].replace("Input should be", "expected")
                yield f"{where}: {said}, found {found[:60]!r}"
