"""The best model and early stopping, by hand."""

from __future__ import annotations

import math

import pytest

from aggregator import tasks
from aggregator.judgement import Aim, Scored, best, stale, why_stop


def scored(name: str, *values: float | None) -> list[Scored]:
    return [Scored(n, {} if value is None else {name: value}) for n, value in enumerate(values, 1)]


def test_best_is_the_earliest_of_the_highest_or_lowest() -> None:
    accuracy = scored("test_accuracy", 0.5, 0.9, 0.7, 0.9)
    assert best(accuracy, Aim()) == (2, 0.9)
    assert best(scored("device_loss", 0.5, 0.2, 0.7), Aim("device_loss", higher=False)) == (2, 0.2)
    assert best(scored("train_loss", 0.5, 0.2, 0.7), Aim()) == (2, 0.2)
    assert best(scored("test_loss", 0.5), Aim("test_accuracy")) is None
    assert best([], Aim()) is None


def test_a_personalised_run_is_not_judged_by_a_model_without_its_personal_part() -> None:
    """The aggregator's model has an untrained head: its best version there need not be the devices' best."""
    versions = [
        Scored(1, {"test_accuracy": 0.9, "device_accuracy": 0.4, "train_loss": 2.0}),
        Scored(2, {"test_accuracy": 0.1, "device_accuracy": 0.8, "train_loss": 1.0}),
    ]
    assert best(versions, Aim()) == (1, 0.9)
    assert best(versions, Aim(personal=True)) == (2, 0.8)
    assert best(versions, Aim("test_accuracy", personal=True)) == (1, 0.9), "a task may name what it likes"
    central = [Scored(1, {"test_accuracy": 0.9, "test_loss": 1.0, "train_loss": 2.0})]
    assert Aim(personal=True).of(central) == Aim("train_loss", higher=False)
    text = 'name = "a"\nfunction = "a"\nrounds = 1\nmode = "plain"\n[cohort]\nsize = 10\n'
    assert tasks.parse(text).aim() == Aim()
    assert tasks.parse(f"{text}[personalise]\nlayers = 1\n").aim() == Aim(personal=True)


def test_accuracy_comes_before_loss_and_the_test_set_before_devices() -> None:
    both = [Scored(1, {"test_loss": 1.0, "device_accuracy": 0.4, "train_loss": 2.0})]
    assert Aim().of(both) == Aim("device_accuracy")
    everything = [Scored(1, {"test_accuracy": 0.9, "device_accuracy": 0.4})]
    assert Aim().of(everything) == Aim("test_accuracy")
    both = [Scored(1, {"test_loss": 1.0, "train_loss": 2.0})]
    assert Aim().of(both) == Aim("test_loss", higher=False)


def test_what_is_not_a_number_is_nobodys_best() -> None:
    assert best(scored("test_loss", math.nan, 0.4, math.inf), Aim()) == (2, 0.4)


@pytest.mark.parametrize(
    ("values", "min_delta", "since"),
    [
        ((0.5, 0.6, 0.7), 0.0, 0),
        ((0.5, 0.7, 0.6, 0.7), 0.0, 2),
        ((0.5, 0.505, 0.509, 0.52), 0.01, 0),  # slow, but more than 0.01 since it was last better
        ((0.5, 0.505, 0.509), 0.01, 2),
        ((0.5, None, 0.4, None), 0.0, 1),  # only judged models count
    ],
)
def test_models_without_improvement(values: tuple[float | None, ...], min_delta: float, since: int) -> None:
    assert stale(scored("test_accuracy", *values), Aim(), min_delta) == since


def test_patience_ends_with_a_reason_that_names_the_best() -> None:
    accuracy = scored("test_accuracy", 0.5, 0.9, 0.7, 0.9)
    assert why_stop(accuracy, Aim(), 0, 0.0) == ""
    assert why_stop(accuracy, Aim(), 3, 0.0) == ""
    expected = "test_accuracy has not improved for 2 models; the best is version 2 with 0.9000"
    assert why_stop(accuracy, Aim(), 2, 0.0) == expected
    assert "by more than 0.1" in why_stop(accuracy, Aim(), 2, 0.1)
    assert why_stop([], Aim(), 1, 0.0) == ""
