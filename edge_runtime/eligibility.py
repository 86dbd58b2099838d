"""*Pure.* May this device train now? Yes, or "not before T, because R".

The participant asks after it has verified a ticket and before it starts an instance; the answer goes to the aggregator,
which plans with it. `sources` reads what is judged here. What a device cannot tell (None) never stands in the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

MINUTES_PER_DAY = 1440
_SOON_MS, _LATER_MS, _LONG_MS = 60_000, 300_000, 900_000
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class Readings:
    """How the device is. None: it cannot tell.

    `battery` from 0 to 1; `load` is the one-minute average per core; `minute` of the local day, from 0; `used_bytes`
    are today's over a metered link.
    """

    mains: bool | None = None
    battery: float | None = None
    temperature_c: float | None = None
    under_voltage: bool | None = None
    load: float | None = None
    free_mb: int | None = None
    metered: bool | None = None
    link_mbit: float | None = None
    used_bytes: int = 0
    minute: int = 0


@dataclass(frozen=True)
class Rules:
    """`[eligibility]` of `edge.toml`; 0 and empty switch a rule off.

    `quiet` are minutes of the local day, from and to (to may be smaller: over midnight).
    """

    mains_only: bool = False
    min_battery: float = 0.3
    max_temperature_c: float = 80.0
    max_load: float = 0.0
    min_free_mb: int = 64
    metered_mb_per_day: int = 100
    min_link_mbit: float = 0.0
    quiet: tuple[int, int] | None = None


@dataclass(frozen=True)
class Verdict:
    """`not_before_ms` 0: now. Else the device's reasons, which are words of this module and hold no data."""

    not_before_ms: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def eligible(self) -> bool:
        """Whether it may train now."""
        return not self.reasons

    @property
    def reason(self) -> str:
        """All reasons as one text."""
        return "; ".join(self.reasons)


def judge(rules: Rules, readings: Readings, now_ms: int) -> Verdict:
    """The answer at Unix time `now_ms`: every rule is asked, the longest wait counts."""
    found = [
        *_power(rules, readings),
        *_machine(rules, readings),
        *_link(rules, readings),
        *_quiet(rules, readings),
    ]
    if not found:
        return Verdict()
    return Verdict(now_ms + max(wait for wait, _ in found), tuple(reason for _, reason in found))


def _power(rules: Rules, now: Readings) -> Iterator[tuple[int, str]]:
    if rules.mains_only and now.mains is False:
        yield _LONG_MS, "it runs on battery, and mains_only is set"
    elif now.mains is not True and now.battery is not None and now.battery < rules.min_battery:
        yield _LONG_MS, f"its battery is at {now.battery:.0%}, under {rules.min_battery:.0%}"
    if now.under_voltage:
        yield _LATER_MS, "its supply voltage is too low"


def _machine(rules: Rules, now: Readings) -> Iterator[tuple[int, str]]:
    if (
        rules.max_temperature_c
        and now.temperature_c is not None
        and now.temperature_c > rules.max_temperature_c
    ):
        yield _LATER_MS, f"it has {now.temperature_c:.0f} C, above {rules.max_temperature_c:.0f} C"
    if rules.max_load and now.load is not None and now.load > rules.max_load:
        yield _SOON_MS, f"its load per core is {now.load:.1f}, above {rules.max_load:.1f}"
    if now.free_mb is not None and now.free_mb < rules.min_free_mb:
        yield _SOON_MS, f"it has {now.free_mb} MB of free memory, under {rules.min_free_mb} MB"


def _link(rules: Rules, now: Readings) -> Iterator[tuple[int, str]]:
    budget = rules.metered_mb_per_day << 20
    if now.metered and now.used_bytes >= budget:
        tomorrow = (MINUTES_PER_DAY - now.minute) * _MINUTE_MS
        yield tomorrow, f"its metered link has used today's {rules.metered_mb_per_day} MB"
    if rules.min_link_mbit and now.link_mbit is not None and now.link_mbit < rules.min_link_mbit:
        yield _LONG_MS, f"its link has {now.link_mbit:g} Mbit/s, under {rules.min_link_mbit:g}"


def _quiet(rules: Rules, now: Readings) -> Iterator[tuple[int, str]]:
    if rules.quiet is None:
        return
    begin, end = rules.quiet
    inside = begin <= now.minute < end if begin <= end else now.minute >= begin or now.minute < end
    if inside:
        left = (end - now.minute) % MINUTES_PER_DAY
        yield left * _MINUTE_MS, f"it is quiet until {end // 60:02d}:{end % 60:02d}"


def names() -> tuple[str, ...]:
    """Of everything that can be read, for trace files."""
    return tuple(item.name for item in fields(Readings))
