"""Azure Functions' entry (Python v2 programming model): `app` has one HTTP trigger, `/api/fedless`, behind a key.

The package's `function_app.py` is `from cloud_adapters.handlers.azure import app`.
"""

from __future__ import annotations

import json
import os

import azure.functions as func

from cloud_adapters.handlers.function import run, status_of

LIMIT = "FEDLESS_TIMEOUT_S"
app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)


@app.function_name("fedless")
@app.route("fedless", methods=["POST"])
def fedless(request: func.HttpRequest) -> func.HttpResponse:
    """One invocation."""
    limit = os.environ.get(LIMIT, "")
    answer = run(request.get_body(), float(limit) * 1000 if limit else None)
    return func.HttpResponse(json.dumps(answer), status_code=status_of(answer), mimetype="application/json")
