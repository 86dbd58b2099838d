"""Knative Serving: POST to the service's URL, as plain JSON or as a CloudEvent in binary mode (CloudEvents 1.0).

A service that is private to its cluster is reached through its ingress address with a `Host` header (`host`).
"""

from __future__ import annotations

import uuid
from typing import Any

from cloud_adapters.base import MAYBE, URL, Limit, Limits, Receipt, secret
from cloud_adapters.web import CLOUD_EVENT, Reply, WebInvoker
from fedless.protocol.tables import Table

_DOCS = "knative.dev/docs"


class Knative(WebInvoker):
    """Settings: `url`, `mode` (http, cloudevent), `host`, `token_file` (a bearer token for the ingress)."""

    platform = "knative"
    limits = Limits(
        time_ms=Limit(600_000, f"{_DOCS}/serving, config-defaults: max-revision-timeout-seconds 600"),
        payload_bytes=Limit(32 << 20, f"{_DOCS}/serving: none of its own; common ingress limits"),
        memory_mb=Limit(1 << 20, f"{_DOCS}/serving: as Kubernetes allows"),
        concurrency=Limit(0, f"{_DOCS}/serving/autoscaling/concurrency: 0, no hard limit by default"),
    )

    def settings(self, table: Table) -> None:
        """See the class."""
        self._url = table.text("url", URL)
        self._mode = table.choice("mode", ("http", "cloudevent"))
        self._host = table.text("host", MAYBE, "")
        self._token_file = table.text("token_file", MAYBE, "")

    async def headers(self) -> dict[str, str]:
        """The event's attributes, the service's host, and the token."""
        headers = {**CLOUD_EVENT, "ce-id": str(uuid.uuid4())} if self._mode == "cloudevent" else {}
        if self._host:
            headers["host"] = self._host
        if self._token_file:
            headers["authorization"] = f"Bearer {secret(self._token_file)}"
        return headers

    def target(self) -> str:
        """The service's URL."""
        return self._url

    async def call(self, body: bytes, timeout_s: float) -> Receipt:
        """An event that a broker takes (202, no content) is accepted; a service answers."""
        reply = await self.ask("POST", self.target(), body, timeout_s)
        self.judge(reply)
        return self.receipt(reply) if reply.body else Receipt()

    def values(self, reply: Reply) -> Any:  # noqa: ANN401 - any JSON value
        """The data of an event in structured mode; else as it is."""
        values = super().values(reply)
        structured = reply.headers.get("content-type", "").startswith("application/cloudevents+json")
        return values.get("data") if structured and isinstance(values, dict) else values
