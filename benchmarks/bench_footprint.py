"""What a device costs while it does nothing: packets, writes to its disk, CPU; and what its installation weighs.

One agent waits on the real broker; its connection's segments are counted by the kernel (`ss`), its writes by /proc. The
installed size is that of `fedless[edge]` with all it requires, from the records of this environment's packages.
Reference, in the same run: what the same connection costs with a ping every 60 s, MQTT's usual keepalive. Goals: under
100 packets an hour, no write, under 200 MB installed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import time
import tomllib
from importlib import metadata
from pathlib import Path

import harness
import psutil
from packaging.requirements import Requirement

from fedless.console.link import open_link
from fedless.experiments.fleet import Device, LocalFleet

SECONDS = 600
SETTLE_S = 5.0
HOUR_S = 3600
PACKETS_A_PING = 4  # request, answer, and an acknowledgement of each
ANCHORS = {"Flower's node, signed requests a day": 32_400, "flwr and TensorFlow installed, MB": 1900}


def main() -> None:
    """Watch one idle device, then weigh its packages."""
    parser = argparse.ArgumentParser(description="An idle device's packets, writes and installed size.")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="how long to watch")
    seconds = parser.parse_args().seconds
    with harness.scratch() as folder:
        edge = Device("edge-1", harness.images(32))
        with LocalFleet(folder / "fleet", [edge], open_link) as fleet:
            time.sleep(SETTLE_S)
            agent = psutil.Process(fleet.agents["edge-1"].process.pid)
            before = (segments(agent.pid), written(agent.pid), agent.cpu_times())
            files = newest_change(fleet.state_folder("edge-1"))
            time.sleep(seconds)
            after = (segments(agent.pid), written(agent.pid), agent.cpu_times())
            touched = newest_change(fleet.state_folder("edge-1")) - files
    cpu_s = after[2].user + after[2].system - before[2].user - before[2].system
    packets = (after[0] - before[0]) * HOUR_S / seconds
    sizes = installed_mb("edge")
    usual = PACKETS_A_PING * HOUR_S / 60
    harness.finish(
        "footprint",
        packets_an_hour=round(packets, 1),
        written_bytes=after[1] - before[1],
        files_changed=bool(touched),
        cpu_ms_an_hour=round(cpu_s * 1000 * HOUR_S / seconds, 1),
        installed_mb=round(sum(sizes.values()), 1),
        largest_mb=dict(sorted(sizes.items(), key=lambda item: -item[1])[:6]),
        reference={"packets_an_hour": usual, "what": "a ping every 60 s on the same kind of connection"},
        ratio=round(packets / usual, 3),
        goals={"packets_an_hour": 100, "installed_mb": 200},
        anchors=ANCHORS,
        seconds=seconds,
    )


def segments(pid: int) -> int:
    """TCP segments of all connections of the process, in and out."""
    told = subprocess.run(
        [shutil.which("ss") or "ss", "-tinpH"], capture_output=True, text=True, check=True
    ).stdout
    total = 0
    for first, second in zip(told.splitlines(), told.splitlines()[1:], strict=False):
        if f"pid={pid}," in first:
            total += sum(int(count) for count in re.findall(r"segs_(?:in|out):(\d+)", second))
    return total


def written(pid: int) -> int:
    """Bytes that the process caused to be written to a disk."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["write_bytes"])


def newest_change(folder: Path) -> float:
    """When a file under the folder was last changed."""
    return max(path.stat().st_mtime for path in folder.rglob("*") if path.is_file())


def installed_mb(extra: str) -> dict[str, float]:
    """Size of fedless and of all that its extra requires here, by name, MB."""
    project = tomllib.loads((harness.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {"fedless": round(own_mb(), 2)}
    todo = [*project["dependencies"], *project["optional-dependencies"][extra]]
    seen = set()
    while todo:
        wanted = Requirement(todo.pop())
        for further in ("", *wanted.extras):
            key = (wanted.name.lower(), further)
            if key in seen or not applies(wanted, ""):
                continue
            seen.add(key)
            distribution = metadata.distribution(wanted.name)
            paths = [Path(str(file.locate())) for file in distribution.files or ()]
            size = sum(path.stat().st_size for path in paths if path.is_file())
            found[wanted.name.lower()] = round(size / harness.MB, 2)
            lines = distribution.requires or ()
            todo += [line for line in lines if applies(Requirement(line), further)]
    return found


def applies(wanted: Requirement, extra: str) -> bool:
    """Whether it is required on this machine."""
    return wanted.marker is None or wanted.marker.evaluate({"extra": extra})


def own_mb() -> float:
    """What a wheel of ours would hold, MB."""
    folders = [harness.ROOT / name for name in ("fedless", "aggregator", "edge_runtime", "cloud_adapters")]
    files = [
        path for folder in folders for path in folder.rglob("*") if path.suffix in {".py", ".pyi", ".typed"}
    ]
    return sum(path.stat().st_size for path in files) / harness.MB


if __name__ == "__main__":
    main()
