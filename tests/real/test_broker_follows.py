"""The broker and the waker while the fleet's authority changes."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from aggregator.authority import Authority
from aggregator.founding import renew_server
from aggregator.wake import MqttAccess
from fedless.protocol import identity
from tests.real.test_broker import Device, World, connected, eventually, files_of, in_a_minute, until
from tests.running_fleet import Credentials, now_ms

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("mosquitto") is None, reason="needs mosquitto: apt-get install mosquitto"
    ),
]


async def test_broker_and_waker_follow_a_new_authority(tmp_path: Path) -> None:
    """Neither is made anew by the service: who was certified by the new one is let in, and what waited is kept."""
    world = World(tmp_path)
    await world.start()
    try:
        old, sleeper = world.authority, world.device("sleeper", clean=False)
        with connected(sleeper):
            sleeper.subscribe("fedless/v1/home/wake/sleeper")
        new = Authority.create("home", now_ms(), follows=True)
        world.authority = new
        stranger = world.device("dev-1")
        stranger.believe(old.pem)
        assert await asyncio.to_thread(stranger.refused)
        assert (await world.waker.wake("sleeper", b"wake up", in_a_minute())).delivered

        both = old.pem + new.pem
        home = world.home
        world.waker.follow(
            MqttAccess(
                "home", (f"127.0.0.1:{world.broker.port}",), both,
                home / "aggregator" / "cert.pem", home / "aggregator" / "cert.key",
            )
        )  # fmt: skip
        lists = b"".join(authority.revocation_list([], now_ms()) for authority in (old, new))
        first = world.broker.port
        await world.broker.follow(old.pem, lists)
        assert world.waker.is_connected(), "nothing new disturbs nobody"
        renew_server(home / "broker", new, identity.Role.BROKER, now_ms())
        await world.broker.follow(both, lists)
        assert world.broker.port == first
        await until(world.waker.is_connected)
        newcomer = world.device("dev-2")
        awake = Device(world, "sleeper", Credentials(*files_of(world, "sleeper")), clean=False)
        for device in (newcomer, awake):
            device.believe(both)
        with connected(newcomer, awake):
            assert await eventually(awake) == ("fedless/v1/home/wake/sleeper", b"wake up")
            newcomer.subscribe("fedless/v1/home/wake/dev-2")
            assert (await world.waker.wake("dev-2", b"you, too", in_a_minute())).delivered
            assert await eventually(newcomer) == ("fedless/v1/home/wake/dev-2", b"you, too")
    finally:
        await world.waker.stop()
        await world.broker.stop()
