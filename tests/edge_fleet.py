"""A fleet for the edge runtime's tests: a small authority, a fake aggregator that speaks the real protocol, a device.

The fake keeps every promise of the wire (idempotent calls, resumable transfers, one report for each round) and can be
told to fail at a named place. It is a real gRPC server over mTLS with certificates from `identity`.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import grpc
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding as Form

from edge_runtime.keystore import Keystore
from fedless.protocol import bundle_format, identity, signed, wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.manifest import GRAPH_FILE, MANIFEST_FILE
from fedless.protocol.messages import (
    ClientRule,
    Encoding,
    Endpoints,
    Enrollment,
    Kind,
    Mode,
    Offer,
    Optimizer,
    Order,
    OrderResult,
    PolicyMessage,
    ReportHeader,
    Task,
    Ticket,
)
from fedless.protocol.secagg.policy import from_enrollment
from fedless.v1 import enrollment_pb2_grpc, fleet_pb2, fleet_pb2_grpc, rounds_pb2, rounds_pb2_grpc

FUNCTION = Path(__file__).parents[1] / "examples" / "mnist" / "function-mlp"
PARAMETERS = 101_770
TICKET_KEY, PUBLISHER_KEY, FOREIGN_KEY = bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96))
PIECE = 64 * 1024


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Authority:
    """A fleet's certificate authority."""

    def __init__(self, fleet: str, days: int = 365) -> None:
        self.fleet = fleet
        self.key = identity.new_key()
        self.until = datetime.now(UTC) + timedelta(days=days)
        self.certificate = identity.authority_certificate(fleet, self.key, self.until)
        self.der = self.certificate.public_bytes(Form.DER)
        self.pem = self.certificate.public_bytes(Form.PEM)

    def issue(self, role: identity.Role, name: str, key: ec.EllipticCurvePublicKey) -> x509.Certificate:
        named = identity.Name(self.fleet, role, name)
        return identity.leaf_builder(named, key, self.certificate, self.until).sign(self.key, hashes.SHA256())

    def pair(self, role: identity.Role, name: str) -> tuple[bytes, bytes]:
        """Key and chain in PEM."""
        key = identity.new_key()
        return identity.key_pem(key), self.issue(role, name, key.public_key()).public_bytes(
            Form.PEM
        ) + self.pem


@dataclass
class Fleet:
    """What all parties of a test know of each other."""

    name: str = "testing"
    authority: Authority = field(init=False)
    bundle: bytes = field(init=False)
    model: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.authority = Authority(self.name)
        names = (MANIFEST_FILE, GRAPH_FILE)
        files = {name: (FUNCTION / name).read_bytes() for name in names}
        self.bundle = bundle_format.pack(files, PUBLISHER_KEY)
        self.model = np.random.default_rng(1).normal(0, 0.05, PARAMETERS).astype("<f4").tobytes()

    def task(self, **changes: Any) -> Task:
        rule = ClientRule(Optimizer.SGD, learning_rate=0.1, max_steps=3)
        task = Task("test", hashlib.sha256(self.bundle).digest(), PARAMETERS, Mode.PLAIN, rule)
        return replace(task, **changes)

    def ticket(self, client_id: str, round_id: int, task: Task, **changes: Any) -> Ticket:
        ticket = Ticket(
            fleet=self.name,
            client_id=client_id,
            task_digest=hashlib.sha256(wire.task_to_bytes(task)).digest(),
            run_id="run-1",
            round_id=round_id,
            kind=Kind.TRAIN,
            bundle_digest=hashlib.sha256(self.bundle).digest(),
            model_version=1,
            model_digest=hashlib.sha256(self.model).digest(),
            endpoints=(),
            not_after_ms=now_ms() + 60_000,
            nonce=hashlib.sha256(f"{client_id} {round_id}".encode()).digest()[:16],
        )
        return replace(ticket, **changes)

    def enrollment(self, client_id: str, key: ec.EllipticCurvePublicKey, endpoints: Endpoints) -> Enrollment:
        leaf = self.authority.issue(identity.Role.DEVICE, client_id, key)
        return Enrollment(
            fleet=self.name,
            client_id=client_id,
            chain_der=(leaf.public_bytes(Form.DER), self.authority.der),
            endpoints=endpoints,
            ticket_keys=(signed.signing_key(TICKET_KEY),),
            publisher_keys=(signed.signing_key(PUBLISHER_KEY),),
            policy=PolicyMessage(modes=(Mode.PLAIN,)),
            now_ms=now_ms(),
        )

    def device(
        self, state: Path, client_id: str, fleet_port: int, mqtt_port: int = 1, examples: int = 40
    ) -> Path:
        """An enrolled device with random images as its data."""
        keys = Keystore(state)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = keys.make_key()
        places = Endpoints((f"127.0.0.1:{fleet_port}",), (f"127.0.0.1:{mqtt_port}",), ("127.0.0.1:1",))
        enrollment = self.enrollment(client_id, key.public_key(), places)
        keys.store(enrollment, (self.authority.der,), from_enrollment(enrollment.policy))
        random = np.random.default_rng(2)
        images = random.random((examples, 28, 28, 1), np.float32)
        np.savez(state / "examples.npz", x=images, y=random.integers(0, 10, examples, np.int32))
        (state / "edge.toml").write_text('[data.default]\npath = "examples.npz"\n')
        return state


def wake_bytes(ticket: Ticket, key: bytes = TICKET_KEY) -> bytes:
    return wire.signed_ticket_to_bytes(signed.sign_ticket(wire.ticket_to_bytes(ticket), key))


@dataclass
class RoundHere:
    """A round at the fake aggregator."""

    task: bytes
    report_bytes: int
    nonce: bytes
    deadline_at_ms: int
    refusal: PeerError | None = None
    header: ReportHeader | None = None
    data: bytearray = field(default_factory=bytearray)
    accepted: int = 0


class FakeAggregator(
    enrollment_pb2_grpc.EnrollmentServicer, fleet_pb2_grpc.FleetServicer, rounds_pb2_grpc.RoundsServicer
):
    """Fleet and Rounds for one device. `before(call)` may raise or wait at the start of each call."""

    def _masked(self, request: Any, context: Any) -> NoReturn:
        """This fake opens plain rounds only."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        raise AssertionError

    Enroll = PostEpochKeys = GetRoster = PostEpochShares = _masked
    GetInbox = GetUnmaskRequest = PostUnmaskResponse = GetRoundResult = _masked

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.blobs = {hashlib.sha256(b).digest(): b for b in (fleet.bundle, fleet.model)}
        self.rounds: dict[int, RoundHere] = {}
        self.metrics: list[Any] = []
        self.statuses: list[Any] = []
        self.calls: list[str] = []
        self.peers: set[str] = set()
        self.clock_ahead_ms = 0
        self.renewed: dict[str, Any] = {}
        self.renew_requests: list[Any] = []
        self.policy: PolicyMessage | None = None
        self.orders: dict[int, tuple[bytes, int]] = {}
        self.results: list[OrderResult] = []
        self.before: Callable[[str], None] = lambda _: None
        self.lock = threading.Lock()
        self._server: grpc.Server | None = None
        self.port = 0

    def open(self, ticket: Ticket, task: Task, report_bytes: int | None = None) -> RoundHere:
        size = 4 * PARAMETERS if ticket.kind is Kind.TRAIN else 0
        here = RoundHere(
            wire.task_to_bytes(task),
            size if report_bytes is None else report_bytes,
            ticket.nonce,
            ticket.not_after_ms,
        )
        self.rounds[ticket.round_id] = here
        return here

    def give(self, order_id: int, order: Order, bundle: bytes = b"", **changes: Any) -> Ticket:
        """The ticket of an order to device-1."""
        body, until = wire.order_to_bytes(order), now_ms() + 60_000
        self.orders[order_id] = (body, until)
        self.blobs[hashlib.sha256(bundle).digest()] = bundle
        asks = {"kind": Kind.INVOKE, "run_id": "order", "task_digest": hashlib.sha256(body).digest()}
        asks |= {"bundle_digest": hashlib.sha256(bundle).digest(), "model_digest": bytes(32)}
        return self.fleet.ticket("device-1", order_id, self.fleet.task(), **(asks | changes))

    def start(self, port: int = 0) -> int:
        server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        fleet_pb2_grpc.add_FleetServicer_to_server(self, server)
        rounds_pb2_grpc.add_RoundsServicer_to_server(self, server)
        pair = self.fleet.authority.pair(identity.Role.AGGREGATOR, "main")
        credentials = grpc.ssl_server_credentials([pair], self.fleet.authority.pem, require_client_auth=True)
        self.port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
        server.start()
        self._server = server
        return self.port

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    # -- the services

    def CheckIn(self, request: Any, context: Any) -> rounds_pb2.CheckInReply:
        with self._call("check_in", context):
            here = self._round(request.round_id)
            if here.nonce != request.nonce:
                raise PeerError(Code.NOT_IN_COHORT)
            return wire.check_in_reply_to_pb(
                Offer(here.task, here.deadline_at_ms, Encoding.FLOAT32, here.report_bytes, self._now())
            )

    def FetchBlob(self, request: Any, context: Any) -> Iterator[fleet_pb2.BlobChunk]:
        with self._call("fetch", context):
            blob = self.blobs.get(request.digest)
            if blob is None:
                raise PeerError(Code.UNKNOWN_BLOB)
            total = len(blob)
            for at in range(request.offset, total, PIECE):
                self.before(f"chunk {at // PIECE}")
                yield fleet_pb2.BlobChunk(
                    data=blob[at : at + PIECE], total_bytes=total if at == request.offset else 0
                )

    def BeginReport(self, request: Any, context: Any) -> rounds_pb2.ReportOffset:
        with self._call("begin_report", context):
            header = wire.report_header_from_pb(request)
            here = self._round(header.round_id)
            if here.header is not None and here.header != header:
                raise PeerError(Code.CONFLICTING_REPEAT)
            here.header = header
            if header.length_bytes == 0 and not here.accepted:
                here.accepted = 1
            return rounds_pb2.ReportOffset(offset=len(here.data), complete=here.accepted > 0)

    def PutReport(self, request_iterator: Any, context: Any) -> rounds_pb2.ReportReceipt:
        with self._call("put_report", context):
            first = next(request_iterator)
            here = self._round(first.round_id)
            if here.header is None or first.offset != len(here.data):
                raise PeerError(Code.WRONG_OFFSET, retry_after_ms=1)
            here.data += first.data
            self.before("first_chunk")
            for chunk in request_iterator:
                here.data += chunk.data
            if hashlib.sha256(here.data).digest() != here.header.sha256:
                raise PeerError(Code.WRONG_DIGEST)
            here.accepted += 1
            self.before("report_accepted")
            return rounds_pb2.ReportReceipt(accepted=True, now_ms=self._now())

    def PutMetrics(self, request: Any, context: Any) -> rounds_pb2.MetricsReceipt:
        with self._call("put_metrics", context):
            self.metrics.append(wire.metrics_from_pb(request))
            return rounds_pb2.MetricsReceipt()

    def ReportStatus(self, request: Any, context: Any) -> fleet_pb2.StatusReply:
        with self._call("report_status", context):
            self.statuses.append(wire.status_from_pb(request))
            return fleet_pb2.StatusReply(now_ms=self._now())

    def GetOrder(self, request: Any, context: Any) -> fleet_pb2.OrderReply:
        with self._call("get_order", context):
            order, until = self.orders[request.order_id]
            return fleet_pb2.OrderReply(order=order, deadline_at_ms=until, now_ms=self._now())

    def PutOrderResult(self, request: Any, context: Any) -> fleet_pb2.OrderReceipt:
        with self._call("put_order_result", context):
            self.results.append(wire.order_result_from_pb(request))
            self.before("result_taken")
            return fleet_pb2.OrderReceipt(now_ms=self._now())

    def Renew(self, request: Any, context: Any) -> fleet_pb2.RenewReply:
        with self._call("renew", context):
            self.renew_requests.append(request)
            key = identity.check_csr(request.csr_der)
            return self.renewal(self.fleet.enrollment("device-1", key, Endpoints((), (), ())))

    def renewal(self, new: Enrollment) -> fleet_pb2.RenewReply:
        return fleet_pb2.RenewReply(
            chain_der=new.chain_der,
            policy=wire.policy_to_pb(self.policy or new.policy),
            now_ms=self._now(),
            **self.renewed,
        )

    def _now(self) -> int:
        return now_ms() + self.clock_ahead_ms

    def _round(self, round_id: int) -> RoundHere:
        here = self.rounds.get(round_id)
        if here is None:
            raise PeerError(Code.UNKNOWN_ROUND)
        if here.refusal is not None:
            raise here.refusal
        return here

    def _call(self, name: str, context: Any) -> Refusing:
        with self.lock:
            self.calls.append(name)
            self.peers.add(context.peer())
        refusing = Refusing(context)
        with refusing:
            self.before(name)
        return refusing


class Refusing:
    """Turns a `PeerError` into the gRPC refusal of the protocol."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, PeerError):
            self._context.set_trailing_metadata((("fedless-error-bin", wire.error_to_bytes(error)),))
            self._context.abort(grpc.StatusCode[error.code.status], error.code.sentence)
