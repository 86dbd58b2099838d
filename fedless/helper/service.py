"""The helper's one method over gRPC: authenticate, decode, decide, record, answer.

Only the fleet's aggregator may call. The decision and the sums run in one worker thread; the answer is recorded
before its first byte is sent. Refusals travel as a gRPC status with the details in the trailer
`fedless-error-bin`; what went wrong on our side stays in our log.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog

from fedless.helper.config import RuleSettings
from fedless.helper.memory import Memory
from fedless.protocol import identity
from fedless.protocol.crypto import P256Private, ecdsa_sign, x25519_public
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import MESSAGE_BYTES_MAX
from fedless.protocol.prg import Words
from fedless.protocol.secagg.helper import (
    RefusedReports,
    check_request,
    close_set,
    sign_sum,
    sum_masks,
)
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen, HelperReport, MaskSum
from fedless.protocol.secagg.messages import Member
from fedless.protocol.wire import helper as wire
from fedless.protocol.wire.clients import error_to_bytes
from fedless.v1 import helper_pb2, helper_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
PROGRESS_TIMEOUT_S = 30.0
LATE_MS = 3_600_000
"""A function's certificate ends with its round; the aggregator may ask about that round for so much longer."""
OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),
)
_log = structlog.get_logger("helper")


@dataclass(frozen=True)
class Trust:
    """Whose certificates count: the fleet, its authority (DER), and a file of denied client ids."""

    fleet: str
    authority_der: bytes
    denied: Path | None = None

    def denied_ids(self) -> frozenset[str]:
        """The ids in the deny list (one a line, `#` begins a comment); read again for each set."""
        if self.denied is None:
            return frozenset()
        lines = self.denied.read_text("utf-8").splitlines()
        return frozenset(filter(None, (line.partition("#")[0].strip() for line in lines)))

    def member(self, certificate: bytes, at_ms: int, denied: frozenset[str]) -> Member:
        """Whose a client's certificate is. Raises `PeerError` by name."""
        name, key = identity.verify_chain([certificate], self.authority_der, self.fleet, at_ms)
        if name.role not in identity.CLIENT_ROLES:
            raise PeerError(Code.WRONG_ROLE, f"Expected a device or a function, found {name.role}.")
        if name.id in denied:
            raise PeerError(Code.CERTIFICATE_REVOKED, f"It is {name.id}'s.")
        return Member(name.id, name.role is identity.Role.DEVICE, key)

    def check_caller(self, context: Context, at_ms: int) -> None:
        """Raise `PeerError` unless this call comes from the fleet's aggregator."""
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        if not pem:
            raise PeerError(Code.NO_CERTIFICATE)
        der = ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))
        name, _ = identity.verify_chain([der], self.authority_der, self.fleet, at_ms)
        if name.role is not identity.Role.AGGREGATOR:
            raise PeerError(Code.WRONG_ROLE, f"Expected role aggregator, found {name.role}.")


@dataclass(frozen=True)
class Helper:
    """The helper without its port: decides on one request, records it, and sums.

    `clock`: Unix ms. `randomness(n)`: n bytes of the OS's CSPRNG, for the noise of a round.
    """

    trust: Trust
    settings: RuleSettings
    memory: Memory
    clock: Callable[[], int]
    randomness: Callable[[int], bytes]
    key: P256Private = field(repr=False)
    hpke_private: bytes = field(repr=False)

    def close(self, request: CloseRequest) -> tuple[MaskSum, Words] | RefusedReports:
        """The signed sum of masks of a set, or the reports that keep it from being closed.

        Raises `PeerError` for a set that is refused as a whole.
        """
        check_request(request, self.settings.rules, own_key=x25519_public(self.hpke_private))
        known = self.memory.remembered(request.open.context)
        # A repeat is judged as of the first time: the answer was given, and must not change with the clock.
        now_ms = self.clock()
        at_ms = (
            max(min(now_ms, request.open.deadline_at_ms), now_ms - LATE_MS) if known is None else known.at_ms
        )
        denied = self.trust.denied_ids() if known is None else frozenset()
        decided = close_set(
            request,
            self.settings.rules,
            known.closed if known else None,
            hpke_private=self.hpke_private,
            at_ms=at_ms,
            verify_member=lambda certificate, moment: self.trust.member(certificate, moment, denied),
        )
        if isinstance(decided, RefusedReports):
            return decided
        closed = self.memory.record(decided, self.randomness(32), at_ms)
        if isinstance(closed, RefusedReports):
            return closed
        words = sum_masks(decided, request.open, noise_seed=closed.noise_seed)
        return sign_sum(decided, words, sign=lambda message: ecdsa_sign(self.key, message)), words


class HelperService(helper_pb2_grpc.HelperServicer):
    """See helper.proto."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._turn = asyncio.Lock()  # one sum at a time: each takes a whole model's memory

    async def Close(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[helper_pb2.CloseChunk], context: Context
    ) -> AsyncIterator[helper_pb2.MaskSumChunk]:
        """See helper.proto."""
        try:
            self._helper.trust.check_caller(context, self._helper.clock())
            request = await self._receive(requests)
            async with self._turn:
                answer = await asyncio.to_thread(self._helper.close, request)
            if isinstance(answer, RefusedReports):
                codes = sorted({code.value for code in answer.reasons.values()})
                _log.warning(
                    "reports_refused", round=request.open.round_id, count=len(answer.reasons), codes=codes
                )
                yield wire.refused_reports_to_pb(answer)
                return
            _log.info("round_closed", round=request.open.round_id, reports=len(request.reports))
            for chunk in wire.mask_sum_to_pb(*answer):
                yield chunk
        except Exception as error:  # noqa: BLE001 - the border: no error may leave as it is
            await _refuse(context, error)

    async def _receive(self, requests: AsyncIterator[helper_pb2.CloseChunk]) -> CloseRequest:
        """The whole request. Raises `PeerError` as soon as it is too large."""
        opened: HelperOpen | None = None
        reports: list[HelperReport] = []
        async for chunk in _with_timeout(requests):
            if opened is None:
                opened = wire.close_open_from_pb(chunk)
                if opened.encoding.words > self._helper.settings.words_max:
                    most = self._helper.settings.words_max
                    raise PeerError(Code.OUT_OF_RANGE, f"Expected at most {most} words.")
            reports += wire.close_reports_from_pb(chunk)
            if len(reports) > min(opened.n_max, self._helper.settings.reports_max):
                raise PeerError(Code.OUT_OF_RANGE, f"Expected at most {opened.n_max} reports.")
        if opened is None:
            raise PeerError(Code.MALFORMED, "Expected at least one chunk.")
        return CloseRequest(opened, tuple(reports))


async def _with_timeout(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    while True:
        async with asyncio.timeout(PROGRESS_TIMEOUT_S):
            request = await anext(requests, None)
        if request is None:
            return
        yield request


async def _refuse(context: Context, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, TimeoutError):
        error = PeerError(Code.BUSY, "The transfer stood still for too long.", retry_after_ms=1000)
    if not isinstance(error, PeerError):
        _log.error("unexpected", error=type(error).__name__, exc_info=error)
        error = PeerError(Code.INTERNAL)
    _log.warning("call_refused", code=error.code.value, detail=error.detail)
    trailer = (("fedless-error-bin", error_to_bytes(error)),)
    await context.abort(grpc.StatusCode[error.code.status], str(error), trailer)


def new_server(helper: Helper) -> grpc.aio.Server:
    """A gRPC server with the helper's service; its port is to be added."""
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=16)
    helper_pb2_grpc.add_HelperServicer_to_server(HelperService(helper), server)
    return server


def credentials(key_pem: bytes, certificate_pem: bytes, authority_pem: bytes) -> grpc.ServerCredentials:
    """Server credentials; who calls must bring a certificate of the fleet."""
    return grpc.ssl_server_credentials([(key_pem, certificate_pem)], authority_pem, require_client_auth=True)
