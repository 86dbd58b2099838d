"""Azure Functions' entry (Python v2 programming model): `app` has one HTTP trigger, `/api/helper`, behind a key."""

from __future__ import annotations

import json

import azure.functions as func

from cloud_adapters.handlers.invoked import status_of
from fedless.helper.function import run

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)


@app.function_name("helper")
@app.route("helper", methods=["POST"])
def helper(request: func.HttpRequest) -> func.HttpResponse:
    """One invocation."""
    answer = run(request.get_body())
    return func.HttpResponse(json.dumps(answer), status_code=status_of(answer), mimetype="application/json")
