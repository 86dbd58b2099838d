"""The entry for plain HTTP on Knative's func runtime (func-python): `new`; events have theirs in `knative_events`.

A container without that runtime starts `cloud_adapters.handlers.server`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from cloud_adapters.handlers.function import run
from cloud_adapters.handlers.invoked import left_ms, status_of
from fedless.protocol.cloud import PAYLOAD_BYTES_MAX

Send = Callable[[Any], Awaitable[None]]


class Http:
    """A function for plain HTTP."""

    async def handle(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        """One request."""
        del scope
        body, more = b"", True
        while more and len(body) <= PAYLOAD_BYTES_MAX:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        answer = await asyncio.to_thread(run, body, left_ms())
        data = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status_of(answer), "headers": headers})
        await send({"type": "http.response.body", "body": data})


def new() -> Http:
    """What func-python asks a module for."""
    return Http()
