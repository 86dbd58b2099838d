"""Entries of Google Cloud Functions (2nd gen) and Cloud Run, as functions-framework calls them.

Targets: `fedless` (signature type http) and `fedless_event` (cloudevent). Deploy with a concurrency of 1.
"""

from __future__ import annotations

import json
from typing import Any

from cloud_adapters.handlers.function import run
from cloud_adapters.handlers.invoked import left_ms, status_of


def fedless(request: Any) -> tuple[bytes, int, dict[str, str]]:  # noqa: ANN401 - flask's request
    """An HTTP request; the answer's JSON."""
    answer = run(request.get_data(), left_ms())
    return json.dumps(answer).encode(), status_of(answer), {"content-type": "application/json"}


def fedless_event(event: Any) -> None:  # noqa: ANN401 - a CloudEvent of the sdk that the framework brings
    """A CloudEvent; nothing is answered. A process at work on another one raises, so that the event comes again."""
    answer = run(event.data if isinstance(event.data, dict) else bytes(event.data), left_ms())
    if status_of(answer) != 200:  # noqa: PLR2004 - HTTP
        raise RuntimeError(answer["detail"])
