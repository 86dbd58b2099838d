"""Apache OpenWhisk: a non-blocking activation, then polling of its record (openwhisk, docs/rest_api.md).

POST `/api/v1/namespaces/NS/actions/NAME?blocking=false` answers 202 with an activation id; GET `/activations/ID` is 404
until the action has ended, then tells result, duration, and how long it waited and initialised.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from typing import Any

from cloud_adapters.base import TEXT, URL, Figures, Limit, Limits, Receipt, scrubbed, secret
from cloud_adapters.web import WebInvoker
from fedless.protocol.errors import Code
from fedless.protocol.tables import Table

_DOCS = "github.com/apache/openwhisk, docs/reference.md, System limits"
_ACCEPTED, _OK, _NOT_YET = 202, 200, 404
_FIRST_POLL_S, _LONGEST_POLL_S, _POLL_GROWTH = 0.25, 5.0, 1.5


class OpenWhisk(WebInvoker):
    """Settings: `api_host`, `namespace` (default `_`), `action` (NAME or PACKAGE/NAME), `auth_file` (uuid:key)."""

    platform = "openwhisk"
    limits = Limits(
        time_ms=Limit(300_000, f"{_DOCS}: 60 s by default, 5 min at most as shipped"),
        payload_bytes=Limit(1_048_576, f"{_DOCS}: 1 MB of parameters"),
        memory_mb=Limit(512, f"{_DOCS}: 256 MB by default, 512 MB at most as shipped"),
        concurrency=Limit(100, f"{_DOCS}: 100 activations of a namespace at a time"),
    )

    def settings(self, table: Table) -> None:
        """See the class."""
        self._host = table.text("api_host", URL).rstrip("/")
        self._namespace = table.text("namespace", TEXT, "_")
        self._action = table.text("action", TEXT)
        self._auth_file = table.text("auth_file", TEXT)

    async def headers(self) -> dict[str, str]:
        """Basic authentication with the namespace's key."""
        return {"authorization": "Basic " + base64.b64encode(secret(self._auth_file).encode()).decode()}

    def target(self) -> str:
        """Where activations begin."""
        return f"{self._host}/api/v1/namespaces/{self._namespace}/actions/{self._action}?blocking=false"

    async def call(self, body: bytes, timeout_s: float) -> Receipt:
        """One activation, to its end or to the deadline."""
        end = time.monotonic() + timeout_s
        reply = await self.ask("POST", self.target(), body, timeout_s)
        self.judge(reply)
        values = self.values(reply)
        if reply.status != _ACCEPTED or not isinstance(values, Mapping) or not values.get("activationId"):
            raise self.error(Code.PLATFORM_ANSWER, f"Expected 202 with an activationId, found {reply.status}")
        return self._receipt(await self._record(str(values["activationId"]), end))

    async def _record(self, activation: str, end: float) -> Mapping[str, Any]:
        url = f"{self._host}/api/v1/namespaces/{self._namespace}/activations/{activation}"
        pause = _FIRST_POLL_S
        while True:
            await asyncio.sleep(max(0.0, min(pause, end - time.monotonic())))
            left_s = end - time.monotonic()
            if left_s <= 0:
                raise self.error(
                    Code.PLATFORM_TIMEOUT,
                    f"It accepted activation {activation[:32]}, and no end of it was recorded in time",
                    fix="Look for the activation with `wsk activation get`.",
                )
            reply = await self.ask("GET", url, None, left_s)
            if reply.status == _OK:
                values = self.values(reply)
                if isinstance(values, Mapping):
                    return values
                raise self.error(Code.PLATFORM_ANSWER, "Expected an activation's record, found other JSON")
            if reply.status != _NOT_YET:
                self.judge(reply)
            pause = min(pause * _POLL_GROWTH, _LONGEST_POLL_S)

    def _receipt(self, record: Mapping[str, Any]) -> Receipt:
        response = record.get("response", {})
        result = response.get("result") if isinstance(response, Mapping) else None
        if not isinstance(result, Mapping) or response.get("success") is not True:
            said = scrubbed(str(result.get("error", "") if isinstance(result, Mapping) else response))
            raise self.error(
                Code.FUNCTION_FAILED, f"The activation ended without success: {said}",
                fix="Look into its log: `wsk activation logs`.",
            )  # fmt: skip
        answer = self.answered(result)
        notes = {
            note.get("key"): note.get("value")
            for note in record.get("annotations", ())
            if isinstance(note, Mapping)
        }
        limits = notes.get("limits")
        memory = limits.get("memory") if isinstance(limits, Mapping) else None
        duration = _number(record.get("duration"))
        figures = Figures(
            source="platform",
            billed_ms=duration,
            run_ms=duration,
            init_ms=_number(notes.get("initTime")),
            wait_ms=_number(notes.get("waitTime")),
            memory_mb=int(_number(memory)) or self.size.memory_mb,
            peak_mb=answer.peak_rss_mb,
        )
        return Receipt(answer, figures)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
