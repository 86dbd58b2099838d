"""What an invocation costs: figures times a dated price table, which anybody may edit (`prices.toml`).

Called by the aggregator for each invocation that ended. Rule: the platform's own figures where it returns them; an
estimate from the function's own says so (`measured` is False).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cloud_adapters.base import Figures
from cloud_adapters.billing import Price, bill
from fedless.protocol.errors import Code, LocalError

OWN_TABLE = Path(__file__).with_name("prices.toml")


@dataclass(frozen=True)
class Cost:
    """Of one invocation with all its attempts. `measured`: from the platform's own figures."""

    usd: float
    gb_s: float
    measured: bool


@dataclass(frozen=True)
class Prices:
    """The table: the day of its figures, and a price for each platform."""

    at: date
    by_platform: Mapping[str, Price]

    def cost(self, platform: str, figures: Figures, attempts: int, bytes_out: int) -> Cost | None:
        """None where the platform has no price or nothing is known of the invocation."""
        price = self.by_platform.get(platform)
        if price is None or not figures.source:
            return None
        billed = bill(price, figures.billed_ms, figures.memory_mb, attempts, bytes_out)
        return Cost(billed.usd, billed.gb_s, figures.source == "platform")


def load(path: Path = OWN_TABLE) -> Prices:
    """The table in a file. Raises `LocalError(CONFIG_INVALID)`."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        at = values.pop("at")
        if not isinstance(at, date):
            raise TypeError("`at` must be a date")  # noqa: TRY301 - one border for all mistakes
        return Prices(at, {name: Price(**table) for name, table in values.items()})
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise LocalError(
            Code.CONFIG_INVALID,
            f"{path} is no price table ({error}).",
            fix="Take cloud_adapters/prices.toml as the example.",
        ) from error
