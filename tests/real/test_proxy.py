"""A fleet behind a real haproxy and a real nginx as TLS pass-through: who calls is still who holds the certificate.

`deploy/haproxy/haproxy.cfg` and `deploy/nginx/nginx.conf` are what runs, on other ports. `make test-proxy` installs
both and says so in FEDLESS_PROXY_TEST.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from aggregator.founding import Ports
from edge_runtime.enroll import enroll
from fedless.authoring.sign import initial_weights, pack_and_sign
from fedless.protocol import identity
from fedless.protocol.errors import Code
from fedless.v1 import fleet_pb2, rounds_pb2
from tests.devices_fleet import enrolled, online
from tests.edge_processes import Device
from tests.production_broker import ProductionBroker, free_port
from tests.running_fleet import Calls, Credentials, RunningFleet, now_ms, refusal, refusals, wait_until

PATH = "/usr/sbin:/usr/local/sbin:/usr/bin"
DEPLOY = Path(__file__).parents[2] / "deploy"
STREAM = Path("/etc/nginx/modules-enabled/50-mod-stream.conf")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("FEDLESS_PROXY_TEST" not in os.environ, reason="it takes a minute: make test-proxy"),
]
FUNCTION = Path(__file__).parents[2] / "examples" / "mnist" / "function-mlp"
INSIDE = "127.0.0.2"


class Proxied:
    """A running fleet with a proxy in front: `port` for gRPC and MQTT, `enrollment`.

    With a `broker` of its own, all that anybody is told are the proxy's two ports.
    """

    def __init__(self, folder: Path, kind: str, broker: ProductionBroker | None = None) -> None:
        self.port, self.enrollment, mqtt = free_port(), free_port(), free_port()
        self.environment = {
            "FEDLESS__LISTEN__ADDRESS": INSIDE
        }  # devices are told 127.0.0.1, where the proxy is
        if broker is None:
            self.fleet = RunningFleet(folder / "home", ports=Ports(self.port, self.enrollment, mqtt))
        else:
            self.fleet, mqtt = RunningFleet(broker.home, authority=broker.authority), broker.ports["tcp"]
            self.environment |= {
                "FEDLESS__LISTEN__FLEET_PORT": str(self.port),
                "FEDLESS__LISTEN__ENROLLMENT_PORT": str(self.enrollment),
                "FEDLESS__BROKER__KIND": "external",
                "FEDLESS__BROKER__ADDRESSES": f'["127.0.0.1:{self.port}"]',
                "FEDLESS__POLICY__MODES": '["plain"]',
            }
        self.process: subprocess.Popen[bytes] | None = None
        bind = "bind " if kind == "haproxy" else "listen "
        here = "bind 127.0.0.1:" if kind == "haproxy" else "listen 127.0.0.1:"
        places = {
            f"{bind}{':' if kind == 'haproxy' else ''}443": f"{here}{self.port}",
            f"{bind}{':' if kind == 'haproxy' else ''}7444": f"{here}{self.enrollment}",
            "192.0.2.20:443": f"{INSIDE}:{self.port}",
            "192.0.2.20:8883": f"{INSIDE}:{mqtt}",
            "192.0.2.20:7444": f"{INSIDE}:{self.enrollment}",
        }
        text = next((DEPLOY / kind).iterdir()).read_text()
        for old, new in places.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        configuration = folder / "proxy.conf"
        configuration.write_text(text)
        program = shutil.which(kind, path=PATH)
        assert program is not None
        self.command = [program, "-db", "-f", str(configuration)]
        if kind == "nginx":
            alone = f"daemon off; pid {folder}/nginx.pid;"
            self.command = [program, "-c", str(configuration), "-g", alone]

    def start(self) -> None:
        self.process = subprocess.Popen(self.command)
        wait_until(self.listens)
        self.fleet.start(**self.environment)

    def listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the proxy ended"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def calls(self, who: Credentials | None) -> Calls:
        pair = (who.key, who.chain) if who else (None, None)
        credentials = grpc.ssl_channel_credentials(self.fleet.authority.pem, *pair)
        options = (("grpc.ssl_target_name_override", identity.server_name(self.fleet.name)),)
        return Calls(grpc.secure_channel(f"127.0.0.1:{self.port}", credentials, options))

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
        self.fleet.close()


@pytest.fixture(scope="module", params=["haproxy", "nginx"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    if shutil.which(kind, path=PATH) is None or (kind == "nginx" and not STREAM.exists()):
        pytest.skip(
            f"needs {kind}: `make test-proxy`, or apt-get install haproxy nginx-light libnginx-mod-stream"
        )
    return kind


@pytest.fixture(scope="module")
def proxied(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    made = Proxied(tmp_path_factory.mktemp(kind), kind)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def device(proxied: Proxied) -> Credentials:
    return proxied.fleet.device("dev-1")


def test_device_joins_through_the_proxy(proxied: Proxied, tmp_path: Path) -> None:
    joined = enroll(tmp_path / "state", proxied.fleet.claim("dev-2"))
    assert joined.client_id == "dev-2"


def test_identity_is_that_of_the_handshake(proxied: Proxied, device: Credentials) -> None:
    with proxied.calls(device) as calls:
        request = fleet_pb2.DeviceStatus()
        assert abs(refusals(lambda: calls.fleet.ReportStatus(request, timeout=10)).now_ms - now_ms()) < 60_000
    with proxied.fleet.operator() as operator:
        seen = {client.client_id: client.last_seen_ms for client in operator.clients()}
    assert seen["dev-1"] > 0
    with proxied.calls(Credentials.read(proxied.fleet.folder / "operator")) as calls:
        assert refusal(lambda: calls.fleet.ReportStatus(request, timeout=10)).code is Code.WRONG_ROLE


def test_nobody_gets_in_without_a_certificate(proxied: Proxied) -> None:
    with proxied.calls(None) as calls, pytest.raises(grpc.RpcError) as caught:
        calls.fleet.ReportStatus(fleet_pb2.DeviceStatus(), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_refusal_of_an_upload_gets_through(proxied: Proxied, device: Credentials) -> None:
    """A stream is begun, and the service says by name why it does not want it."""
    chunks = (rounds_pb2.ReportChunk(round_id=1, data=bytes(2**20)) for _ in range(8))
    with proxied.calls(device) as calls:
        assert refusal(lambda: calls.rounds.PutReport(chunks, timeout=30)).code is Code.UNKNOWN_ROUND


def test_mqtt_shares_the_port(proxied: Proxied, device: Credentials, tmp_path: Path) -> None:
    """A client that offers no ALPN reaches the broker, which takes it by its certificate."""
    (tmp_path / "cert.pem").write_bytes(device.chain)
    (tmp_path / "cert.key").write_bytes(device.key)
    context = ssl.create_default_context(cadata=proxied.fleet.authority.pem.decode())
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "cert.key")
    name = identity.server_name("home")
    connect = bytes.fromhex("101200044d515454050200f0000005") + b"dev-1"
    with (
        socket.create_connection(("127.0.0.1", proxied.port), 10) as plain,
        context.wrap_socket(plain, server_hostname=name) as channel,
    ):
        channel.sendall(connect)
        answer = channel.recv(64)
    assert answer[0] == 0x20, "CONNACK"
    assert answer[3] == 0, "accepted"


@pytest.fixture
def apart(kind: str, tmp_path: Path) -> Iterator[Proxied]:
    """Service and broker each on their own behind the proxy, as deploy/ has them."""
    broker = ProductionBroker(tmp_path, address=INSIDE)
    made = Proxied(tmp_path, kind, broker)
    try:
        broker.start()
        made.start()
        yield made
    finally:
        made.close()
        broker.stop()


TASK = """\
name = "through-a-proxy"
function = "function"
mode = "plain"
rounds = 2

[cohort]
size = 1

[client]
max_steps = 3
"""


def test_rounds_go_through_the_proxy_from_wake_up_to_result(apart: Proxied, tmp_path: Path) -> None:
    """The agent joins, is woken, fetches, trains, delivers twice; it knows no other address than the proxy's."""
    state = enrolled(apart.fleet, tmp_path / "state", "dev-1", '[data.default]\npath = "examples.npz"\n')
    random = np.random.default_rng(1)
    images = random.random((64, 28, 28, 1), np.float32)
    np.savez(state / "examples.npz", x=images, y=random.integers(0, 10, 64, np.int32))
    known = json.loads((state / "identity" / "fleet.json").read_text())["endpoints"]
    assert known["fleet"] == known["mqtt"] == [f"127.0.0.1:{apart.port}"]
    bundle = pack_and_sign(FUNCTION, apart.fleet.folder / "publisher" / "publisher.key")
    device = Device(state)
    try:
        online(apart.fleet, device, "dev-1")
        with apart.fleet.operator() as operator:
            model = operator.put(initial_weights(FUNCTION))
            run_id = operator.start_run(TASK, operator.put(bundle), model, b"").run_id
            wait_until(lambda: operator.run(run_id).state not in ("running", "waiting"), 120)
            run = operator.run(run_id)
            assert run.state == "finished", device.told
            assert [each.reported for each in run.rounds] == [1, 1]
    finally:
        device.stop()
