"""Functions behind HTTP: one bounded POST, and what each status means. Shared by the adapters without an SDK.

The only module of this room that imports httpx. A redirect is never followed: the payload and the credentials are for
one host. An answer is read up to 64 KiB, a helper's up to what the platform lets through.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from cloud_adapters.base import Figures, Invoker, Receipt, scrubbed
from fedless.protocol.errors import Code

CONNECT_S = 10.0
CLOUD_EVENT = {
    "ce-specversion": "1.0",
    "ce-type": "dev.fedless.invoke.v1",
    "ce-source": "/fedless/aggregator",
}
_BUSY = {429, 502, 503}
_DEPLOY = "Deploy it, or correct its name or address with `fedless fleet add-function`."
_MEANINGS = {
    401: (Code.PLATFORM_DENIED, "Check the credentials that the client's settings name."),
    403: (Code.PLATFORM_DENIED, "Check the credentials, and that they may invoke this function."),
    404: (Code.FUNCTION_UNKNOWN, _DEPLOY),
    413: (Code.FUNCTION_LIMIT, "Raise the platform's limit on request bodies to 8 KiB or more."),
    504: (
        Code.PLATFORM_TIMEOUT,
        (
            "A gateway cut the call; the function may still run, and its report counts. "
            "Raise the gateway's time limit, or invoke asynchronously."
        ),
    ),
}


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class WebInvoker(Invoker):
    """An `Invoker` whose platform takes a POST."""

    _client: httpx.AsyncClient | None = None

    @abstractmethod
    async def headers(self) -> dict[str, str]:
        """What proves who we are, and what else this platform wants to see. Secrets: never logged."""

    async def close(self) -> None:
        """Let go of connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def ask(
        self,
        method: str,
        url: str,
        body: bytes | None,
        timeout_s: float,
        further: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request. Raises `PeerError` PLATFORM_UNREACHABLE, PLATFORM_TIMEOUT or PLATFORM_ANSWER."""
        if self._client is None:
            self._client = httpx.AsyncClient(follow_redirects=False)
        headers = {"content-type": "application/json", **await self.headers(), **(further or {})}
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_S, timeout_s))
        host = urlsplit(url).netloc
        try:
            async with self._client.stream(
                method, url, content=body, headers=headers, timeout=timeout
            ) as response:
                data = bytearray()
                async for piece in response.aiter_bytes():
                    data += piece
                    if len(data) > self.answer_bytes_max:
                        raise self.error(
                            Code.PLATFORM_ANSWER, f"{host} answered more than {self.answer_bytes_max} bytes"
                        )
                return Reply(response.status_code, response.headers, bytes(data))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise self.error(
                Code.PLATFORM_UNREACHABLE,
                f"No connection to {host} ({scrubbed(str(error))})",
                fix="Check its address.",
            ) from error
        except httpx.TimeoutException as error:
            raise self.error(
                Code.PLATFORM_TIMEOUT,
                f"{host} took the call and did not answer within {timeout_s:.0f} s",
                fix="The function may still run, and its report counts.",
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.error(
                Code.PLATFORM_ANSWER,
                f"The answer of {host} broke off or is no HTTP ({scrubbed(str(error))})",
                fix="The function may have run, and its report counts; look into the platform's log.",
            ) from error

    async def call(self, body: bytes, timeout_s: float) -> Receipt:
        """A synchronous invocation by POST to `target`."""
        reply = await self.ask("POST", self.target(), body, timeout_s)
        self.judge(reply)
        return self.receipt(reply)

    @abstractmethod
    def target(self) -> str:
        """The URL to POST to."""

    def judge(self, reply: Reply) -> None:
        """Raise what a status outside 200-299 means."""
        if 200 <= reply.status < 300:  # noqa: PLR2004 - HTTP's successes
            return
        if 300 <= reply.status < 400:  # noqa: PLR2004 - HTTP's redirects
            place = urlsplit(reply.headers.get("location", "")).netloc or "another path"
            raise self.error(
                Code.PLATFORM_ANSWER,
                f"It answered {reply.status}, to go to {scrubbed(place)}; that is not followed",
                fix="Register the function's own address.",
            )
        said = f"It answered {reply.status}{_excerpt(reply)}"
        if reply.status in _BUSY:
            raise self.error(Code.PLATFORM_BUSY, said, retry_after_ms=_retry_after_ms(reply))
        code, fix = _MEANINGS.get(reply.status, (Code.FUNCTION_FAILED, "Look into the function's log."))
        raise self.error(code, said, fix=fix)

    def receipt(self, reply: Reply) -> Receipt:
        """The function's own answer in a reply. Raises `PeerError(PLATFORM_ANSWER)`."""
        answer = self.answered(self.values(reply))
        figures = Figures("function", answer.total_ms, answer.total_ms, answer.import_ms, memory_mb=self.size.memory_mb,
                          peak_mb=answer.peak_rss_mb)  # fmt: skip
        return Receipt(answer, figures)

    def values(self, reply: Reply) -> Any:  # noqa: ANN401 - any JSON value
        """The JSON in a reply. Raises `PeerError(PLATFORM_ANSWER)`."""
        try:
            return json.loads(reply.body)
        except ValueError as error:
            raise self.error(
                Code.PLATFORM_ANSWER,
                f"Expected JSON; it answered {reply.status}{_excerpt(reply)}",
                fix="Is that the function's address, and not a login page or a proxy's?",
            ) from error


def _excerpt(reply: Reply) -> str:
    kind = reply.headers.get("content-type", "").partition(";")[0]
    text = scrubbed(reply.body.decode("utf-8", "replace"))
    return f" with {len(reply.body)} bytes of {kind or 'no type'}" + (f": {text}" if text else "")


def _retry_after_ms(reply: Reply) -> int | None:
    value = reply.headers.get("retry-after", "")
    return min(int(value), 3600) * 1000 if value.isdigit() and int(value) else None
