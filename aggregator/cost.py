"""*Pure.* Seconds, bytes and GB-seconds in, money and energy out: of devices, functions and always-on servers.

Called by the experiments' reports and by `plan`. The tables come from `rates`. Rules: an `Amount` says what its money
rests on (`Basis`): a platform's own figures are measured, a profile's watts and an estimated time are modelled; a sum
with a modelled part is modelled. Energy is always modelled here: nobody measures watts for us. The electricity of
rented machines and functions is in their price, that of one's own devices is paid by the kWh.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from cloud_adapters.billing import Price, bill

_WH_PER_WS = 1 / 3600
_GB = 1e9


class Basis(StrEnum):
    """What an amount of money rests on."""

    MEASURED = "measured"
    MODELLED = "modelled"


@dataclass(frozen=True)
class Amount:
    """US dollars and watt-hours; `basis` speaks of the dollars."""

    usd: float = 0.0
    wh: float = 0.0
    basis: Basis = Basis.MEASURED

    def __add__(self, other: Amount) -> Amount:
        """Both together; modelled if either is."""
        basis = Basis.MODELLED if Basis.MODELLED in (self.basis, other.basis) else Basis.MEASURED
        return Amount(self.usd + other.usd, self.wh + other.wh, basis)


@dataclass(frozen=True)
class DevicePower:
    """A device's profile: watts while it waits, trains and transfers; dollars for each GB on its line."""

    source: str
    idle_w: float
    train_w: float
    transfer_w: float
    per_gb_usd: float = 0.0


@dataclass(frozen=True)
class FunctionPower:
    """A cloud's profile: watts of a busy virtual processor, processors for each GB of memory, the building's factor."""

    source: str
    watts_per_vcpu: float
    vcpu_per_gb: float
    pue: float


@dataclass(frozen=True)
class Server:
    """A rented machine that is always on: dollars an hour, virtual processors, watts with the building's share."""

    source: str
    per_hour_usd: float
    vcpus: float
    memory_gb: float
    watts: float


@dataclass(frozen=True)
class Rates:
    """The power table: the day of its figures, dollars for a kWh, and the profiles by name."""

    at: date
    per_kwh_usd: float
    devices: Mapping[str, DevicePower]
    servers: Mapping[str, Server]
    functions: FunctionPower


@dataclass(frozen=True)
class DeviceUse:
    """What a device did, seconds and bytes. `idle_s` counts only if the device would be off otherwise."""

    train_s: float = 0.0
    transfer_s: float = 0.0
    idle_s: float = 0.0
    bytes_moved: int = 0


@dataclass(frozen=True)
class FunctionUse:
    """One invocation: billed ms, MB as deployed, attempts, bytes out of the platform; `measured`: its own figures."""

    billed_ms: float
    memory_mb: float
    attempts: int = 1
    bytes_out: int = 0
    measured: bool = False


def device(use: DeviceUse, power: DevicePower, per_kwh_usd: float) -> Amount:
    """A device's electricity and traffic. What it draws beyond idling is counted for training and transfers in full."""
    watt_seconds = use.train_s * power.train_w + use.transfer_s * power.transfer_w + use.idle_s * power.idle_w
    wh = watt_seconds * _WH_PER_WS
    usd = wh / 1000 * per_kwh_usd + use.bytes_moved / _GB * power.per_gb_usd
    return Amount(usd, wh, Basis.MODELLED)


def function(use: FunctionUse, price: Price, power: FunctionPower) -> Amount:
    """One invocation's bill, and the energy of the processor share that its memory stands for."""
    billed = bill(price, use.billed_ms, use.memory_mb, use.attempts, use.bytes_out)
    basis = Basis.MEASURED if use.measured else Basis.MODELLED
    return Amount(billed.usd, function_wh(billed.gb_s, power), basis)


def function_wh(gb_s: float, power: FunctionPower) -> float:
    """Watt-hours of that many GB-seconds of a function."""
    return gb_s * power.vcpu_per_gb * power.watts_per_vcpu * power.pue * _WH_PER_WS


def servers(count: int, seconds: float, server: Server) -> Amount:
    """`count` machines that are on for `seconds`, whatever they do."""
    machine_s = count * seconds
    return Amount(
        machine_s / 3600 * server.per_hour_usd, machine_s * server.watts * _WH_PER_WS, Basis.MODELLED
    )


def total(amounts: Iterable[Amount]) -> Amount:
    """All of them together; nothing costs nothing."""
    return sum(amounts, Amount())
