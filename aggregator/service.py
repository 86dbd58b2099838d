"""The gRPC services for clients: authenticate, decode, call, encode. No decision is made here.

Enrollment (server TLS only) listens on loopback behind `front.py`; Fleet and Rounds listen on the
fleet port, where every connection brings a client certificate of this fleet. The Operator service
on the same port is in `service_operator.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from aggregator.authority import Caller, Callers
from aggregator.blobs import Blobs
from aggregator.coordinator import Coordinator
from aggregator.enrollment import Registrar
from aggregator.front import FailedClaims
from aggregator.interfaces import Clock
from aggregator.orders import Orders
from aggregator.service_guard import CLIENTS, DEVICES, Context, Guarded, guarded, guarded_stream, refuse
from aggregator.service_masked import MaskedMethods, Masks
from aggregator.store import fleet as store
from aggregator.store.engine import Database
from fedless.protocol import wire
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import CHUNK_BYTES, CHUNK_BYTES_MAX, MESSAGE_BYTES_MAX
from fedless.v1 import (
    enrollment_pb2,
    enrollment_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    rounds_pb2,
    rounds_pb2_grpc,
)

Server = grpc.aio.Server
CLAIM_FAULTS = frozenset({Code.CLAIM_UNKNOWN, Code.CLAIM_USED, Code.CLAIM_EXPIRED})
# Keepalive for NAT: a dead peer is found within about 80 s; clients may ping every 20 s without being scolded.
OPTIONS = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),  # a second service on the same port is an error, not a partner
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.http2.max_ping_strikes", 3),
    # Each upload may run this far ahead of the disk. gRPC's own estimate grew to 11 MB for each of them.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 512 * 1024),
)


class EnrollmentService(enrollment_pb2_grpc.EnrollmentServicer):
    """Exchanges claims for certificates; `address_of` maps a loopback port to the real caller."""

    def __init__(self, registrar: Registrar, failed: FailedClaims, address_of: Callable[[int], str]) -> None:
        self._registrar = registrar
        self._failed = failed
        self._address_of = address_of

    def add_to(self, server: Server) -> None:
        """Registers the service."""
        enrollment_pb2_grpc.add_EnrollmentServicer_to_server(self, server)

    async def Enroll(  # noqa: N802 - gRPC's name
        self, request: enrollment_pb2.EnrollRequest, context: Context
    ) -> enrollment_pb2.EnrollReply:
        """See enrollment.proto."""
        port = context.peer().rpartition(":")[2]
        address = self._address_of(int(port) if port.isdigit() else 0)
        try:
            self._failed.check(address)
            enrollment = await self._registrar.enroll(wire.enroll_request_from_pb(request), address)
        except Exception as error:  # noqa: BLE001 - the border: no error may leave as it is
            if isinstance(error, PeerError) and error.code in CLAIM_FAULTS:
                self._failed.add(address)
            await refuse(context, error, "Enroll")
        return wire.enrollment_to_pb(enrollment)


class FleetService(Guarded, fleet_pb2_grpc.FleetServicer):
    """What enrolled clients may always call."""

    def __init__(
        self, registrar: Registrar, database: Database, blobs: Blobs, orders: Orders, clock: Clock
    ) -> None:
        super().__init__(registrar.callers, clock)
        self._registrar = registrar
        self._database = database
        self._blobs = blobs
        self._orders = orders

    def add_to(self, server: Server) -> None:
        """Registers the service."""
        fleet_pb2_grpc.add_FleetServicer_to_server(self, server)

    @guarded(CLIENTS)
    async def Renew(self, request: fleet_pb2.RenewRequest, caller: Caller) -> fleet_pb2.RenewReply:  # noqa: N802
        """See fleet.proto."""
        issued = await self._registrar.renew(caller.name.id, request.csr_der)
        terms = self._registrar.terms
        return fleet_pb2.RenewReply(
            chain_der=issued.chain_der,
            endpoints=wire.endpoints_to_pb(terms.endpoints),
            policy=wire.policy_to_pb(terms.policy),
            now_ms=self.clock(),
            trust_lists=wire.trust_lists_to_pb(self._registrar.trust_lists(request.trust_numbers)),
        )

    @guarded(CLIENTS)
    async def ReportStatus(self, request: fleet_pb2.DeviceStatus, caller: Caller) -> fleet_pb2.StatusReply:  # noqa: N802
        """See fleet.proto."""
        profile, now_ms = asdict(wire.status_from_pb(request)), self.clock()
        for function in profile["functions"]:  # JSON has no bytes
            function["digest"] = function["digest"].hex()
        await self._database.run(lambda c: store.set_profile(c, caller.name.id, profile, now_ms))
        return fleet_pb2.StatusReply(now_ms=now_ms)

    @guarded_stream(CLIENTS)
    async def FetchBlob(  # noqa: N802
        self, request: fleet_pb2.BlobRequest, _caller: Caller
    ) -> AsyncIterator[fleet_pb2.BlobChunk]:
        """See fleet.proto."""
        total = await asyncio.to_thread(self._blobs.size, request.digest)
        if request.offset == total:
            yield fleet_pb2.BlobChunk(total_bytes=total)
        async for data in self._blobs.read(request.digest, request.offset, CHUNK_BYTES):
            yield fleet_pb2.BlobChunk(data=data, total_bytes=total)
            total = 0  # in the first chunk only

    @guarded(DEVICES)
    async def GetOrder(self, request: fleet_pb2.OrderQuery, caller: Caller) -> fleet_pb2.OrderReply:  # noqa: N802
        """See fleet.proto."""
        order, deadline_at_ms = await self._orders.ask(caller.name.id, request.order_id, request.nonce)
        return fleet_pb2.OrderReply(order=order, deadline_at_ms=deadline_at_ms, now_ms=self.clock())

    @guarded(DEVICES)
    async def PutOrderResult(self, request: fleet_pb2.OrderResult, caller: Caller) -> fleet_pb2.OrderReceipt:  # noqa: N802
        """See fleet.proto."""
        await self._orders.settle(caller.name.id, wire.order_result_from_pb(request))
        return fleet_pb2.OrderReceipt(now_ms=self.clock())


class RoundsService(MaskedMethods, rounds_pb2_grpc.RoundsServicer):
    """One pass of a client through a round."""

    def __init__(
        self,
        callers: Callers,
        coordinator: Coordinator,
        masks: Masks,
        clock: Clock,
        progress_timeout_s: float,
    ) -> None:
        super().__init__(callers, masks, clock)
        self._coordinator = coordinator
        self._progress_timeout_s = progress_timeout_s

    def add_to(self, server: Server) -> None:
        """Registers the service."""
        rounds_pb2_grpc.add_RoundsServicer_to_server(self, server)

    @guarded(CLIENTS)
    async def CheckIn(self, request: rounds_pb2.CheckInRequest, caller: Caller) -> rounds_pb2.CheckInReply:  # noqa: N802
        """See rounds.proto."""
        check_in = wire.check_in_from_pb(request)
        if await self._masks.epochs.is_epoch(check_in.round_id):
            reply = await self._counted(caller, self._masks.epochs.check_in(caller.name.id, check_in))
        else:
            reply = await self._coordinator.check_in(caller.name.id, check_in)
        return wire.check_in_reply_to_pb(reply)

    @guarded(CLIENTS)
    async def BeginReport(self, request: rounds_pb2.ReportHeader, caller: Caller) -> rounds_pb2.ReportOffset:  # noqa: N802
        """See rounds.proto."""
        header = wire.report_header_from_pb(request)
        offset, complete = await self._coordinator.begin_report(caller.name.id, header)
        return rounds_pb2.ReportOffset(offset=offset, complete=complete)

    @guarded(CLIENTS)
    async def PutReport(self, requests: AsyncIterator[Any], caller: Caller) -> rounds_pb2.ReportReceipt:  # noqa: N802
        """See rounds.proto."""
        pieces = with_timeout(requests, self._progress_timeout_s)
        first = await anext(pieces, None)
        if first is None:
            raise PeerError(Code.MALFORMED, "Expected at least one chunk.")
        await self._coordinator.put_report(
            caller.name.id, first.round_id, first.offset, chunk_data(first, pieces)
        )
        return rounds_pb2.ReportReceipt(accepted=True, now_ms=self.clock())

    @guarded(CLIENTS)
    async def PutMetrics(  # noqa: N802
        self, request: rounds_pb2.InvocationMetrics, caller: Caller
    ) -> rounds_pb2.MetricsReceipt:
        """See rounds.proto."""
        metrics, epochs = wire.metrics_from_pb(request), self._masks.epochs
        if await epochs.is_epoch(metrics.round_id):
            await epochs.gave_up(caller.name.id, metrics.round_id, Code.of(metrics.outcome))
        else:
            await self._coordinator.put_metrics(caller.name.id, metrics)
        return rounds_pb2.MetricsReceipt()


async def with_timeout(requests: AsyncIterator[Any], timeout_s: float) -> AsyncIterator[Any]:
    """The messages of a stream; raises `TimeoutError` when the next one does not come in time."""
    while True:
        async with asyncio.timeout(timeout_s):
            request = await anext(requests, None)
        if request is None:
            return
        yield request


async def chunk_data(first: Any, further: AsyncIterator[Any]) -> AsyncIterator[bytes]:  # noqa: ANN401 - generated message
    """The bytes of an upload's chunks; raises `PeerError` OUT_OF_RANGE for one that is too long."""
    yield _checked(first.data)
    async for chunk in further:
        yield _checked(chunk.data)


def _checked(data: bytes) -> bytes:
    if len(data) > CHUNK_BYTES_MAX:
        detail = f"Expected chunks of at most {CHUNK_BYTES_MAX} bytes, found {len(data)}."
        raise PeerError(Code.OUT_OF_RANGE, detail)
    return data


class ServerIdentity:
    """The service's own certificate and key, read again when they change, so renewal needs no restart.

    gRPC asks at each handshake, from a thread of its own; connections that are open stay.
    """

    def __init__(self, directory: Path, authority_pem: bytes) -> None:
        self._certificate = directory / "cert.pem"
        self._key = directory / "cert.key"
        self._authority_pem = authority_pem

    def follow(self, authority_pem: bytes) -> None:
        """Believe these authorities from the next handshake on."""
        self._authority_pem = authority_pem

    def credentials(self, *, client_certificates: bool) -> grpc.ServerCredentials:
        """Credentials for one port that demands client certificates of the fleet, or does not ask for any."""
        known = self._mark()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal known
            mark = self._mark()
            if mark == known:
                return None
            known = mark
            return self._read(mark[1])

        return grpc.dynamic_ssl_server_credentials(
            self._read(known[1]),
            fetch,  # type: ignore[arg-type]  # None means "no change"; the stubs do not know
            require_client_authentication=client_certificates,
        )

    def _mark(self) -> tuple[int, bytes]:
        return self._certificate.stat().st_mtime_ns, self._authority_pem

    def _read(self, authority_pem: bytes) -> grpc.ServerCertificateConfiguration:
        pair = (self._key.read_bytes(), self._certificate.read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], authority_pem)


def new_server(concurrent_calls: int) -> Server:
    """A gRPC server with the fleet's limits; services and port are to be added."""
    return grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=concurrent_calls)


def bind(server: Server, address: str, port: int, credentials: grpc.ServerCredentials) -> int:
    """Binds a server; the port that it got. Raises `LocalError` PORT_IN_USE."""
    try:
        bound = server.add_secure_port(f"{address}:{port}", credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        detail = f"Cannot listen on {address}:{port}."
        raise LocalError(
            Code.PORT_IN_USE, detail, fix="Stop what listens there, or change listen.fleet_port."
        )
    return bound
