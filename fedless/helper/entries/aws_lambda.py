"""AWS Lambda's entry: handler `fedless.helper.entries.aws_lambda.handler`, runtime python3.11 or newer."""

from __future__ import annotations

from typing import Any

from fedless.helper.function import run


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """One invocation."""
    del context
    return run(event)
