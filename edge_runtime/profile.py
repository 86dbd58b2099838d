"""What this device is and how it is, for the aggregator's records and for `doctor`. Linux: /proc and statvfs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from fedless.protocol.messages import DeviceStatus

_METADATA = ".dist-info"
RUNTIMES = ("ai-edge-litert", "tflite-runtime")


def version() -> str:
    """Of the fedless package; "" when it runs from its sources without being installed."""
    return _version("fedless")


def tflite_runtime() -> str:
    """Name and version of the TFLite runtime that is installed; "" for none."""
    return next((f"{name} {found}" for name in RUNTIMES if (found := _version(name))), "")


def memory_mb() -> tuple[int, int]:
    """Total and available memory of the machine, MB."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    found = {words[0]: int(words[1]) // 1024 for words in lines}
    return found.get("MemTotal:", 0), found.get("MemAvailable:", 0)


def disk_free_bytes(folder: Path) -> int:
    """What an ordinary user may still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def peak_rss_mb() -> float:
    """This process's highest resident memory since it was started, MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def device_status(state: Path, agent_rss_mb: float, counters: Mapping[str, int]) -> DeviceStatus:
    """The profile as it travels."""
    total, available = memory_mb()
    return DeviceStatus(
        runtime_version=version(),
        tflite_runtime=tflite_runtime(),
        architecture=os.uname().machine,
        cores=len(os.sched_getaffinity(0)),
        memory_mb=total,
        memory_available_mb=available,
        disk_free_bytes=disk_free_bytes(state),
        agent_rss_mb=agent_rss_mb,
        clock_ms=time.time_ns() // 1_000_000,
        refusals=dict(counters),
        temperature_c=_temperature_c(),
    )


def _metadata() -> list[str]:
    """Names of the folders `NAME-VERSION.dist-info` where modules are looked for, the first place first."""
    places = [place for place in sys.path if place and os.path.isdir(place)]  # noqa: PTH112
    return [name.lower() for place in places for name in os.listdir(place) if name.endswith(_METADATA)]  # noqa: PTH208


def _temperature_c() -> float:
    try:
        return int(Path("/sys/class/thermal/thermal_zone0/temp").read_text(encoding="ascii")) / 1000
    except (OSError, ValueError):
        return 0.0


def _version(package: str) -> str:
    """As its folder of metadata says by its name; what lies there another way is read: 20 ms of imports."""
    start = package.replace("-", "_").lower() + "-"
    for entry in _metadata():
        if entry.startswith(start):
            return entry.removeprefix(start).removesuffix(_METADATA)
    from importlib import metadata  # noqa: PLC0415

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
