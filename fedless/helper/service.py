"""The helper's one method over gRPC: authenticate, decode, have it decided (`closing`), answer.

Only the fleet's aggregator may call. The decision and the sums run in one worker thread; the answer is recorded
before its first byte is sent. Refusals travel as a gRPC status with the details in the trailer
`fedless-error-bin`; what went wrong on our side stays in our log.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import structlog

from fedless.helper.closing import Helper
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import MESSAGE_BYTES_MAX
from fedless.protocol.secagg.helper import RefusedReports
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen, HelperReport
from fedless.protocol.wire import helper as wire
from fedless.protocol.wire.clients import error_to_bytes
from fedless.v1 import helper_pb2, helper_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
PROGRESS_TIMEOUT_S = 30.0
OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),
)
_log = structlog.get_logger("helper")


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
            request = await self._receive(requests, context)
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

    async def _receive(
        self, requests: AsyncIterator[helper_pb2.CloseChunk], context: Context
    ) -> CloseRequest:
        """The whole request. Raises `PeerError` as soon as it is too large.

        Who calls is judged when the first chunk is here: a call that ends while its caller is still sending comes to it
        as an error of the library, and not as ours.
        """
        opened: HelperOpen | None = None
        reports: list[HelperReport] = []
        async for chunk in _with_timeout(requests):
            if opened is None:
                self._helper.trust.caller(_certificate(context), self._helper.clock())
                opened = wire.close_open_from_pb(chunk)
            reports += wire.close_reports_from_pb(chunk)
            self._helper.demands.check_size(opened, len(reports))
        if opened is None:
            raise PeerError(Code.MALFORMED, "Expected at least one chunk.")
        return CloseRequest(opened, tuple(reports))


def _certificate(context: Context) -> bytes:
    """The caller's leaf, DER. Raises `PeerError(NO_CERTIFICATE)`."""
    pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
    if not pem:
        raise PeerError(Code.NO_CERTIFICATE)
    return ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))


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
