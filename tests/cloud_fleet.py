"""An aggregator for cloud functions' tests: the fake of `edge_fleet`, which also exchanges one-use claims."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from cryptography.hazmat.primitives.serialization import Encoding as Form

from fedless.protocol import identity, signed, wire
from fedless.protocol.claim import Claim, authority_digest, secret_text
from fedless.protocol.cloud import Deployment, deployment_to_json
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Endpoints, Enrollment, Mode, PolicyMessage, Task, Ticket
from fedless.v1 import enrollment_pb2, enrollment_pb2_grpc
from tests.edge_fleet import PUBLISHER_KEY, TICKET_KEY, FakeAggregator, Fleet, Refusing, now_ms, wake_bytes


@dataclass
class GivenClaim:
    client_id: str
    expires_at_ms: int
    public_key: bytes = b""


@dataclass
class CloudFleet:
    """A fleet whose clients are functions; each wake-up is a round of its own."""

    folder: Path
    fleet: Fleet = field(default_factory=Fleet)
    claims: dict[str, GivenClaim] = field(default_factory=dict)
    rounds: int = 0

    def __post_init__(self) -> None:
        self.aggregator = FakeAggregator(self.fleet)
        self.aggregator.start()
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        enrollment_pb2_grpc.add_EnrollmentServicer_to_server(_Enroller(self), self._server)
        pair = self.fleet.authority.pair(identity.Role.AGGREGATOR, "main")
        self.port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()
        self.aggregator.stop()

    def deployment(self, client_id: str) -> str:
        """As `fedless fleet add-function` writes it, with random images as data."""
        path = self.folder / "examples.npz"
        if not path.exists():
            random = np.random.default_rng(2)
            np.savez(
                path, x=random.random((40, 28, 28, 1), np.float32), y=random.integers(0, 10, 40, np.int32)
            )
        return deployment_to_json(
            Deployment(
                fleet=self.fleet.name,
                client_id=client_id,
                authority_pem=self.fleet.authority.pem.decode(),
                ticket_keys=(signed.signing_key(TICKET_KEY),),
                publisher_keys=(signed.signing_key(PUBLISHER_KEY),),
                policy=PolicyMessage(modes=(Mode.PLAIN,)),
                data={"default": {"path": str(path)}},
            )
        )

    def open_round(self, client_id: str, task: Task | None = None, **changes: Any) -> Ticket:
        self.rounds += 1
        task = task or self.fleet.task()
        ticket = self.fleet.ticket(client_id, self.rounds, task, **changes)
        self.aggregator.open(ticket, task)
        return ticket

    def reported(self, round_id: int) -> bool:
        return self.aggregator.rounds[round_id].accepted == 1

    def told(self, count: int) -> bool:
        """Whether metrics of so many invocations came: each is the last word of one."""
        return len(self.aggregator.metrics) >= count

    async def claim(self, client_id: str, expires_at_ms: int = 0) -> str:
        secret = secret_text(secrets.token_bytes(16))
        self.claims[secret] = GivenClaim(client_id, expires_at_ms or now_ms() + 60_000)
        return Claim(f"127.0.0.1:{self.port}", authority_digest(self.fleet.authority.der), secret).text

    wake_bytes = staticmethod(wake_bytes)

    def enroll(self, secret: str, csr_der: bytes) -> Enrollment:
        claim, key = self.claims.get(secret), identity.check_csr(csr_der)
        if claim is None:
            raise PeerError(Code.CLAIM_UNKNOWN)
        if claim.expires_at_ms <= now_ms():
            raise PeerError(Code.CLAIM_EXPIRED)
        if claim.public_key not in (b"", identity.public_der(key)):
            raise PeerError(Code.CLAIM_USED)
        claim.public_key = identity.public_der(key)
        leaf = self.fleet.authority.issue(identity.Role.FUNCTION, claim.client_id, key)
        chain = (leaf.public_bytes(Form.DER), self.fleet.authority.der)
        places = Endpoints(
            (f"127.0.0.1:{self.aggregator.port}",), ("127.0.0.1:1",), (f"127.0.0.1:{self.port}",)
        )
        return Enrollment(self.fleet.name, claim.client_id, chain, places, (), (), PolicyMessage(), now_ms())


class _Enroller(enrollment_pb2_grpc.EnrollmentServicer):
    def __init__(self, fleet: CloudFleet) -> None:
        self.fleet = fleet

    def Enroll(self, request: Any, context: Any) -> enrollment_pb2.EnrollReply:
        with Refusing(context):
            asked = wire.enroll_request_from_pb(request)
            return wire.enrollment_to_pb(self.fleet.enroll(asked.secret, asked.csr_der))
