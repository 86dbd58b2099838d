"""Apache OpenWhisk's entry: `main` of the action's `__main__.py`; parameters and result are JSON objects."""

from __future__ import annotations

import os
import time
from typing import Any

from cloud_adapters.handlers.function import run

DEADLINE = "__OW_DEADLINE"
"""Unix ms, set by the platform for each activation (openwhisk, docs/actions.md)."""


def main(arguments: dict[str, Any]) -> dict[str, Any]:
    """One activation."""
    deadline = os.environ.get(DEADLINE, "")
    return run(arguments, float(deadline) - time.time() * 1000 if deadline.isdigit() else None)
