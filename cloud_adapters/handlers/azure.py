"""Azure Functions' entry (Python v2 programming model): `app` has one HTTP trigger, `/api/fedless`, behind a key.

The package's `function_app.py` is `from cloud_adapters.handlers.azure import app`.
"""

from __future__ import annotations

import json

import azure.functions as func

from cloud_adapters.handlers.function import run
from cloud_adapters.handlers.invoked import left_ms, status_of

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)


@app.function_name("fedless")
@app.route("fedless", methods=["POST"])
def fedless(request: func.HttpRequest) -> func.HttpResponse:
    """One invocation."""
    answer = run(request.get_body(), left_ms())
    return func.HttpResponse(json.dumps(answer), status_code=status_of(answer), mimetype="application/json")
