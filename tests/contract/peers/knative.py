"""Knative: the real func-python runtime, which a Knative service's container runs; and our own server, for others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.contract.peers.process import PYTHON, Peer, free_port, needed, start

SERVE = "from func_python.{part} import serve; from cloud_adapters.handlers.{entry} import new; serve(new)"


def func(folder: Path, deployed: Mapping[str, str], mode: str) -> Peer:
    python = needed(".venv-clouds-knative/bin/python")
    port = free_port()
    part, entry = ("http", "knative") if mode == "http" else ("cloudevent", "knative_events")
    environment = {**deployed, "LISTEN_ADDRESS": f"127.0.0.1:{port}", "FEDLESS_TIMEOUT_S": "60"}
    process = start([python, "-c", SERVE.format(part=part, entry=entry)], port, folder, environment)
    return Peer("knative", settings(port, mode), [process])


def container(folder: Path, deployed: Mapping[str, str]) -> Peer:
    port = free_port()
    environment = {**deployed, "PORT": str(port), "FEDLESS_TIMEOUT_S": "60"}
    return Peer("knative", settings(port, "http"), [
        start([PYTHON, "-m", "cloud_adapters.handlers.server"], port, folder, environment)
    ])  # fmt: skip


def settings(port: int, mode: str) -> dict[str, object]:
    return {"memory_mb": 1024, "timeout_s": 60, "url": f"http://127.0.0.1:{port}/", "mode": mode}
