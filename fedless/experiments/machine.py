"""What a run ran on: the machine and the versions of what matters, for its summary."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

PACKAGES = (
    "fedless",
    "ai-edge-litert",
    "tflite-runtime",
    "numpy",
    "grpcio",
    "paho-mqtt",
    "protobuf",
    "cryptography",
)


def machine() -> dict[str, Any]:
    """Processor, memory and system."""
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "memory_mb": round(psutil.virtual_memory().total / 1e6),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
