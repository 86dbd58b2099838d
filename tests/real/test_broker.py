"""The generated mosquitto and the waker over real MQTT: who may read, write and connect, and what survives."""

from __future__ import annotations

import asyncio
import os
import queue
import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from aggregator.authority import Authority
from aggregator.broker import Broker, BrokerFiles, _account, _home
from aggregator.founding import Ports, found_fleet
from aggregator.wake import NO_SESSION, MqttAccess, MqttWaker
from fedless.protocol import identity
from fedless.protocol.errors import Code, LocalError
from tests.running_fleet import Credentials, RunningFleet, now_ms, wait_until

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]
WAIT_S = 15.0
NOT_AUTHORIZED = 0x87


class _Context(ssl.SSLContext):
    def wrap_socket(self, sock: Any, *_: Any, **options: Any) -> ssl.SSLSocket:
        return super().wrap_socket(sock, **options | {"server_hostname": identity.server_name("home")})


class Device:
    """An MQTT client with a certificate; what it gets is in `inbox`."""

    def __init__(
        self,
        world: World,
        client_id: str,
        who: Credentials | None,
        *,
        connect_as: str = "",
        clean: bool = True,
    ) -> None:
        self.inbox: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.connected: queue.Queue[bool] = queue.Queue()
        self.granted: queue.Queue[None] = queue.Queue()
        self.published: queue.Queue[int] = queue.Queue()
        self.world, self.clean = world, clean
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            connect_as or client_id,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        context = self.context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        self.believe(world.authority.pem)
        if who is not None:
            chain, key = world.folder / f"{client_id}.pem", world.folder / f"{client_id}.key"
            chain.write_bytes(who.chain)
            key.write_bytes(who.key)
            context.load_cert_chain(chain, key)
        self.client.tls_set_context(context)
        self.client.on_connect = lambda *a: self.connected.put(not a[3].is_failure)
        self.client.on_message = lambda _c, _u, m: self.inbox.put((m.topic, bytes(m.payload)))
        self.client.on_subscribe = lambda *_: self.granted.put(None)
        self.client.on_publish = lambda *a: self.published.put(a[3].value)

    def believe(self, authority_pem: bytes) -> None:
        self.context.load_verify_locations(cadata=authority_pem.decode())

    def connect(self) -> Device:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 0 if self.clean else 3600
        self.client.connect(
            "127.0.0.1", self.world.broker.port, 60, clean_start=self.clean, properties=properties
        )
        self.client.loop_start()
        assert self.connected.get(timeout=WAIT_S)
        return self

    def subscribe(self, topic: str) -> None:
        self.client.subscribe(topic, qos=1)
        self.granted.get(timeout=WAIT_S)

    def publish(self, topic: str, payload: bytes) -> int:
        """The reason code of the acknowledgement."""
        self.client.publish(topic, payload, qos=1)
        return self.published.get(timeout=WAIT_S)

    def get(self) -> tuple[str, bytes]:
        return self.inbox.get(timeout=WAIT_S)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def refused(self) -> bool:
        """Whether the broker does not let it in (TLS 1.3 tells a client only after its own handshake)."""
        try:
            self.client.connect("127.0.0.1", self.world.broker.port, 60, clean_start=True)
            self.client.loop_start()
            wait_until(lambda: self.client.socket() is None or not self.connected.empty())
            return self.connected.empty()
        except OSError:
            return True
        finally:
            self.client.loop_stop()


class World:
    """A broker, a waker, and an authority that makes devices."""

    def __init__(self, folder: Path, port: int = 0, authority: Authority | None = None) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.authority = authority or found_fleet(self.home, "home", "127.0.0.1", Ports(0, 0, 0), now_ms())
        files = BrokerFiles(
            self.authority.pem, self.home / "broker" / "cert.pem", self.home / "broker" / "cert.key"
        )
        self.broker = Broker(
            "home", self.home / "state", files, address="127.0.0.1", port=port, max_queued=100
        )
        self.presence: list[tuple[str, bool]] = []
        self.serials: dict[str, str] = {}

    async def start(self) -> None:
        port = await self.broker.start(self.authority.revocation_list([], now_ms()))
        access = MqttAccess(
            "home", (f"127.0.0.1:{port}",), self.authority.pem,
            self.home / "aggregator" / "cert.pem", self.home / "aggregator" / "cert.key",
        )  # fmt: skip
        self.waker = MqttWaker(access, now_ms, lambda *heard: self.presence.append(heard))
        assert await self.waker.start()

    def device(
        self,
        client_id: str,
        *,
        role: identity.Role = identity.Role.DEVICE,
        connect_as: str = "",
        clean: bool = True,
    ) -> Device:
        key = identity.new_key()
        issued = self.authority.issue(
            identity.Name("home", role, client_id), identity.make_csr(key), now_ms(), 1
        )
        self.serials[client_id] = issued.serial
        who = Credentials(identity.key_pem(key), issued.chain_pem)
        return Device(self, client_id, who, connect_as=connect_as, clean=clean)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.start()
    yield made
    await made.waker.stop()
    await made.broker.stop()


@contextmanager
def connected(*devices: Device) -> Iterator[None]:
    for device in devices:
        device.connect()
    try:
        yield
    finally:
        for device in devices:
            device.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for is another process
            await asyncio.sleep(0.01)


async def eventually(device: Device) -> tuple[str, bytes]:
    return await asyncio.to_thread(device.get)


def in_a_minute() -> int:
    return now_ms() + 60_000


async def test_wake_up_arrives(world: World) -> None:
    device = world.device("dev-1")
    with connected(device):
        device.subscribe("fedless/v1/home/wake/dev-1")
        receipt = await world.waker.wake("dev-1", b"ticket", in_a_minute())
        assert receipt.delivered
        assert await eventually(device) == ("fedless/v1/home/wake/dev-1", b"ticket")


async def test_device_cannot_read_another_devices_wake_topic(world: World) -> None:
    """A forbidden subscription is granted by mosquitto; what counts is that nothing is delivered."""
    spy, victim = world.device("spy"), world.device("victim")
    with connected(spy, victim):
        for topic in ("wake/victim", "wake/+", "wake/#", "#", "status/+", "wake/spy"):
            spy.subscribe(f"fedless/v1/home/{topic}")
        spy.subscribe("$SYS/#")
        victim.subscribe("fedless/v1/home/wake/victim")
        await world.waker.wake("victim", b"for the victim", in_a_minute())
        assert (await eventually(victim))[1] == b"for the victim"
        await world.waker.wake("spy", b"for the spy", in_a_minute())  # comes after all that was sent before
        assert await eventually(spy) == ("fedless/v1/home/wake/spy", b"for the spy")
        others = {item for item in spy.inbox.queue if item[1] != b"for the spy"}
        assert others == set()


async def test_device_writes_its_own_status_only(world: World) -> None:
    device = world.device("dev-1")
    with connected(device):
        for topic in ("status/dev-2", "wake/dev-1", "wake/dev-2", "announce", "status/dev-1/more"):
            assert device.publish(f"fedless/v1/home/{topic}", b'{"online":true}') == NOT_AUTHORIZED, topic
        assert device.publish("fedless/v1/home/status/dev-1", b'{"online":true}') == 0
        await until(lambda: world.presence)
        assert world.presence == [("dev-1", True)]


async def test_last_will_tells_that_a_device_is_gone(world: World) -> None:
    device = world.device("dev-1")
    device.client.will_set("fedless/v1/home/status/dev-1", b'{"online":false}', qos=1, retain=True)
    device.connect()
    device.publish("fedless/v1/home/status/dev-1", b'{"online":true}')
    sock = device.client.socket()
    assert isinstance(sock, ssl.SSLSocket)
    sock.shutdown(2)  # no good-bye
    await until(lambda: len(world.presence) == 2)
    device.client.loop_stop()
    assert world.presence == [("dev-1", True), ("dev-1", False)]


async def test_device_cannot_take_over_anothers_session(world: World) -> None:
    """The broker takes the client id from the certificate, so the same id in CONNECT changes nothing."""
    victim, thief = world.device("victim"), world.device("thief", connect_as="victim")
    with connected(victim):
        victim.subscribe("fedless/v1/home/wake/victim")
        with connected(thief):
            thief.subscribe("fedless/v1/home/wake/thief")
            await world.waker.wake("victim", b"still mine", in_a_minute())
            assert (await eventually(victim))[1] == b"still mine"
            assert victim.client.is_connected()


async def test_foreign_certificate_is_refused(world: World) -> None:
    foreign = Authority.create("home", now_ms())
    name = identity.Name("home", identity.Role.DEVICE, "dev-1")
    device = Device(world, "dev-1", Credentials.issued(foreign, name, now_ms()))
    assert await asyncio.to_thread(device.refused)


async def test_no_certificate_is_refused(world: World) -> None:
    assert await asyncio.to_thread(Device(world, "dev-1", None).refused)


async def test_device_named_like_the_aggregator_has_no_rights(world: World) -> None:
    """A device's common name is its id, which cannot begin with `@`; another role's id stays behind `@role-`."""
    pretender = world.device("aggregator", role=identity.Role.FUNCTION)  # CN @function-aggregator
    with connected(pretender):
        assert pretender.publish("fedless/v1/home/wake/dev-1", b"forged") == NOT_AUTHORIZED
        assert pretender.publish("fedless/v1/home/announce", b"forged") == NOT_AUTHORIZED


async def test_revoked_device_is_refused_and_others_stay(world: World) -> None:
    lost, other = world.device("lost"), world.device("other")
    with connected(other):
        other.subscribe("fedless/v1/home/wake/other")
        with connected(lost):
            pass
        world.broker.revoke(world.authority.revocation_list([world.serials["lost"]], now_ms()))
        again = Device(world, "lost", Credentials(*files_of(world, "lost")))
        while not await asyncio.to_thread(again.refused):  # until mosquitto has handled the signal
            again = Device(world, "lost", Credentials(*files_of(world, "lost")))
        await world.waker.wake("other", b"go on", in_a_minute())
        assert (await eventually(other))[1] == b"go on"
        assert other.client.is_connected()


async def test_sleeping_device_gets_the_wake_up_that_is_still_good(world: World) -> None:
    device = world.device("dev-1", clean=False)
    device.connect()
    device.subscribe("fedless/v1/home/wake/dev-1")
    device.close()
    soon = now_ms() + 1000
    assert (await world.waker.wake("dev-1", b"expires", soon)).delivered
    assert (await world.waker.wake("dev-1", b"still good", in_a_minute())).delivered
    await until(lambda: now_ms() > soon + 1500)  # expiry is counted in whole seconds
    again = Device(world, "dev-1", Credentials(*files_of(world, "dev-1")), clean=False)
    with connected(again):
        assert (await eventually(again))[1] == b"still good"
        await world.waker.wake("dev-1", b"last", in_a_minute())
        assert (await eventually(again))[1] == b"last"


async def test_wake_up_after_its_deadline_is_not_sent(world: World) -> None:
    receipt = await world.waker.wake("dev-1", b"late", now_ms() - 1)
    assert (receipt.delivered, receipt.detail) == (False, "The deadline has passed.")


async def test_announcement_waits_for_those_who_come_later(world: World) -> None:
    await world.waker.announce(b"model 7")
    device = world.device("dev-1")
    with connected(device):
        device.subscribe("fedless/v1/home/announce")
        assert await eventually(device) == ("fedless/v1/home/announce", b"model 7")


async def test_dead_broker_comes_back_and_so_does_the_waker(world: World) -> None:
    port, process = world.broker.port, world.broker._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: world.broker._process is not process)
    for _ in range(400):  # until the broker itself answers: dev-1 has no session there
        receipt = await world.waker.wake("dev-1", b"x", in_a_minute())
        if receipt.delivered or receipt.detail == NO_SESSION:
            break
        await asyncio.sleep(0.05)
    assert receipt.delivered or receipt.detail == NO_SESSION
    assert world.broker.port == port


async def test_lost_broker_is_said_in_the_receipt(world: World) -> None:
    await world.broker.stop()
    await until(lambda: not world.waker._client.is_connected())
    receipt = await world.waker.wake("dev-1", b"x", in_a_minute())
    assert (receipt.delivered, receipt.detail) == (False, "The broker is not connected.")


async def test_queue_survives_a_restart_of_the_broker(tmp_path: Path, free_port: Callable[[], int]) -> None:
    world = World(tmp_path, port=free_port())
    await world.start()
    device = world.device("dev-1", clean=False).connect()
    device.subscribe("fedless/v1/home/wake/dev-1")
    device.close()
    assert (await world.waker.wake("dev-1", b"kept", in_a_minute())).delivered
    await world.waker.stop()
    await world.broker.stop()
    restarted = World(tmp_path, port=world.broker.port, authority=world.authority)
    await restarted.start()
    try:
        again = Device(restarted, "dev-1", Credentials(*files_of(world, "dev-1")), clean=False)
        with connected(again):
            assert (await eventually(again))[1] == b"kept"
    finally:
        await restarted.waker.stop()
        await restarted.broker.stop()
        shutil.rmtree(restarted.broker._home)


async def test_broker_ends_with_a_killed_aggregator_and_the_next_one_starts(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    fleet = RunningFleet(tmp_path / "home", ports=Ports(free_port(), free_port(), free_port()))
    fleet.start()
    assert fleet.process is not None
    children = psutil.Process(fleet.process.pid).children()
    brokers = [child for child in children if "mosquitto" in child.name()]
    assert len(brokers) == 1
    fleet.stop(signal.SIGKILL)
    wait_until(lambda: not brokers[0].is_running() or brokers[0].status() == psutil.STATUS_ZOMBIE)
    fleet.start()
    assert fleet.stop() == 0
    shutil.rmtree(_home(fleet.folder / "state", _account()))


async def test_missing_mosquitto_is_a_clear_message(tmp_path: Path) -> None:
    world = World(tmp_path)
    files = BrokerFiles(world.authority.pem, tmp_path / "x", tmp_path / "y")
    broker = Broker(
        "home", tmp_path, files, address="127.0.0.1", port=0, max_queued=1, program="mosquitto-is-not-here"
    )
    with pytest.raises(LocalError) as caught:
        await broker.start(b"")
    assert caught.value.code is Code.NOT_INSTALLED
    assert "apt install mosquitto" in caught.value.fix


def files_of(world: World, client_id: str) -> tuple[bytes, bytes]:
    return (world.folder / f"{client_id}.key").read_bytes(), (world.folder / f"{client_id}.pem").read_bytes()
