"""`fedless broker config` with the real mosquitto: who gets in, by MQTT and by websockets, and who no longer does."""

from __future__ import annotations

import gc
import queue
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from aggregator import mosquitto
from aggregator.founding import Ports, found_fleet
from fedless.protocol import identity
from tests.production_broker import PROGRAM, ProductionBroker, free_port
from tests.running_fleet import Credentials, RunningFleet, fedless, now_ms, wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(PROGRAM is None, reason="needs mosquitto: apt-get install mosquitto"),
]
WAIT_S = 15.0
Transport = Literal["tcp", "websockets"]
BOTH = pytest.mark.parametrize("transport", ["tcp", "websockets"])


def test_the_deployed_configuration_is_current() -> None:
    sample = Path(__file__).parents[2] / "deploy" / "mosquitto" / "mosquitto.conf"
    assert sample.read_text() == mosquitto.configuration()


class _Context(ssl.SSLContext):
    def wrap_socket(self, sock: Any, *_: Any, **options: Any) -> ssl.SSLSocket:
        return super().wrap_socket(sock, **options | {"server_hostname": identity.server_name("home")})


class Production(ProductionBroker):
    """With credentials for who wants to get in, and clients."""

    def __init__(self, folder: Path, *, websockets: bool = False) -> None:
        super().__init__(folder, websockets=websockets)
        self.serials: dict[str, str] = {}

    def gets_in(self, client_id: str, who: Credentials | None, transport: Transport) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the broker is gone"
        with self.client(client_id, who, transport) as client:
            return client.gets_in()

    def credentials(self, client_id: str, role: identity.Role = identity.Role.DEVICE) -> Credentials:
        key = identity.new_key()
        name = identity.Name("home", role, client_id)
        issued = self.authority.issue(name, identity.make_csr(key), now_ms(), 1)
        self.serials[client_id] = issued.serial
        return Credentials(identity.key_pem(key), issued.chain_pem)

    def client(self, client_id: str, who: Credentials | None, transport: Transport) -> Client:
        return Client(self, client_id, who, transport)


class Client:
    """An MQTT client over TLS, plain or in websockets."""

    def __init__(
        self, world: Production, client_id: str, who: Credentials | None, transport: Transport
    ) -> None:
        self.port = world.ports[transport]
        self.inbox: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.said: queue.Queue[bool] = queue.Queue()
        self.done: queue.Queue[None] = queue.Queue()
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=mqtt.MQTTv5, transport=transport,
            reconnect_on_failure=False,
        )  # fmt: skip
        context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=world.authority.pem.decode())
        if who is not None:
            chain, key = world.folder / f"{client_id}.pem", world.folder / f"{client_id}.key"
            chain.write_bytes(who.chain)
            key.write_bytes(who.key)
            context.load_cert_chain(chain, key)
        self.client.tls_set_context(context)
        self.client.on_connect = lambda *a: self.said.put(not a[3].is_failure)
        self.client.on_disconnect = lambda *_: self.said.put(False)
        self.client.on_message = lambda _c, _u, m: self.inbox.put((m.topic, bytes(m.payload)))
        self.client.on_subscribe = lambda *_: self.done.put(None)
        self.client.on_publish = lambda *_: self.done.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def gets_in(self) -> bool:
        """Whether the broker takes it: refused in the handshake, or right behind it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # paho forgets the socket of a refused handshake
            connected = self._connects()
            gc.collect()
        if not connected:
            return False
        self.client.loop_start()
        return self.said.get(timeout=WAIT_S)

    def _connects(self) -> bool:
        try:
            self.client.connect("127.0.0.1", self.port)
        except OSError:
            return False
        return True

    def subscribe(self, *topics: str) -> None:
        self.client.subscribe([(topic, SubscribeOptions(qos=1)) for topic in topics])
        self.done.get(timeout=WAIT_S)

    def publish(self, topic: str, payload: bytes) -> None:
        self.client.publish(topic, payload, qos=1)
        self.done.get(timeout=WAIT_S)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    made = Production(tmp_path_factory.mktemp("broker"), websockets=True)
    made.start()
    yield made
    made.stop()


@BOTH
def test_device_reads_its_own_wake_ups_only(world: Production, transport: Transport) -> None:
    service = Credentials.read(world.home / "aggregator")
    with (
        world.client("dev-1", world.credentials("dev-1"), transport) as device,
        world.client("@aggregator", service, "tcp") as aggregator,
    ):
        assert device.gets_in()
        assert aggregator.gets_in()
        device.subscribe(
            "fedless/v1/home/wake/dev-1", "fedless/v1/home/wake/dev-2", "fedless/v1/home/announce"
        )
        aggregator.publish("fedless/v1/home/wake/dev-2", b"not yours")
        aggregator.publish("fedless/v1/home/wake/dev-1", b"yours")
        assert device.inbox.get(timeout=WAIT_S) == ("fedless/v1/home/wake/dev-1", b"yours")
        assert device.inbox.empty()


@BOTH
def test_nobody_without_a_certificate_of_this_fleet_gets_in(world: Production, transport: Transport) -> None:
    stranger = found_fleet(world.folder / f"foreign-{transport}", "home", "127.0.0.1", Ports(), now_ms())
    key = identity.new_key()
    name = identity.Name("home", identity.Role.DEVICE, "dev-1")
    issued = stranger.issue(name, identity.make_csr(key), now_ms(), 1)
    foreign = Credentials(identity.key_pem(key), issued.chain_pem)
    for who in (None, foreign):
        assert not world.gets_in("dev-1", who, transport)
    assert world.gets_in("dev-1", world.credentials("dev-1"), transport)


def test_revoked_device_is_out_after_a_reload_and_after_a_restart(tmp_path: Path) -> None:
    """Without websockets: there mosquitto 2.0.11 forgets the list at a start and crashes at a reload."""
    world = Production(tmp_path)
    world.start()
    try:
        gone, stays = world.credentials("dev-1"), world.credentials("dev-2")
        assert world.gets_in("dev-1", gone, "tcp")
        crl = world.authority.revocation_list([world.serials["dev-1"]], now_ms())
        (world.out / "crl.pem").write_bytes(crl)
        world.reload()
        wait_until(lambda: not world.gets_in("dev-1", gone, "tcp"))
        assert world.gets_in("dev-2", stays, "tcp")
        world.stop()
        world.start()
        assert not world.gets_in("dev-1", gone, "tcp")
        assert world.gets_in("dev-2", stays, "tcp")
    finally:
        world.stop()


def test_broker_of_the_image_takes_a_new_list_by_itself(tmp_path: Path) -> None:
    """deploy/docker/broker.sh; Debian's mosquitto, as root, so without the container around it."""
    world = Production(tmp_path)
    revoked = tmp_path / "revoked.pem"
    world.start("bash", Path(__file__).parents[2] / "deploy/docker/broker.sh", world.out, revoked)
    try:
        gone, stays = world.credentials("dev-1"), world.credentials("dev-2")
        assert world.gets_in("dev-1", gone, "tcp")
        revoked.write_bytes(world.authority.revocation_list([world.serials["dev-1"]], now_ms()))
        wait_until(lambda: not world.gets_in("dev-1", gone, "tcp"))
        assert world.gets_in("dev-2", stays, "tcp")
    finally:
        world.stop()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", world.ports["tcp"]))


def test_wake_ups_wait_for_a_device_over_a_restart(world: Production) -> None:
    service = Credentials.read(world.home / "aggregator")
    who = world.credentials("dev-1")

    def connect() -> Client:
        device = world.client("dev-1", who, "tcp")
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        device.client.connect("127.0.0.1", device.port, clean_start=False, properties=properties)
        device.client.loop_start()
        assert device.said.get(timeout=WAIT_S)
        return device

    with connect() as device:
        device.subscribe("fedless/v1/home/wake/dev-1")
    with world.client("@aggregator", service, "tcp") as aggregator:
        assert aggregator.gets_in()
        aggregator.publish("fedless/v1/home/wake/dev-1", b"later")
    world.stop()
    world.start()
    with connect() as device:
        assert device.inbox.get(timeout=WAIT_S) == ("fedless/v1/home/wake/dev-1", b"later")


def test_service_uses_it_and_keeps_its_list_of_revoked_certificates(
    tmp_path: Path,
) -> None:
    """The whole way: an external broker, a device that joins, its revocation, the list, the reload."""
    world = Production(tmp_path)
    world.start()
    fleet = RunningFleet(world.home, authority=world.authority)
    environment = {
        "FEDLESS__BROKER__KIND": "external",
        "FEDLESS__BROKER__ADDRESSES": f'["127.0.0.1:{world.ports["tcp"]}"]',
        "FEDLESS__LISTEN__FLEET_PORT": str(free_port()),
        "FEDLESS__LISTEN__ENROLLMENT_PORT": str(free_port()),
    }
    try:
        fleet.start(**environment)
        who = fleet.device("dev-1")
        assert world.gets_in("dev-1", who, "tcp")
        done = fedless("fleet", "revoke", "dev-1", "--fleet", world.home)
        assert done.returncode == 0, done.stderr
        kept = (world.home / "state" / "crl.pem").read_bytes()
        asked = fedless("broker", "crl", tmp_path / "crl.pem", "--fleet", world.home)
        assert asked.returncode == 0, asked.stderr
        assert b"X509 CRL" in (tmp_path / "crl.pem").read_bytes()
        (world.out / "crl.pem").write_bytes(kept)
        world.reload()
        wait_until(lambda: not world.gets_in("dev-1", who, "tcp"))
    finally:
        fleet.close()
        world.stop()


def test_paths_that_mosquitto_would_cut_are_refused(tmp_path: Path) -> None:
    found_fleet(tmp_path / "home", "home", "127.0.0.1", Ports(7443, 7444, 8883), now_ms())
    done = fedless("broker", "config", tmp_path / "two words", "--fleet", tmp_path / "home")
    assert done.returncode == 1
    assert "without spaces" in done.stderr
    assert not (tmp_path / "two words").exists()
