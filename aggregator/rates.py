"""The power table (`cloud_adapters/power.toml`, or one of the operator's own) as `cost.Rates`.

Called by the experiments. The table is dated and may be edited; every profile names its source.
"""

from __future__ import annotations

import tomllib
from datetime import date
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from aggregator.cost import DevicePower, FunctionPower, Rates, Server
from fedless.protocol.errors import Code, LocalError

OWN_TABLE = "power.toml"


def load(path: Path | None = None) -> Rates:
    """The table in a file; None: the one that comes with fedless. Raises `LocalError(CONFIG_INVALID)`."""
    if path is not None:
        return _read(path)
    with as_file(files("cloud_adapters") / OWN_TABLE) as own:
        return _read(own)


def _read(path: Path) -> Rates:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        at = values["at"]
        if not isinstance(at, date):
            raise TypeError("`at` must be a date")  # noqa: TRY301 - one border for all mistakes
        return Rates(
            at=at,
            per_kwh_usd=_positive(values, "per_kwh_usd"),
            devices={name: DevicePower(**_row(row)) for name, row in values["devices"].items()},
            servers={name: Server(**_row(row)) for name, row in values["servers"].items()},
            functions=FunctionPower(**_row(values["functions"])),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise LocalError(
            Code.CONFIG_INVALID,
            f"{path} is no power table ({error}).",
            fix="Take cloud_adapters/power.toml as the example.",
        ) from error


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value if key == "source" else _positive(row, key) for key, value in row.items()}


def _positive(row: dict[str, Any], key: str) -> float:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{key} must be a number from 0 on, is {value!r}")
    return float(value)
