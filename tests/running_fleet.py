"""A fleet's service as a real process for tests, and clients with real certificates."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from aggregator.authority import Authority
from aggregator.founding import Ports, found_fleet
from fedless.console.link import Link, open_link
from fedless.protocol import identity, wire
from fedless.protocol.claim import parse_claim
from fedless.protocol.errors import PeerError
from fedless.v1 import enrollment_pb2, enrollment_pb2_grpc, fleet_pb2_grpc, operator_pb2_grpc, rounds_pb2_grpc

ROOT = Path(__file__).parents[1]
FEDLESS = (sys.executable, "-c", "from fedless.console.main import main; main()")
START_S, STOP_S = 90.0, 30.0


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def fedless(
    *arguments: str | Path, folder: Path = ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return subprocess.run(
        [*FEDLESS, *map(str, arguments)], cwd=folder, check=False, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **(environment or {})},
    )  # fmt: skip


@dataclass(frozen=True)
class Credentials:
    """A key and a chain, PEM."""

    key: bytes
    chain: bytes

    @classmethod
    def issued(cls, authority: Authority, name: identity.Name, at_ms: int, days: int = 1) -> Credentials:
        key = identity.new_key()
        return cls(
            identity.key_pem(key), authority.issue(name, identity.make_csr(key), at_ms, days).chain_pem
        )

    @classmethod
    def read(cls, folder: Path) -> Credentials:
        return cls((folder / "cert.key").read_bytes(), (folder / "cert.pem").read_bytes())


class RunningFleet:
    """`fedless aggregator serve` on free ports; `stop` or `kill` it, and start it again."""

    def __init__(
        self,
        folder: Path,
        name: str = "home",
        ports: Ports | None = None,
        host: str = "127.0.0.1",
        authority: Authority | None = None,
    ) -> None:
        """`authority`: that of a fleet which is founded in the folder already."""
        self.folder = folder
        self.name = name
        self.authority = authority or found_fleet(folder, name, host, ports or Ports(0, 0, 0), now_ms())
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "log"

    def start(self, **environment: str) -> None:
        file = self.folder / "state" / "endpoints.json"
        file.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*FEDLESS, "aggregator", "serve", "--fleet", str(self.folder)], cwd=ROOT, stderr=log,
                env={**os.environ, "FEDLESS__LOG__LEVEL": "debug", **environment},
            )  # fmt: skip
        try:
            wait_until(lambda: file.exists() or self.ended(), START_S)
            assert file.exists(), self.log.read_text()
        except AssertionError:
            self.process.kill()
            self.process.wait(STOP_S)
            raise
        self.endpoints: dict[str, list[str]] = json.loads(file.read_text())

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_S)

    def close(self) -> None:
        if not self.ended():
            self.stop(signal.SIGTERM)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def operator(self) -> Link:
        return open_link(self.folder)

    def claim(self, client_id: str, valid_ms: int = 0) -> str:
        with self.operator() as operator:
            return operator.claims(1, valid_ms, [client_id], {})[0].claim

    def enroll(self, secret: str, csr_der: bytes) -> enrollment_pb2.EnrollReply:
        """Calls Enroll as a device does, with server TLS only; raises the refusal."""
        credentials = grpc.ssl_channel_credentials(self.authority.pem)
        with grpc.secure_channel(self.endpoints["enrollment"][0], credentials, self._options()) as channel:
            stub = enrollment_pb2_grpc.EnrollmentStub(channel)
            request = enrollment_pb2.EnrollRequest(secret=secret, csr_der=csr_der)
            reply: enrollment_pb2.EnrollReply = refusals(lambda: stub.Enroll(request, timeout=10))
            return reply

    def device(self, client_id: str) -> Credentials:
        """A newly enrolled device."""
        key = identity.new_key()
        reply = self.enroll(parse_claim(self.claim(client_id)).secret, identity.make_csr(key))
        from aggregator.authority import der_to_pem

        return Credentials(identity.key_pem(key), b"".join(der_to_pem(der) for der in reply.chain_der))

    def calls(self, who: Credentials | None) -> Calls:
        """The services on the fleet port as seen with these credentials."""
        pair = (who.key, who.chain) if who else (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, *pair)
        return Calls(grpc.secure_channel(self.endpoints["operator"][0], credentials, self._options()))

    def _options(self) -> tuple[tuple[str, str], ...]:
        return (("grpc.ssl_target_name_override", identity.server_name(self.name)),)


class Calls:
    """Stubs on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.fleet = fleet_pb2_grpc.FleetStub(channel)
        self.rounds = rounds_pb2_grpc.RoundsStub(channel)
        self.operator = operator_pb2_grpc.OperatorStub(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()


def refusals(call: Callable[[], Any]) -> Any:
    """The call's result; a refusal with details is raised as the `PeerError` that it was."""
    try:
        return call()
    except grpc.RpcError as error:
        trailing: Any = error.trailing_metadata()
        for key, value in trailing or ():
            if key == "fedless-error-bin":
                raise wire.error_from_bytes(value) from error
        raise


def refusal(call: Callable[[], Any]) -> PeerError:
    """The refusal that a call must meet."""
    try:
        refusals(call)
    except PeerError as error:
        return error
    message = "the call was not refused"
    raise AssertionError(message)
