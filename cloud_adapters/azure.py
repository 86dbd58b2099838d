"""Azure Functions: POST to an HTTP trigger with a function key, or with an Entra token of the aggregator's identity.

Azure's load balancer cuts an HTTP answer at 230 s; the function runs on, and its report counts
(learn.microsoft.com, azure-functions/functions-scale, "Timeout").
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from azure.core.exceptions import AzureError
from azure.identity import DefaultAzureCredential

from cloud_adapters.base import MAYBE, URL, Limit, Limits, scrubbed, secret
from cloud_adapters.web import WebInvoker
from fedless.protocol.errors import Code
from fedless.protocol.tables import Table

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential

_DOCS = "learn.microsoft.com/azure/azure-functions"


class Azure(WebInvoker):
    """Settings: `url`, and `key_file` (a function key) or `entra_scope` (`api://APPLICATION/.default`)."""

    platform = "azure"
    limits = Limits(
        time_ms=Limit(
            3_600_000,
            f"{_DOCS}/functions-scale: 30 min by default, no maximum (Flex); one hour here; HTTP 230 s",
        ),
        payload_bytes=Limit(100 << 20, f"{_DOCS}/functions-scale: requests of 100 MB"),
        memory_mb=Limit(14 << 10, f"{_DOCS}/functions-scale: 4 GB (Flex Consumption) to 14 GB (Premium)"),
        concurrency=Limit(
            0, f"{_DOCS}/functions-concurrency: by host.json, 100 for each instance by default"
        ),
    )

    def settings(self, table: Table) -> None:
        """See the class."""
        self._url = table.text("url", URL)
        self._key_file = table.text("key_file", MAYBE, "")
        self._scope = table.text("entra_scope", MAYBE, "")
        self._credential: TokenCredential | None = None

    async def headers(self) -> dict[str, str]:
        """The key, or the token."""
        if self._key_file:
            return {"x-functions-key": secret(self._key_file)}
        if self._scope:
            return {"authorization": f"Bearer {await asyncio.to_thread(self._token)}"}
        return {}

    def target(self) -> str:
        """The trigger's URL."""
        return self._url

    def _token(self) -> str:
        if self._credential is None:
            self._credential = DefaultAzureCredential()
        try:
            return self._credential.get_token(self._scope).token
        except AzureError as error:
            raise self.error(
                Code.PLATFORM_DENIED,
                f"No Entra token was given ({type(error).__name__}: {scrubbed(str(error))})",
                fix="Check entra_scope, and the managed identity that the aggregator runs as.",
            ) from error
