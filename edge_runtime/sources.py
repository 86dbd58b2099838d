"""Where a device's readings come from: small functions over Linux's files, or a trace file for tests and experiments.

Called by the participant and `doctor`. Every source answers with the fields that it knows and with nothing when its
file is missing: a board without a battery is not an error. `READ` lists them; a device with another sensor adds one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from edge_runtime.eligibility import Readings, names
from fedless.protocol.errors import Code, LocalError

Values = Mapping[str, object]
_UNDER_VOLTAGE_NOW = 1 << 0
_VCGENCMD_S = 2.0


def read(root: Path = Path("/"), *, used_bytes: int = 0, metered: bool | None = None) -> Readings:
    """Ask every source. `metered` is what the owner says of the link; `used_bytes` is the journal's count for today."""
    values: dict[str, object] = {}
    for source in READ:
        values |= source(root)
    moment = time.localtime()
    values |= {"minute": moment.tm_hour * 60 + moment.tm_min, "used_bytes": used_bytes, "metered": metered}
    return Readings(**values)  # type: ignore[arg-type]  # each source gives its own fields


def trace(path: Path, at_ms: int) -> Readings:
    """The last line of a trace that is not after `at_ms`: JSON objects, `at_ms` (Unix) and fields of `Readings`.

    Raises `LocalError(CONFIG_INVALID)` for a file that is none, naming the line.
    """
    found: dict[str, object] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(
            Code.CONFIG_INVALID, f"The trace {path} cannot be read: {type(error).__name__}."
        ) from error
    for number, line in enumerate(lines, 1):
        values = _trace_line(path, number, line)
        if values.pop("at_ms") <= at_ms:  # type: ignore[operator]  # checked by _trace_line
            found = values
    return Readings(**found)  # type: ignore[arg-type]  # its names are checked, its values are the experiment's own


def _trace_line(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not isinstance(values.get("at_ms"), int):
        raise LocalError(Code.CONFIG_INVALID, f"{path}:{number}: expected a JSON object with a number at_ms.")
    unknown = sorted(values.keys() - {"at_ms", *names()})
    if unknown:
        raise LocalError(
            Code.CONFIG_INVALID, f"{path}:{number}: unknown {', '.join(unknown)}; known: {names()}."
        )
    return values


def power_supply(root: Path) -> Values:
    """Mains, USB power, batteries and UPSs. A board without any of them runs on mains, but nothing says so."""
    mains, levels = [], []
    for folder in sorted((root / "sys/class/power_supply").glob("*")):
        kind = _text(folder / "type")
        if kind in ("Mains", "USB") and (online := _number(folder / "online")) is not None:
            mains.append(online > 0)
        elif kind in ("Battery", "UPS"):
            if (level := _number(folder / "capacity")) is not None:
                levels.append(level / 100)
            if _text(folder / "status") in ("Charging", "Full", "Not charging"):
                mains.append(True)
    found: dict[str, object] = {"battery": min(levels)} if levels else {}
    if mains or levels:
        found["mains"] = any(mains)
    return found


def thermal(root: Path) -> Values:
    """The hottest thermal zone."""
    zones = [_number(path) for path in (root / "sys/class/thermal").glob("thermal_zone*/temp")]
    known = [zone / 1000 for zone in zones if zone is not None]
    return {"temperature_c": max(known)} if known else {}


def raspberry(root: Path) -> Values:
    """Under-voltage as the firmware of a Raspberry Pi sees it, from `vcgencmd get_throttled`."""
    program = shutil.which(
        "vcgencmd", path=os.pathsep.join(str(root / place) for place in ("usr/bin", "opt/vc/bin"))
    )
    if program is None:
        return {}
    try:
        done = subprocess.run(
            [program, "get_throttled"], capture_output=True, timeout=_VCGENCMD_S, check=True
        )
        bits = int(done.stdout.decode("ascii").strip().removeprefix("throttled="), 16)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return {"under_voltage": bool(bits & _UNDER_VOLTAGE_NOW)}


def load(root: Path) -> Values:
    """The one-minute load average per core."""
    text = _text(root / "proc/loadavg")
    return {"load": float(text.split()[0]) / (os.cpu_count() or 1)} if text else {}


def memory(root: Path) -> Values:
    """What can be used without swapping."""
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return {"free_mb": int(line.split()[1]) // 1024}
    return {}


def link(root: Path) -> Values:
    """The speed of the fastest network card that is up; Wi-Fi cards do not tell."""
    speeds = [
        speed for folder in (root / "sys/class/net").glob("*")
        if _text(folder / "operstate") == "up" and (speed := _number(folder / "speed")) is not None and speed > 0
    ]  # fmt: skip
    return {"link_mbit": float(max(speeds))} if speeds else {}


READ: tuple[Callable[[Path], Values], ...] = (power_supply, thermal, raspberry, load, memory, link)
"""All sources of a real device."""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
