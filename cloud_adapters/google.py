"""Google Cloud Functions (2nd gen) and Cloud Run: POST with an OpenID token for the function's URL, or a CloudEvent.

The token comes from a service account's key file, or from the metadata server when the aggregator itself runs on
Google Cloud (cloud.google.com/run/docs/authenticating/service-to-service). A CloudEvent function answers "OK" and no
more: the invocation is then accepted, and its report tells the rest.
"""

from __future__ import annotations

import asyncio
import uuid

import google.auth.transport.requests
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.oauth2 import id_token, service_account

from cloud_adapters.base import MAYBE, URL, Limit, Limits, Receipt, scrubbed
from cloud_adapters.web import CLOUD_EVENT, WebInvoker
from fedless.protocol.errors import Code
from fedless.protocol.tables import Table

_DOCS = "cloud.google.com"


class Google(WebInvoker):
    """Settings: `url`, `mode` (http, cloudevent), `audience`, `credentials_file`, `public`.

    `audience` is the URL by default; `credentials_file` is a service account's key, and empty means the metadata
    server; `public` true: no token is sent.
    """

    platform = "google"
    limits = Limits(
        time_ms=Limit(
            3_600_000, f"{_DOCS}/run/docs/configuring/request-timeout: 300 s by default, 3600 s at most"
        ),
        payload_bytes=Limit(32 << 20, f"{_DOCS}/run/quotas: 32 MiB for HTTP/1 requests"),
        memory_mb=Limit(32 << 10, f"{_DOCS}/functions/quotas: 32 GiB"),
        concurrency=Limit(1000, f"{_DOCS}/run/docs/about-concurrency: 1000 for each instance; deploy with 1"),
    )

    def settings(self, table: Table) -> None:
        """See the class."""
        self._url = table.text("url", URL)
        self._mode = table.choice("mode", ("http", "cloudevent"))
        self._audience = table.text("audience", MAYBE, "") or self._url
        self._file = table.text("credentials_file", MAYBE, "")
        self._public = table.flag("public", default=False)
        self._credentials: Credentials | None = None

    async def headers(self) -> dict[str, str]:
        """The token, and an event's attributes."""
        headers = {**CLOUD_EVENT, "ce-id": str(uuid.uuid4())} if self._mode == "cloudevent" else {}
        if not self._public:
            headers["authorization"] = f"Bearer {await asyncio.to_thread(self._token)}"
        return headers

    def target(self) -> str:
        """The function's URL."""
        return self._url

    async def call(self, body: bytes, timeout_s: float) -> Receipt:
        """One attempt, in the mode that was set."""
        reply = await self.ask("POST", self.target(), body, timeout_s)
        self.judge(reply)
        return Receipt() if self._mode == "cloudevent" else self.receipt(reply)

    def _token(self) -> str:
        request = google.auth.transport.requests.Request()
        try:
            if self._credentials is None:
                self._credentials = self._load(request)
            if not self._credentials.valid:
                self._credentials.refresh(request)
        except (GoogleAuthError, ValueError, OSError) as error:
            raise self.error(
                Code.PLATFORM_DENIED,
                f"No identity token was given ({type(error).__name__}: {scrubbed(str(error))})",
                fix="Check credentials_file, or the service account that the aggregator runs as.",
            ) from error
        return str(self._credentials.token)

    def _load(self, request: google.auth.transport.requests.Request) -> Credentials:
        found: Credentials
        if self._file:
            found = service_account.IDTokenCredentials.from_service_account_file(
                self._file, target_audience=self._audience
            )
        else:
            found = id_token.fetch_id_token_credentials(self._audience, request)
        return found
