"""An experiment's price and power tables, read before anything runs, and the accounts that are kept with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from aggregator import rates
from cloud_adapters import prices
from fedless.experiments.accounts import DEVICE, Tables, accounts
from fedless.experiments.config import Anchor, Experiment
from fedless.experiments.groups import ClientGroup
from fedless.protocol.errors import Code, LocalError


@dataclass(frozen=True)
class Books:
    """What a run is priced with, and whose figures it is set beside."""

    groups: tuple[ClientGroup, ...]
    anchors: tuple[Anchor, ...]
    tables: Tables
    prices_at: str

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """The tables that the experiment names. Raises `LocalError(CONFIG_INVALID)`: no table, or no such profile."""
        costs = experiment.costs
        table = prices.load(costs.prices) if costs.prices else prices.load()
        power = rates.load(costs.power)
        devices = {group.device or DEVICE for group in experiment.groups if not group.functions} | {DEVICE}
        for wanted, known in ((devices, power.devices), ({costs.server}, power.servers)):
            if missing := sorted(wanted - known.keys()):
                raise LocalError(
                    Code.CONFIG_INVALID,
                    f"The power table has no {', '.join(missing)}; it has {', '.join(sorted(known))}.",
                    fix="Name one of these, or give a table of your own in [cost] power.",
                )
        return cls(
            experiment.groups,
            experiment.anchors,
            Tables(table.by_platform, power, costs.server),
            str(table.at),
        )

    def kept(self, rounds: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> dict[str, Any]:
        """The further keys of summary.json: `cost` and `anchors`."""
        spent = accounts(rounds, self.groups, summary["training_seconds"], self.tables)
        found = {"cost": {"prices_at": self.prices_at, **spent}}
        return {**found, "anchors": beside(self.anchors, {**summary, **found})}


def beside(anchors: Sequence[Anchor], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each figure of somebody else's with ours: None where this run has none."""
    found = []
    for one in anchors:
        value: Any = summary if one.ours else None
        for key in one.ours.split(".") if one.ours else ():
            value = value.get(key) if isinstance(value, Mapping) else None
        found.append({"name": one.name, "ours": value, "theirs": one.theirs, "source": one.source})
    return found
