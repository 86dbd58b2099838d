"""The entry for CloudEvents on Knative's func runtime: `new`. The answer is an event, too."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from cloud_adapters.handlers.function import run
from cloud_adapters.handlers.invoked import left_ms
from cloud_adapters.handlers.knative import Send


class Event:
    """A function for CloudEvents."""

    async def handle(self, scope: dict[str, Any], receive: Any, send: Send) -> None:  # noqa: ANN401 - ASGI's
        """One event."""
        del receive
        event = scope["event"]
        given = event.get_data()
        answer = await asyncio.to_thread(run, given if isinstance(given, dict) else bytes(given), left_ms())
        attributes = {
            "id": str(uuid.uuid4()),
            "type": "dev.fedless.answer.v1",
            "source": "/fedless/function",
            "specversion": "1.0",
            "datacontenttype": "application/json",
        }
        await send(type(event)(attributes, answer))


def new() -> Event:
    """What func-python asks a module for."""
    return Event()
