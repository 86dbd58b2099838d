"""Sources over a made-up root, and the trace that replaces them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edge_runtime import sources
from fedless.protocol.errors import Code, LocalError


def put(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_an_empty_root_knows_nothing(tmp_path: Path) -> None:
    found = sources.read(tmp_path)
    assert (found.mains, found.battery, found.temperature_c, found.load, found.free_mb) == (None,) * 5


def test_a_board_with_everything(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/power_supply/AC/type", "Mains\n")
    put(tmp_path, "sys/class/power_supply/AC/online", "0\n")
    put(tmp_path, "sys/class/power_supply/ups/type", "UPS\n")
    put(tmp_path, "sys/class/power_supply/ups/capacity", "41\n")
    put(tmp_path, "sys/class/power_supply/ups/status", "Discharging\n")
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "51000\n")
    put(tmp_path, "sys/class/thermal/thermal_zone1/temp", "62500\n")
    put(tmp_path, "proc/loadavg", f"{2.0 * (os.cpu_count() or 1)} 0.10 0.05 1/99 7\n")
    put(tmp_path, "proc/meminfo", "MemTotal: 500000 kB\nMemAvailable: 204800 kB\n")
    put(tmp_path, "sys/class/net/eth0/operstate", "up\n")
    put(tmp_path, "sys/class/net/eth0/speed", "100\n")
    vcgencmd = put(tmp_path, "usr/bin/vcgencmd", "#!/bin/sh\necho throttled=0x50001\n")
    vcgencmd.chmod(0o755)
    found = sources.read(tmp_path, used_bytes=7, metered=True)
    assert (found.mains, found.battery, found.temperature_c, found.load) == (False, 0.41, 62.5, 2.0)
    assert (found.free_mb, found.link_mbit, found.under_voltage) == (200, 100.0, True)
    assert (found.used_bytes, found.metered) == (7, True)


@pytest.mark.parametrize("said", ["exit 1", "echo nonsense", "echo throttled=", "kill -9 $$"])
def test_a_broken_sensor_is_no_error(tmp_path: Path, said: str) -> None:
    put(tmp_path, "usr/bin/vcgencmd", f"#!/bin/sh\n{said}\n").chmod(0o755)
    put(tmp_path, "sys/class/thermal/thermal_zone0/temp", "not a number\n")
    assert sources.read(tmp_path).under_voltage is None
    assert sources.read(tmp_path).temperature_c is None


def test_this_machine_has_memory_and_load() -> None:
    found = sources.read()
    assert found.free_mb is not None
    assert found.load is not None


def test_trace_gives_the_last_line_so_far(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps({"at_ms": at, "battery": at / 1000}) for at in (100, 200, 300)))
    assert sources.trace(path, 50).battery is None
    assert sources.trace(path, 250).battery == 0.2
    assert sources.trace(path, 10_000).battery == 0.3


@pytest.mark.parametrize("line", ["{", "[]", '{"battery": 1}', '{"at_ms": 1, "batery": 1}'])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"at_ms": 0}\n' + line + "\n")
    with pytest.raises(LocalError) as caught:
        sources.trace(path, 1)
    assert caught.value.code is Code.CONFIG_INVALID
    assert f"{path}:2" in caught.value.detail


def test_a_missing_trace_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalError):
        sources.trace(tmp_path / "absent", 0)
