"""OpenFaaS: POST to the gateway and wait (`/function/NAME`), or leave it to its queue (`/async-function/NAME`).

The queue answers 202 with `X-Call-Id` and, when the function has ended, POSTs its answer to our callback address, with
`X-Function-Status` and `X-Duration-Seconds` (docs.openfaas.com, "Async"). The gateway proves nothing in that call: it
is taken for figures only, and only at a path that cannot be guessed.
"""

from __future__ import annotations

import base64

from cloud_adapters.base import MAYBE, URL, Figures, Limit, Limits, Receipt, secret
from cloud_adapters.callbacks import Callbacks
from cloud_adapters.web import Reply, WebInvoker
from fedless.protocol.errors import Code
from fedless.protocol.manifest import NAME
from fedless.protocol.tables import Table

_DOCS = "docs.openfaas.com"
_ACCEPTED = 202


class OpenFaas(WebInvoker):
    """Settings: `gateway`, `function`, `mode` (sync, async), `basic_auth_file`, `callback_url`, `listen`."""

    platform = "openfaas"
    limits = Limits(
        time_ms=Limit(12 * 3_600_000, f"{_DOCS}, Expanded timeouts: gateway and function set it; 12 h here"),
        payload_bytes=Limit(1_000_000, f"{_DOCS}, Async: 1 MB, which is NATS's default"),
        memory_mb=Limit(1 << 20, f"{_DOCS}, Limits: as Kubernetes allows"),
        concurrency=Limit(0, f"{_DOCS}, Autoscaling: max_inflight is the function's own"),
        exchange_bytes=Limit(
            32 << 20, f"{_DOCS}: none of its own for synchronous calls; common ingress limits"
        ),
    )

    def settings(self, table: Table) -> None:
        """See the class."""
        self._gateway = table.text("gateway", URL).rstrip("/")
        self._function = table.text("function", NAME)
        self._mode = table.choice("mode", ("sync", "async"))
        self._auth_file = table.text("basic_auth_file", MAYBE, "")
        self._callback_url = table.text("callback_url", MAYBE, "").rstrip("/")
        self._listen = table.text("listen", MAYBE, "")

    async def headers(self) -> dict[str, str]:
        """Basic authentication, where the gateway or an ingress asks for it."""
        if not self._auth_file:
            return {}
        return {"authorization": "Basic " + base64.b64encode(secret(self._auth_file).encode()).decode()}

    def target(self) -> str:
        """Of a synchronous invocation."""
        return f"{self._gateway}/function/{self._function}"

    async def call(self, body: bytes, timeout_s: float) -> Receipt:
        """One attempt, in the mode that was set."""
        if self._mode == "sync":
            return await super().call(body, timeout_s)
        url = f"{self._gateway}/async-function/{self._function}"
        if not self._listen:
            self._accepted(await self.ask("POST", url, body, timeout_s))
            return Receipt()
        async with Callbacks.expect(self._listen) as callback:
            further = {"x-callback-url": f"{self._callback_url}/{callback.path}"}
            self._accepted(await self.ask("POST", url, body, timeout_s, further))
            heard = await callback.wait(timeout_s)
        if heard is None:
            raise self.error(
                Code.PLATFORM_TIMEOUT,
                f"The queue took the call, and nothing came back within {timeout_s:.0f} s",
                fix="Does its queue worker run, and can it reach callback_url?",
            )
        reply = Reply(int(heard.headers.get("x-function-status", "200")), heard.headers, heard.body)
        self.judge(reply)
        return self.receipt(reply)

    def receipt(self, reply: Reply) -> Receipt:
        """With the duration that the queue worker or the watchdog measured, where it tells it."""
        receipt = super().receipt(reply)
        try:
            run_ms = float(reply.headers["x-duration-seconds"]) * 1000
        except (KeyError, ValueError):
            return receipt
        own = receipt.figures
        figures = Figures(
            "platform", run_ms, run_ms, own.init_ms, memory_mb=own.memory_mb, peak_mb=own.peak_mb
        )
        return Receipt(receipt.answer, figures)

    def _accepted(self, reply: Reply) -> None:
        self.judge(reply)
        if reply.status != _ACCEPTED:
            raise self.error(
                Code.PLATFORM_ANSWER,
                f"Expected 202 from the queue, found {reply.status}",
                fix="Is NATS installed?",
            )
