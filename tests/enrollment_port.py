"""An aggregator's real enrollment port with a fake authority behind it, for tests of joining."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from aggregator.front import Front
from fedless.protocol import identity, wire
from fedless.protocol.claim import Claim, authority_digest, secret_text
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Endpoints
from fedless.v1 import enrollment_pb2_grpc
from tests.edge_fleet import Fleet, Refusing

SECRET = secret_text(bytes(range(16)))


class EnrollmentPort(enrollment_pb2_grpc.EnrollmentServicer):
    """The port of a claim: `/ca.pem` and Enroll. The claim is bound to the first key that uses it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.served_pem = fleet.authority.pem
        self.issued: dict[bytes, Any] = {}
        self.forge: Callable[[Any], Any] = lambda reply: reply
        self._loop = asyncio.new_event_loop()
        self._server = grpc.server(ThreadPoolExecutor(2))
        self.port = 0

    def start(self) -> None:
        enrollment_pb2_grpc.add_EnrollmentServicer_to_server(self, self._server)
        pair = self.fleet.authority.pair(identity.Role.AGGREGATOR, "main")
        inner = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        self._server.start()
        self._front = Front(self.served_pem, 50, 50)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(self._front.start("127.0.0.1", 0, inner), self._loop)
        self.port = started.result(10)

    def stop(self) -> None:
        self._server.stop(0).wait()
        asyncio.run_coroutine_threadsafe(self._front.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def claim(self) -> str:
        return Claim(f"127.0.0.1:{self.port}", authority_digest(self.fleet.authority.der), SECRET).text

    def Enroll(self, request: Any, context: Any) -> Any:
        with Refusing(context):
            asked = wire.enroll_request_from_pb(request)
            if asked.secret != SECRET:
                raise PeerError(Code.CLAIM_UNKNOWN)
            key = identity.check_csr(asked.csr_der)
            public = identity.public_der(key)
            if self.issued and public not in self.issued:
                raise PeerError(Code.CLAIM_USED)
            if public not in self.issued:
                places = Endpoints(("127.0.0.1:7443",), ("127.0.0.1:8883",), (f"127.0.0.1:{self.port}",))
                self.issued[public] = self.fleet.enrollment("device-1", key, places)
            return wire.enrollment_to_pb(self.forge(self.issued[public]))
