"""The entry of Google Cloud Functions (2nd gen) and Cloud Run, for functions-framework: `helper`, of type http."""

from __future__ import annotations

import json
from typing import Any

from cloud_adapters.handlers.invoked import status_of
from fedless.helper.function import run


def helper(request: Any) -> tuple[bytes, int, dict[str, str]]:  # noqa: ANN401 - flask's request
    """An HTTP request; the answer's JSON."""
    answer = run(request.get_data())
    return json.dumps(answer).encode(), status_of(answer), {"content-type": "application/json"}
