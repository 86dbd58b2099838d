"""*Pure.* Strategies: from a round's updates to the next model.

A strategy declares the server's rule with its options, the vectors it keeps from model to model, what it asks of the
client's rule, and (a `Robust` one) that it must see single updates, which masks hide, or (a `Grouped` one) the means
of cohorts. docs/strategies.md shows all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass

from aggregator.strategies.adaptive import FedAdagrad, FedAdam, FedYogi
from aggregator.strategies.base import Strategy
from aggregator.strategies.fedavg import FedAvg
from aggregator.strategies.fedavgm import FedAvgM
from aggregator.strategies.fednova import FedNova
from aggregator.strategies.fedprox import FedProx
from aggregator.strategies.grouped import GroupMedian, GroupTrimmedMean
from aggregator.strategies.latecomers import Apodotiko, FedBuff, FedLesScan
from aggregator.strategies.qfedavg import QFedAvg
from aggregator.strategies.robust import Krum, Median, NormClipping, Robust, TrimmedMean
from aggregator.strategies.scaffold import Scaffold

STRATEGIES: dict[str, type[Strategy]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fednova": FedNova,
    "scaffold": Scaffold,
    "qfedavg": QFedAvg,
    "fedbuff": FedBuff,
    "fedlesscan": FedLesScan,
    "apodotiko": Apodotiko,
    "median": Median,
    "trimmed-mean": TrimmedMean,
    "krum": Krum,
    "norm-clipping": NormClipping,
    "group-median": GroupMedian,
    "group-trimmed-mean": GroupTrimmedMean,
}
"""By the name that a task gives; a user's own are added by `own.load`."""


def register(name: str, kind: object) -> None:
    """Adds a user's own; raises `ValueError` for a name that is taken and for what is no strategy."""
    if name in STRATEGIES:
        raise ValueError(f"there is a strategy {name} already")
    if not (isinstance(kind, type) and issubclass(kind, Strategy) and is_dataclass(kind)):
        raise ValueError("expected a subclass of aggregator.strategies.base.Strategy that is a dataclass")
    STRATEGIES[name] = kind


def make(name: str, options: Mapping[str, float]) -> Strategy:
    """The named strategy with these options; raises `ValueError` with every option that is unknown to it or missing."""
    kind = STRATEGIES[name]
    known = {field.name: field.default is MISSING for field in fields(kind)}
    problems = [
        f"strategy_options.{option}: {name} does not use it; it has {', '.join(known) or 'no options'}"
        for option in options
        if option not in known
    ]
    problems += [
        f"strategy_options.{option}: missing; {name} needs it"
        for option, needed in known.items()
        if needed and option not in options
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return kind(**options)


def hidden(strategy: Strategy) -> str:
    """Why it cannot work under masks, and what can; empty if it can."""
    if strategy.late is not None:
        return (
            "it counts reports on older models, whose masks are of a round that is closed; in mode helper,"
            " cohort.over_selection spares a round the slowest"
        )
    if not isinstance(strategy, Robust):
        return ""
    if isinstance(strategy, NormClipping):
        return "it must see single updates, which masks hide; secagg.l2_clip lets each client clip its own"
    if isinstance(strategy, Median | TrimmedMean):
        return "it must see single updates, which masks hide; group-median and group-trimmed-mean take cohorts' means"
    return "it must see single updates, which masks hide; secagg.clip and secagg.l2_clip bound what one client can do"
