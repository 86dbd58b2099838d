"""A dashboard on the store of a simulated world, with a fleet's certificates of its own."""

from __future__ import annotations

import asyncio
import http.client
from pathlib import Path

from aggregator.authority import Authority, Callers
from aggregator.web.server import Guard, Seen, Web
from fedless.protocol.identity import Name, Role
from tests.running_fleet import Credentials, now_ms
from tests.simulation.world import World, task

LOOPBACK = "127.0.0.1"


class Site:
    """A listener on a world's store; `get` asks it as a browser does."""

    def __init__(self, world: World, folder: Path) -> None:
        self.authority = Authority.create("test-fleet", now_ms())
        own = Credentials.issued(self.authority, Name("test-fleet", Role.AGGREGATOR, "aggregator"), now_ms())
        (folder / "cert.pem").write_bytes(own.chain)
        (folder / "cert.key").write_bytes(own.key)
        self.folder, self.world = folder, world
        self.callers = Callers(self.authority.der, "test-fleet")
        self.connected = True
        seen = Seen("test-fleet", world.database, now_ms, lambda: self.connected, folder)
        guard = Guard(folder / "cert.pem", folder / "cert.key", self.authority.pem, self.callers)
        self.web = Web(seen, guard)
        self.url = ""

    async def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(self.request, path, "GET", headers)

    def request(self, path: str, method: str, headers: dict[str, str]) -> tuple[int, str, str]:
        connection = http.client.HTTPConnection(LOOPBACK, int(self.url.rpartition(":")[2]), timeout=20)
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        body = reply.read().decode()
        connection.close()
        return reply.status, body, str(reply.headers)


async def finished(world: World) -> str:
    run_id = await world.start(task(rounds=2, size=4, minimum=3))
    for number in (1, 2):
        for client in range(4):
            await world.report(f"client-{client}", number)
        await world.phase(run_id, "committed", number)
    await world.ended(run_id)
    return run_id
