"""The participant's calls to the aggregator: gRPC over mTLS. The only gRPC client of this room.

A refusal comes back as the `PeerError` that the aggregator raised; a connection that cannot be made, breaks or stands
still is `PeerError(AGGREGATOR_UNREACHABLE)`. `patiently` repeats what may be repeated. Blocking; one thread per call.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self, TypeVar

import grpc

from fedless.protocol import wire
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError
from fedless.protocol.messages import (
    MESSAGE_BYTES_MAX,
    CheckIn,
    DeviceStatus,
    Endpoints,
    Enrollment,
    InvocationMetrics,
    NotNow,
    Offer,
    OrderResult,
    PolicyMessage,
    ReportHeader,
)
from fedless.protocol.trust import TrustList
from fedless.v1 import (
    enrollment_pb2,
    enrollment_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    rounds_pb2,
    rounds_pb2_grpc,
)

ERROR_TRAILER = "fedless-error-bin"
CALL_S = 40.0
"""Time for one short call; a check-in may be held for 25 s."""
PROXY = "FEDLESS_PROXY"
"""`http://host:port` of a proxy that takes CONNECT: the only proxy that is asked, since the environment's own ones
(http_proxy) are for other programs. TLS stays end to end."""
STALL_S = 60.0
"""A stream without any progress for this long is given up."""
REPEATED = frozenset({Code.AGGREGATOR_UNREACHABLE, Code.BUSY, Code.INTERNAL, Code.WRONG_OFFSET})
"""What may go away by itself: an upload goes on from where the aggregator says it is."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_UNREACHABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
T = TypeVar("T")


class Renewal(NamedTuple):
    """The answer to Renew, nothing of it verified; `chain_der` is leaf first."""

    chain_der: tuple[bytes, ...]
    endpoints: Endpoints
    trust_lists: tuple[TrustList, ...]
    policy: PolicyMessage
    now_ms: int


class Link:
    """A channel to the fleet port of the first endpoint that answers. Use as a context manager.

    `endpoints` are `host:port`; the PEM texts are the device's key and chain and the fleet's authority.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        server_name: str,
        key_pem: bytes,
        chain_pem: bytes,
        authority_pem: bytes,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._options = _options(server_name)
        self._credentials = grpc.ssl_channel_credentials(authority_pem, key_pem, chain_pem)
        self._at = 0
        self._lock = threading.Lock()
        self.bytes_down = 0
        self.bytes_up = 0
        self._connect()

    def turn(self) -> None:
        """Try the next endpoint, if there is another."""
        if len(self._endpoints) > 1:
            with self._lock:
                self._at = (self._at + 1) % len(self._endpoints)
                self._channel.close()
                self._connect()

    def check_in(self, request: CheckIn) -> Offer | NotNow:
        """Ask to take part."""
        message = rounds_pb2.CheckInRequest(round_id=request.round_id, nonce=request.nonce, mark=request.mark)
        return wire.check_in_reply_from_pb(_unary(self._rounds.CheckIn, message))

    def fetch(self, digest: bytes, offset: int, limit_bytes: int) -> Iterator[bytes]:
        """A blob's bytes from `offset` on, as they come. Raises BUNDLE_TOO_LARGE if it has more than `limit_bytes`."""
        call = self._fleet.FetchBlob(fleet_pb2.BlobRequest(digest=digest, offset=offset))
        watch = _Watch(call.cancel)
        try:
            for chunk in call:
                watch.progress()
                if max(chunk.total_bytes, offset + len(chunk.data)) > limit_bytes:
                    detail = f"A blob of {max(chunk.total_bytes, offset)} bytes; {limit_bytes} were expected at most."
                    raise PeerError(Code.BUNDLE_TOO_LARGE, detail)
                offset += len(chunk.data)
                with self._lock:
                    self.bytes_down += len(chunk.data)
                yield chunk.data
        except grpc.RpcError as error:
            _refused(error)
        finally:
            watch.end()
            call.cancel()

    def begin_report(self, header: ReportHeader) -> tuple[int, bool]:
        """Announce a report: the bytes of it that the aggregator has, and whether it is accepted already."""
        reply = _unary(self._rounds.BeginReport, wire.report_header_to_pb(header))
        return reply.offset, reply.complete

    def put_report(self, round_id: int, offset: int, chunks: Iterator[bytes]) -> None:
        """Send the payload from `offset` on; at least one chunk is sent, even of an empty payload."""
        watch = _Watch(lambda: None)

        def messages() -> Iterator[rounds_pb2.ReportChunk]:
            first = next(chunks, b"")
            self.bytes_up += len(first)
            yield rounds_pb2.ReportChunk(round_id=round_id, offset=offset, data=first)
            for data in chunks:
                watch.progress()
                self.bytes_up += len(data)
                yield rounds_pb2.ReportChunk(data=data)

        call = self._rounds.PutReport.future(messages())
        watch.cancel = call.cancel
        try:
            receipt = call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            _refused(error)
        finally:
            watch.end()
        if not receipt.accepted:
            raise PeerError(Code.WRONG_STATE, "The report was neither accepted nor refused.")

    def put_metrics(self, metrics: InvocationMetrics) -> None:
        """Tell timings and resources of an invocation."""
        _unary(self._rounds.PutMetrics, wire.metrics_to_pb(metrics))

    def report_status(self, status: DeviceStatus) -> int:
        """Tell the device's profile; the aggregator's clock, Unix ms."""
        return int(_unary(self._fleet.ReportStatus, wire.status_to_pb(status)).now_ms)

    def get_order(self, order_id: int, nonce: bytes) -> tuple[bytes, int, int]:
        """What a ticket of kind INVOKE asks for: its bytes, its deadline and the aggregator's clock, Unix ms."""
        query = fleet_pb2.OrderQuery(order_id=order_id, nonce=nonce)
        return wire.order_reply_from_pb(_unary(self._fleet.GetOrder, query))

    def put_order_result(self, result: OrderResult) -> None:
        """What came of an order."""
        _unary(self._fleet.PutOrderResult, wire.order_result_to_pb(result))

    # -- masked rounds: messages in the bytes of their codec; b"" means "not yet there"

    def post_epoch_keys(self, epoch: int, message: bytes) -> None:
        """Send M0."""
        _unary(self._rounds.PostEpochKeys, wire.epoch_step_to_pb(epoch, message))

    def get_roster(self, epoch: int) -> bytes:
        """Ask for M1; the aggregator holds the call for up to 25 s."""
        reply = _unary(self._rounds.GetRoster, rounds_pb2.EpochQuery(epoch=epoch))
        return wire.epoch_step_from_pb(reply)[1]

    def post_epoch_shares(self, epoch: int, message: bytes) -> None:
        """Send M2."""
        _unary(self._rounds.PostEpochShares, wire.epoch_step_to_pb(epoch, message))

    def get_inbox(self, epoch: int) -> bytes:
        """Ask for M3; held like M1."""
        reply = _unary(self._rounds.GetInbox, rounds_pb2.EpochQuery(epoch=epoch))
        return wire.epoch_step_from_pb(reply)[1]

    def get_unmask_request(self, round_id: int) -> bytes:
        """Ask for M6; held like M1."""
        reply = _unary(self._rounds.GetUnmaskRequest, rounds_pb2.RoundQuery(round_id=round_id))
        return wire.round_step_from_pb(reply)[1]

    def post_unmask_response(self, round_id: int, message: bytes) -> None:
        """Send M7."""
        _unary(self._rounds.PostUnmaskResponse, wire.round_step_to_pb(round_id, message))

    def get_round_result(self, round_id: int) -> bytes:
        """Ask for M8; not held."""
        reply = _unary(self._rounds.GetRoundResult, rounds_pb2.RoundQuery(round_id=round_id))
        return wire.round_step_from_pb(reply)[1]

    def renew(self, csr_der: bytes, trust_numbers: Mapping[str, int]) -> Renewal:
        """Ask for a new certificate, and for the lists of trust that are newer than those."""
        request = fleet_pb2.RenewRequest(csr_der=csr_der, trust_numbers=trust_numbers)
        reply = _unary(self._fleet.Renew, request)
        return Renewal(
            tuple(reply.chain_der),
            wire.endpoints_from_pb(reply.endpoints),
            wire.trust_lists_from_pb(reply.trust_lists),
            wire.policy_from_pb(reply.policy),
            int(reply.now_ms),
        )

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _connect(self) -> None:
        target = self._endpoints[self._at]
        self._channel = grpc.secure_channel(target, self._credentials, self._options)
        self._fleet = fleet_pb2_grpc.FleetStub(self._channel)
        self._rounds = rounds_pb2_grpc.RoundsStub(self._channel)


def enroll(address: str, authority_pem: bytes, server_name: str, secret: str, csr_der: bytes) -> Enrollment:
    """The device: exchange a claim's secret and a request for a certificate, trusting only that authority."""
    credentials = grpc.ssl_channel_credentials(authority_pem)
    with grpc.secure_channel(address, credentials, _options(server_name)) as channel:
        stub = enrollment_pb2_grpc.EnrollmentStub(channel)
        request = enrollment_pb2.EnrollRequest(secret=secret, csr_der=csr_der)
        return wire.enrollment_from_pb(_unary(stub.Enroll, request))


def may_pass(error: FedlessError) -> bool:
    """Whether the same call may be taken later."""
    return error.code in REPEATED or bool(error.retry_after_ms)


def patiently(
    call: Callable[[], T],
    *,
    budget_s: float,
    link: Link | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Repeat a call that failed for a reason that may go away, for at most `budget_s`, with jittered pauses.

    Raises the last error.
    """
    end = time.monotonic() + budget_s
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return call()
        except PeerError as error:
            asked = (error.retry_after_ms or 0) / 1000
            if not may_pass(error) or time.monotonic() + max(asked, pause) > end:
                raise
        if link is not None:
            link.turn()
        sleep(max(asked, pause * random.uniform(0.5, 1.0)))  # noqa: S311 - it spreads load, it guards nothing
        pause = min(2 * pause, _LONGEST_PAUSE_S)


class _Watch:
    """Cancels a stream that makes no progress for `STALL_S`. One thread, which sleeps until it may be due."""

    def __init__(self, cancel: Callable[[], object]) -> None:
        self.cancel = cancel
        self._over = threading.Event()
        self._at = time.monotonic()
        threading.Thread(target=self._wait, daemon=True).start()

    def progress(self) -> None:
        """Something came or went."""
        self._at = time.monotonic()

    def _wait(self) -> None:
        while (left := self._at + STALL_S - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        self.cancel()  # looked up now: an upload is known only after its first chunk was asked for

    def end(self) -> None:
        """The stream is over."""
        self._over.set()


def _options(server_name: str) -> list[tuple[str, str | int]]:
    proxy = os.environ.get(PROXY, "")
    return [
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.default_authority", server_name),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5000),
        ("grpc.enable_http_proxy", 1 if proxy else 0),
        *([("grpc.http_proxy", proxy)] if proxy else []),
    ]


def _unary(method: Callable[..., Any], message: Any) -> Any:  # noqa: ANN401 - any request and its reply
    try:
        return method(message, timeout=CALL_S)
    except grpc.RpcError as error:
        _refused(error)


def _refused(error: Exception) -> NoReturn:
    """gRPC's error as ours."""
    raise _translated(error) from error


def _translated(error: Exception) -> FedlessError:
    if not isinstance(error, grpc.Call):
        return PeerError(Code.AGGREGATOR_UNREACHABLE, "The stream stood still and was given up.")
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_TRAILER:
            return wire.error_from_bytes(value if isinstance(value, bytes) else value.encode())
    status, details = error.code(), (error.details() or "")[:300]
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return _not_trusted(details)
    if status in _UNREACHABLE:
        detail = f"{status.name}: {details}."
        return PeerError(
            Code.AGGREGATOR_UNREACHABLE, detail, fix="Is it running, and may this device reach it?"
        )
    return PeerError(Code.INTERNAL, f"The aggregator answered {status.name}.")


def _not_trusted(details: str) -> FedlessError:
    if "expired" in details or "not yet valid" in details:
        moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
        return LocalError(
            Code.CLOCK_WRONG,
            f"By this device's clock ({moment} UTC) the aggregator's certificate is not valid.",
            fix="Set the clock; if it is right, the aggregator's certificate must be renewed.",
        )
    return PeerError(Code.FOREIGN_CERTIFICATE, "The server at the aggregator's address is not of this fleet.")
