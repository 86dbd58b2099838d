"""*Pure.* How long one client takes, and how often it is there: measured, else put together of what is assumed.

Called by `plan.py` for its times and by its cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from aggregator.cost import (
    Amount,
    Basis,
    DevicePower,
    DeviceUse,
    FunctionPower,
    FunctionUse,
    device,
    function,
)
from aggregator.demand import Assumed, Client, Wanted, Work
from aggregator.forecast import Times
from cloud_adapters.billing import Price

PRIOR = 2.0
"""A client's own record counts as much as the assumption after this many rounds."""


@dataclass(frozen=True)
class Tariff:
    """What a device draws and a function costs; see `cost.py`. `prices` by platform."""

    per_kwh_usd: float
    device: DevicePower
    functions: FunctionPower
    prices: Mapping[str, Price]


def times(wanted: Wanted, client: Client, taken: Assumed) -> Times:
    """When its reports are there, ms from the opening: as before with this bundle, else put together."""
    same = tuple(_again(wanted, work) for work in client.works if work.same)
    if same:
        return Times(presence(client, taken), same)
    others = [work for work in client.works if work.run_ms]
    wake = median(work.wake_ms for work in others) if others else taken.wake_ms
    around = median(work.work_ms - work.run_ms for work in others) if others else taken.overhead_ms
    link_ms = 8e-3 * (wanted.model_bytes + wanted.report_bytes) / taken.mbit_per_s
    total = wake + around + training_ms(wanted, taken) + (0.0 if others else link_ms)
    return Times(presence(client, taken), (total,), taken.spread)


def _again(wanted: Wanted, work: Work) -> float:
    """A round of the same bundle: its training scaled to the epochs wanted now; all of it where it said no parts."""
    training = work.run_ms or work.work_ms
    scale = 1.0 if wanted.max_steps else wanted.epochs / max(1, work.epochs)
    return work.wake_ms + max(0.0, work.work_ms - training) + training * scale


def training_ms(wanted: Wanted, taken: Assumed) -> float:
    """What training takes where nobody measured it, ms."""
    examples = taken.examples * wanted.epochs
    if wanted.max_steps:
        examples = min(examples, float(wanted.max_steps * wanted.batch))
    return 1000 * examples / taken.examples_per_s


def presence(client: Client, taken: Assumed) -> float:
    """Its share of rounds, with what is assumed of it counting as two rounds more."""
    prior = taken.presence if client.online or client.platform else taken.presence_offline
    return (client.reported + PRIOR * prior) / (client.asked + PRIOR)


def outlay(wanted: Wanted, clients: Sequence[Client], taken: Assumed, tariff: Tariff) -> Amount | None:
    """What one client's part in a round costs on average: money and energy; None where a platform has no price."""
    total = Amount()
    for client in clients:
        one = _outlay(wanted, client, taken, tariff)
        if one is None:
            return None
        total += one
    share = 1 / max(1, len(clients))
    return Amount(total.usd * share, total.wh * share, Basis.MODELLED)


def _outlay(wanted: Wanted, client: Client, taken: Assumed, tariff: Tariff) -> Amount | None:
    same = [work for work in client.works if work.same]
    training = median(_trained(wanted, work) for work in same) if same else training_ms(wanted, taken)
    moved = wanted.model_bytes + wanted.report_bytes
    transfer_ms = 8e-3 * moved / taken.mbit_per_s
    if not client.platform:
        use = DeviceUse(train_s=training / 1000, transfer_s=transfer_ms / 1000, bytes_moved=moved)
        return device(use, tariff.device, tariff.per_kwh_usd)
    price = tariff.prices.get(client.platform)
    if price is None:
        return None
    billed = median(work.work_ms for work in same) if same else training + taken.overhead_ms + transfer_ms
    return function(FunctionUse(billed, client.memory_mb, 1, wanted.report_bytes), price, tariff.functions)


def _trained(wanted: Wanted, work: Work) -> float:
    scale = 1.0 if wanted.max_steps else wanted.epochs / max(1, work.epochs)
    return (work.run_ms or work.work_ms) * scale
