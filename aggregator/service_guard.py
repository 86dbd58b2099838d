"""What every call passes before its method runs: who calls, which role, and how a refusal travels.

`guarded(roles)` wraps a method of a servicer. The caller comes from the client certificate of the
connection and is checked on every call (end date, deny list, role), since connections live long.
A `PeerError` becomes its gRPC status with the details in a trailer; anything else is INTERNAL
without details, and is logged here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any, NoReturn

import grpc
import structlog

from aggregator.authority import Caller, Callers
from aggregator.interfaces import Clock
from aggregator.live import PASSING
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.identity import CLIENT_ROLES, Role
from fedless.protocol.wire import error_to_bytes

ERROR_TRAILER = "fedless-error-bin"
OWN_TROUBLE_RETRY_MS = 10_000
OPERATORS = frozenset({Role.OPERATOR})
CLIENTS = CLIENT_ROLES
DEVICES = frozenset({Role.DEVICE})
Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger("service")


class Guarded:
    """Base of the servicers behind client certificates."""

    def __init__(self, callers: Callers, clock: Clock) -> None:
        self.callers = callers
        self.clock = clock

    def caller(self, context: Context, roles: frozenset[Role]) -> Caller:
        """The caller of this call; raises `PeerError` NO_CERTIFICATE, WRONG_ROLE or as `Callers.admit`."""
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), b"")
        if not pem:
            raise PeerError(Code.NO_CERTIFICATE)
        caller = self.callers.admit(pem, self.clock())
        if caller.name.role not in roles:
            expected = " or ".join(sorted(roles))
            raise PeerError(Code.WRONG_ROLE, f"Expected role {expected}, found {caller.name.role}.")
        return caller


Reply = Any  # one of protobuf's generated messages
Unary = Callable[[Any, Any, Caller], Awaitable[Reply]]
Stream = Callable[[Any, Any, Caller], AsyncIterator[Reply]]


def guarded(roles: frozenset[Role]) -> Callable[[Unary], Callable[..., Awaitable[Reply]]]:
    """A method `(self, request or requests, caller) -> reply` as gRPC calls it."""

    def wrap(method: Unary) -> Callable[..., Awaitable[Reply]]:
        @wraps(method)
        async def call(self: Guarded, request: Any, context: Context) -> Reply:  # noqa: ANN401 - generated message
            try:
                return await method(self, request, self.caller(context, roles))
            except Exception as error:  # noqa: BLE001 - the border: no error may leave as it is
                await refuse(context, error, method.__name__, tell=roles == OPERATORS)

        return call

    return wrap


def guarded_stream(roles: frozenset[Role]) -> Callable[[Stream], Callable[..., AsyncIterator[Reply]]]:
    """A method `(self, request, caller) -> async iterator of replies` as gRPC calls it."""

    def wrap(method: Stream) -> Callable[..., AsyncIterator[Reply]]:
        @wraps(method)
        async def call(self: Guarded, request: Any, context: Context) -> AsyncIterator[Reply]:  # noqa: ANN401 - generated message
            try:
                caller = self.caller(context, roles)
                async for reply in method(self, request, caller):
                    self.callers.check(caller)  # a stream may be open for days
                    yield reply
            except Exception as error:  # noqa: BLE001 - the border: no error may leave as it is
                await refuse(context, error, method.__name__, tell=roles == OPERATORS)

        return call

    return wrap


async def refuse(context: Context, error: Exception, method: str, *, tell: bool = False) -> NoReturn:
    """Ends a call with the status, and the trailer, of an error; `tell` also what is wrong on our side."""
    refusal = _refusal(error, method, tell=tell)
    _log.debug("call_refused", method=method, code=refusal.code.value)
    await context.abort(
        grpc.StatusCode[refusal.code.status], str(refusal), ((ERROR_TRAILER, error_to_bytes(refusal)),)
    )


def _refusal(error: Exception, method: str, *, tell: bool) -> PeerError:
    if isinstance(error, PeerError):
        return error
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, TimeoutError | asyncio.IncompleteReadError):
        return PeerError(Code.BUSY, "The transfer stood still for too long.", retry_after_ms=1000)
    if isinstance(error, LocalError):
        if tell:
            return PeerError(error.code, error.detail, fix=error.fix, retry_after_ms=error.retry_after_ms)
        _log.error("own_trouble", method=method, code=error.code.value, detail=error.detail)
        if error.code in PASSING:
            return PeerError(error.code, "On the aggregator.", retry_after_ms=OWN_TROUBLE_RETRY_MS)
        return PeerError(Code.INTERNAL)
    _log.error("unexpected", method=method, error=type(error).__name__, exc_info=error)
    return PeerError(Code.INTERNAL)
