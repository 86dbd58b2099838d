"""Task files: every field is documented, every mistake is told, all at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from aggregator import tasks
from aggregator.selection import SELECTIONS
from aggregator.strategies import STRATEGIES
from fedless.protocol import wire
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import Mode, Optimizer

SAMPLE = Path(__file__).parents[3] / "deploy" / "samples" / "task.toml"
GOOD = 'name = "a-task"\nfunction = "a.bundle"\nrounds = 3\n[cohort]\nsize = 10\n'


def complaint(text: str) -> str:
    with pytest.raises(LocalError) as failure:
        tasks.parse(text)
    assert failure.value.code is Code.CONFIG_INVALID
    return failure.value.detail


def fields(kind: type[BaseModel], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, field in kind.model_fields.items():
        inner = next(iter(get_args(field.annotation)), field.annotation)  # of a section that may be left out
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += fields(inner, f"{name}.")
        else:
            found.append(prefix + name)
    return found


def test_the_sample_names_every_field_with_its_default() -> None:
    text = SAMPLE.read_text()
    uncommented = re.sub(r"^# (\w+ = |\[)", r"\1", text, flags=re.MULTILINE)
    for cannot_be_together in ("fraction = 0.1", "test_accuracy = 0.95"):
        uncommented = uncommented.replace(cannot_be_together, "")
    uncommented = re.sub(r"^\[strategy_options\].*?^\[", "[", uncommented, flags=re.MULTILINE | re.DOTALL)
    told = tasks.parse(uncommented)  # without the options: no strategy has all of them
    for path in fields(tasks.TaskSettings):
        table, _, name = path.rpartition(".")
        section = text if not table else text[text.index(f"[{table}]") :]
        assert re.search(rf"^(# )?{name} = ", section, flags=re.MULTILINE), f"{path} is not in the sample"
    default = tasks.parse(GOOD)
    assert told.round == default.round
    assert told.evaluation == default.evaluation
    assert told.cohort.over_selection == default.cohort.over_selection
    assert tasks.load(SAMPLE).client.learning_rate == 0.001


def test_several_mistakes_are_told_at_once() -> None:
    said = complaint(
        'name = "A Task"\nfunction = "a.bundle"\nrounds = "three"\nroundz = 3\nstrategy = "fedfoo"\n'
        '[cohort]\nsize = -1\nselection = "psychic"\n[client]\noptimizer = "lion"\nlearning_rate = "fast"\n'
    )
    for line in (
        "name: expected 1 to 48 characters a-z, 0-9 and '-', found 'A Task'",
        "rounds: expected a valid integer, found 'three'",
        "roundz: unknown key",
        f"strategy: expected one of {', '.join(STRATEGIES)}, found 'fedfoo'",
        "cohort.size: expected greater than or equal to 0, found '-1'",
        f"cohort.selection: expected one of {', '.join(SELECTIONS)}, found 'psychic'",
        "client.optimizer: expected 'sgd', 'momentum' or 'adam', found 'lion'",
        "client.learning_rate: expected a valid number, found 'fast'",
    ):
        assert line in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("size = 10", ""), "expected either size (clients) or fraction"),
        (("size = 10", "size = 10\nfraction = 0.5"), "expected either size (clients) or fraction"),
        (("size = 10", "size = 10\nminimum_reports = 11"), "minimum_reports 11 is above size 10"),
        (("rounds = 3", ""), "rounds: missing"),
        (("rounds = 3", 'rounds = 3\nmode = "hidden"'), "mode: expected one of plain, pairwise, helper"),
        (
            ("size = 10", "size = 200\n[secagg]\nminimum = 129"),
            "secagg.minimum: expected at most 128 in mode pairwise, found 129",
        ),
        (
            ("size = 10", "size = 24\n[secagg]\ncohort_size = 7"),
            "secagg.cohort_size: expected secagg.minimum (8) to 128, found 7",
        ),
        (("rounds = 3", 'rounds = 3\nstrategy = "fedprox"'), "client.proximal_mu: expected a number above 0"),
        (("size = 10", "size = 10\n[client]\nproximal_mu = 0.1"), "use fedprox"),
        (("size = 10", "size = 10\n[stop]\ntest_accuracy = 0.9"), "stop.test_accuracy: expected a test_set"),
        (("size = 10", "size = 10\n[client]\nlearning_rate = nan"), "client.learning_rate"),
        (("size = 10", "size = 1.5"), "cohort.size"),
        (("name", "name ="), "is not TOML"),
        (("rounds = 3", 'rounds = 3\nstrategy = "krum"'), "strategy_options.byzantine: missing"),
        (("size = 10", "size = 10\n[strategy_options]\ntau = 0.1"), "tau: fedavg does not use it"),
        (
            ("size = 10", "size = 10\n[strategy_options]\nbeta1 = 1.0"),
            "strategy_options.beta1: expected less than 1",
        ),
        (("rounds = 3", 'rounds = 3\nstrategy = "median"'), "in mode pairwise: it must see single updates"),
        (
            ("rounds = 3", 'rounds = 3\nmode = "plain"\nstrategy = "krum"\nstrategy_options.byzantine = 3'),
            "cohort.minimum_reports: krum needs at least 9 reports, found 8",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(change: tuple[str, str], said: str) -> None:
    assert said in complaint(GOOD.replace(*change, 1))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="cannot be read") as failure:
        tasks.load(tmp_path / "absent.toml")
    assert failure.value.code is Code.CONFIG_INVALID


def test_a_huge_file_is_refused() -> None:
    assert "at most" in complaint(GOOD + "#" * tasks.TASK_BYTES_MAX)


def test_cohort_sizes() -> None:
    cohort = tasks.parse(GOOD).cohort
    assert (cohort.goal(1000), cohort.minimum(10), cohort.selected(10)) == (10, 8, 13)
    cohort = tasks.parse(GOOD.replace("size = 10", "fraction = 0.1\nover_selection = 1.0")).cohort
    assert (cohort.goal(95), cohort.minimum(10), cohort.selected(10)) == (10, 8, 10)
    cohort = tasks.parse(GOOD.replace("size = 10", "fraction = 0.1\nminimum_reports = 5")).cohort
    assert (cohort.goal(20), cohort.minimum(5)) == (5, 5), "the wished minimum is never lowered"


def test_what_clients_get() -> None:
    text = (
        GOOD + '[client]\noptimizer = "adam"\nlearning_rate = 0.001\nlocal_epochs = 2\nmax_examples = 500\n'
    )
    task = tasks.parse(text).task(bytes(32), 582_026)
    assert wire.task_from_bytes(wire.task_to_bytes(task)) == task
    assert (task.mode, task.rule.optimizer, task.rule.local_epochs) == (Mode.PAIRWISE, Optimizer.ADAM, 2)
    assert (task.parameters, task.max_examples) == (582_026, 500)


PRIVACY = '\n[privacy]\nnoise = "{noise}"\nmultiplier = 1.0\nclip = 0.5\n{more}\n'


@pytest.mark.parametrize(
    ("noise", "mode", "more", "said"),
    [
        ("distributed", "helper", "", "privacy.noise distributed: expected mode pairwise"),
        ("distributed", "plain", "", "privacy.noise distributed: expected mode pairwise"),
        ("helper", "pairwise", "", "privacy.noise helper: expected mode helper"),
        ("local", "plain", "adaptive = true", "privacy.adaptive: expected false with local noise"),
        ("server", "plain", "[evaluation]\ndevices = 3", "evaluation.devices: expected 0 with [privacy]"),
        (
            "server",
            "plain",
            "[client]\nmax_examples = 100",
            "client.max_examples: expected none with [privacy]",
        ),
        ("server", "pairwise", "[secagg]\nl2_clip = 1.0", "secagg.l2_clip: expected none with [privacy]"),
        ("laplace", "plain", "", "privacy.noise: expected one of server, helper, distributed, local"),
    ],
)
def test_private_task_that_would_send_a_coordinate_without_noise_is_refused(
    noise: str, mode: str, more: str, said: str
) -> None:
    text = GOOD.replace("rounds = 3", f'rounds = 3\nmode = "{mode}"') + PRIVACY.format(noise=noise, more=more)
    assert said in complaint(text)


@pytest.mark.parametrize("strategy", ["fednova", "scaffold", "qfedavg", "median"])
def test_strategy_whose_reports_say_more_than_a_mean_is_refused_with_privacy(strategy: str) -> None:
    options = {"qfedavg": "[strategy_options]\nq = 1.0\nlimit = 10.0\n"}.get(strategy, "")
    text = GOOD.replace("rounds = 3", f'rounds = 3\nmode = "plain"\nstrategy = "{strategy}"')
    assert "with [privacy]" in complaint(text + PRIVACY.format(noise="server", more=options))


def test_local_noise_goes_into_the_clients_rule_and_everybody_weighs_the_same() -> None:
    task = tasks.parse(GOOD + PRIVACY.format(noise="local", more="")).task(bytes(32), 5)
    assert (task.rule.example_clip, task.rule.example_noise, task.max_examples) == (0.5, 1.0, 1)
    task = tasks.parse(GOOD + PRIVACY.format(noise="distributed", more="")).task(bytes(32), 5)
    assert (task.rule.example_clip, task.rule.example_noise, task.max_examples) == (0.0, 0.0, 1)
