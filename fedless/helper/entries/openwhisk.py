"""Apache OpenWhisk's entry: `main` of the action's `__main__.py`; parameters and result are JSON objects."""

from __future__ import annotations

from typing import Any

from fedless.helper.function import run


def main(arguments: dict[str, Any]) -> dict[str, Any]:
    """One activation."""
    return run(arguments)
