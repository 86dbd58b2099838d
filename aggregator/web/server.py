"""The listener of /healthz, /metrics and the dashboard: HTTP/1.1, GET and HEAD only, one request for each connection.

On a loopback address it speaks plain HTTP and asks nobody who he is: whoever is on this machine may look. On any other
address it speaks TLS with the service's certificate, and takes nobody without an operator's certificate of this fleet.
Called by `main`. Every wait and every size is bounded, and nothing that is asked for changes anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import re
import shutil
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog

from aggregator import stories
from aggregator.authority import Callers, der_to_pem
from aggregator.interfaces import Clock
from aggregator.store import runs
from aggregator.store.engine import Database
from aggregator.stories import Asked
from aggregator.web import views
from aggregator.web.metrics import CONTENT_TYPE, Exposition
from aggregator.web.pages import Pages
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError
from fedless.protocol.identity import Role

HEAD_BYTES_MAX = 8192
REQUEST_S = 10.0
ANSWER_S = 15.0
HEALTH_S = 3.0
CONNECTIONS_MAX = 64
HTML, JSON = "text/html; charset=utf-8", "application/json"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
NOT_FOUND = {Code.UNKNOWN_RUN, Code.UNKNOWN_ROUND, Code.UNKNOWN_CLIENT}
NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_log = structlog.get_logger("web")


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    status: HTTPStatus
    kind: str
    body: bytes


@dataclass(frozen=True)
class Seen:
    """What the pages are made of. `connected`: whether the broker is; `spool`: a folder on the disk of reports."""

    fleet: str
    database: Database
    clock: Clock
    connected: Callable[[], bool]
    spool: Path


@dataclass(frozen=True)
class Guard:
    """Who may look, where not everybody may: the service's certificate and key, and the fleet's authority."""

    certificate: Path
    key: Path
    authority_pem: bytes
    callers: Callers

    def context(self) -> ssl.SSLContext:
        """TLS 1.3 that asks for a certificate of this fleet's authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        self.fill(context, self.authority_pem)
        return context

    def fill(self, context: ssl.SSLContext, authority_pem: bytes) -> None:
        """The newest certificate, and authorities beside those of before: `callers` has the last word."""
        context.load_cert_chain(self.certificate, self.key)
        context.load_verify_locations(cadata=authority_pem.decode())


class Web:
    """The listener."""

    def __init__(self, seen: Seen, guard: Guard) -> None:
        self._seen = seen
        self._guard = guard
        self._pages = Pages(seen.fleet)
        self._exposition = Exposition()
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)
        self._server: asyncio.Server | None = None
        self._context: ssl.SSLContext | None = None

    async def start(self, address: str, port: int) -> str:
        """Listens; where it can be reached, as a URL. Raises `LocalError(PORT_IN_USE)`."""
        host = address.strip("[]")
        if not _is_loopback(host):
            self._context = self._guard.context()
        try:
            self._server = await asyncio.start_server(
                self._serve, host, port, limit=HEAD_BYTES_MAX, **self._tls()
            )
        except OSError as error:
            detail = f"The dashboard cannot listen on {address}:{port} ({error.strerror})."
            raise LocalError(Code.PORT_IN_USE, detail, fix="Change web.port in aggregator.toml.") from error
        bound = self._server.sockets[0].getsockname()[1]
        return f"{'https' if self._context else 'http'}://{address}:{bound}"

    def _tls(self) -> dict[str, Any]:
        return {"ssl": self._context, "ssl_handshake_timeout": REQUEST_S} if self._context else {}

    def follow(self, authority_pem: bytes) -> None:
        """Take operators of these authorities from the next connection on."""
        if self._context is not None:
            self._guard.fill(self._context, authority_pem)

    async def stop(self) -> None:
        """Ends."""
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), REQUEST_S)

    # -- one connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._places:
                line, host = await asyncio.wait_for(_read_head(reader), REQUEST_S)
                answer = await asyncio.wait_for(self._answer(line, host, writer), ANSWER_S)
                writer.write(_response(answer, head_only=line.startswith(b"HEAD ")))
                await asyncio.wait_for(writer.drain(), REQUEST_S)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked is gone, or asks nothing that we would answer
        finally:
            writer.close()

    async def _answer(self, line: bytes, host: str, writer: asyncio.StreamWriter) -> Answer:
        try:
            self._admit(host, writer)
        except PeerError as error:
            return _text(HTTPStatus.FORBIDDEN, f"{error}\n")
        method, _, rest = line.decode("latin-1").partition(" ")
        path = unquote(rest.partition(" ")[0].partition("?")[0])
        if method not in {"GET", "HEAD"}:
            return _text(HTTPStatus.METHOD_NOT_ALLOWED, "This is read-only: GET or HEAD.\n")
        try:
            return await self._page(path)
        except PeerError as error:
            if error.code not in NOT_FOUND:
                raise
            return self._trouble(HTTPStatus.NOT_FOUND, str(error))
        except FedlessError as error:
            _log.warning("page_failed", path=path, code=error.code.value)
            return self._trouble(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        except Exception:  # noqa: BLE001 - a broken page is told, and the next one is served
            _log.exception("page_broke", path=path)
            return self._trouble(HTTPStatus.INTERNAL_SERVER_ERROR, Code.INTERNAL.sentence)

    def _admit(self, host: str, writer: asyncio.StreamWriter) -> None:
        """Raises `PeerError` for whoever is not an operator; on loopback, for pages of another name (DNS rebinding)."""
        if not self._context:
            if not _is_loopback(urlsplit(f"//{host}").hostname or ""):
                raise PeerError(
                    Code.CALLER_REFUSED, "Ask for it as localhost: another name may be somebody's trick."
                )
            return
        leaf: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        caller = self._guard.callers.admit(der_to_pem(leaf), self._seen.clock())
        if caller.name.role is not Role.OPERATOR:
            raise PeerError(Code.WRONG_ROLE, f"A {caller.name.role} may not look.")

    # -- what there is

    async def _page(self, path: str) -> Answer:
        known: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/": self._overview, "/metrics": self._metrics, "/healthz": self._ready, "/healthz/ready": self._ready,
            "/healthz/live": self._live,
        }  # fmt: skip
        if path in known:
            return await known[path]()
        parts = path.strip("/").split("/")
        match parts:
            case ["runs", run_id]:
                return await self._run(run_id)
            case ["runs", run_id, "rounds", number] if NUMBER.fullmatch(number):
                return await self._round(run_id, int(number))
        return self._trouble(HTTPStatus.NOT_FOUND, "There is no such page.")

    async def _overview(self) -> Answer:
        shown = await self._seen.database.run(views.overview)
        return _html(HTTPStatus.OK, self._pages.overview(shown, self._seen.clock()))

    async def _run(self, run_id: str) -> Answer:
        seen = self._seen
        run = await seen.database.run(lambda c: runs.show(c, run_id))
        story = await stories.tell(seen.database, Asked(run_id), seen.clock())
        return _html(HTTPStatus.OK, self._pages.run(run, story))

    async def _round(self, run_id: str, number: int) -> Answer:
        seen = self._seen
        run = await seen.database.run(lambda c: runs.show(c, run_id))
        if not any(each.number == number for each in run.rounds):
            raise PeerError(Code.UNKNOWN_ROUND, f"Run {run_id} has no round {number}.")
        story = await stories.tell(seen.database, Asked(run_id, number), seen.clock())
        return _html(HTTPStatus.OK, self._pages.round(run, number, story))

    async def _metrics(self) -> Answer:
        now = self._seen.clock()
        totals = await self._seen.database.run(lambda c: views.totals(c, now))
        free = shutil.disk_usage(self._seen.spool).free
        return Answer(HTTPStatus.OK, CONTENT_TYPE, self._exposition.text(totals, free))

    async def _live(self) -> Answer:
        """The process answers; nothing more is asked of it."""
        return _json(HTTPStatus.OK, {"status": "live"})

    async def _ready(self) -> Answer:
        """Whether it can serve: its database answers. A broker that is away delays wake-ups, and is told."""
        broker = "connected" if self._seen.connected() else "away"
        try:
            await asyncio.wait_for(self._seen.database.run(lambda _connection: None), HEALTH_S)
        except (FedlessError, TimeoutError, RuntimeError) as error:
            why = error.code.value if isinstance(error, FedlessError) else "no answer"
            return _json(
                HTTPStatus.SERVICE_UNAVAILABLE, {"status": "not ready", "database": why, "broker": broker}
            )
        return _json(HTTPStatus.OK, {"status": "ready", "database": "ok", "broker": broker})

    def _trouble(self, status: HTTPStatus, text: str) -> Answer:
        return _html(status, self._pages.trouble(f"{status.value} {status.phrase}", text))


async def _read_head(reader: asyncio.StreamReader) -> tuple[bytes, str]:
    """The request's first line, and for which host it is; its other lines say nothing that matters here."""
    first, *others = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    hosts = [line[5:].strip() for line in others if line[:5].lower() == b"host:"]
    return first, hosts[0].decode("latin-1") if len(hosts) == 1 else ""


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _html(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, HTML, text.encode())


def _json(status: HTTPStatus, value: object) -> Answer:
    return Answer(status, JSON, json.dumps(value).encode() + b"\n")


def _text(status: HTTPStatus, text: str) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", text.encode())


def _response(answer: Answer, *, head_only: bool) -> bytes:
    head = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        f"Content-Security-Policy: {POLICY}",
        "X-Content-Type-Options: nosniff",
        "Referrer-Policy: no-referrer",
        "Cache-Control: no-store",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode("ascii") + (b"" if head_only else answer.body)
