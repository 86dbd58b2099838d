"""Memory and CPU of an idle device: `fedless-edge run` waiting for a wake-up.

Reference, in the same run: a Python process that does nothing but hold a TLS context and a paho-mqtt client, the least
that a Python device that waits on MQTT can be. Goal: 25 MB resident or less.
"""

from __future__ import annotations

import time
from pathlib import Path

import harness
import psutil

from fedless.console.link import open_link
from fedless.experiments.fleet import Device, LocalFleet

AGENTS = 5
SETTLE_S = 3.0
WATCH_S = 20.0
BARE = """
import ssl, sys, time
import paho.mqtt.client as mqtt
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.tls_set_context(context)
print("ready", flush=True)
time.sleep(3600)
"""


def main() -> None:
    """Measure the agents, then as many reference processes."""
    with harness.scratch() as folder:
        agents, cpu_ms, wakes = measure_agents(folder)
    references = measure_references()
    figures = {name: harness.middle([m[name] for m in agents]) for name in ("rss_mb", "pss_mb", "uss_mb")}
    reference = {name: harness.middle([m[name] for m in references]) for name in figures}
    harness.finish(
        "idle",
        agent=figures,
        reference=reference | {"what": "python with ssl and paho-mqtt, not connected"},
        ratio_rss=round(figures["rss_mb"] / reference["rss_mb"], 3),
        cpu_ms_per_minute=cpu_ms,
        switches_per_minute=wakes,
        goal_rss_mb=25,
        anchors={"flower_1.41_node_rss_mb": 133},
        agents=AGENTS,
    )


def measure_agents(folder: Path) -> tuple[list[dict[str, float]], float, float]:
    """Memory of each agent; CPU ms and voluntary context switches of one per minute."""
    devices = [Device(f"edge-{number}", b"") for number in range(1, AGENTS + 1)]
    with LocalFleet(folder / "fleet", devices, open_link) as fleet:
        time.sleep(SETTLE_S)
        pids = [child.process.pid for child in fleet.agents.values()]
        before, switched = harness.family_cpu_s(pids), switches(pids)
        time.sleep(WATCH_S)
        scale = 60 / WATCH_S / AGENTS
        cpu_ms = round((harness.family_cpu_s(pids) - before) * 1000 * scale, 1)
        return [harness.memory_mb(pid) for pid in pids], cpu_ms, round((switches(pids) - switched) * scale, 1)


def measure_references() -> list[dict[str, float]]:
    """Memory of the reference process, several times."""
    found = []
    for _ in range(AGENTS):
        with harness.python(BARE) as process:
            harness.line_of(process)
            found.append(harness.memory_mb(process.pid))
    return found


def switches(pids: list[int]) -> int:
    """Times that these processes woke up and went to sleep again."""
    return sum(psutil.Process(pid).num_ctx_switches().voluntary for pid in pids)


if __name__ == "__main__":
    main()
