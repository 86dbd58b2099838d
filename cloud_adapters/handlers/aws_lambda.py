"""AWS Lambda's entry: handler `cloud_adapters.handlers.aws_lambda.handler`, runtime python3.11 or newer."""

from __future__ import annotations

from typing import Any

from cloud_adapters.handlers.function import run


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:  # noqa: ANN401 - the platform's class
    """One invocation; emulators have contexts without a clock."""
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    return run(event, float(remaining()) if callable(remaining) else None)
