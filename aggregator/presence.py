"""Who is at the broker: what the devices' status topics say, written down; whoever was revoked is cut off.

`online` hears of everybody else who has come.

Called by `main`, in the event loop, with each message that the waker hears.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sqlalchemy import Connection

from aggregator.eviction import Evictions
from aggregator.interfaces import Clock
from aggregator.store import fleet as store
from aggregator.store.engine import Database


class Presence:
    """Of one fleet."""

    def __init__(
        self, database: Database, evictions: Evictions, clock: Clock, online: Callable[[str], None]
    ) -> None:
        self._database = database
        self._evictions = evictions
        self._clock = clock
        self._online = online
        self._pending: set[asyncio.Task[None]] = set()

    def heard(self, client_id: str, online: bool) -> None:  # noqa: FBT001 - called by position, from `MqttWaker`
        """A client is there, or is gone."""
        task = asyncio.ensure_future(self._note(client_id, online=online))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def _note(self, client_id: str, *, online: bool) -> None:
        def work(connection: Connection) -> str | None:
            state = store.state_of(connection, client_id)
            if state in store.PRESENT:
                store.saw(connection, client_id, self._clock(), online=online)
            return state

        state = await self._database.run(work)
        if online and state in store.GONE:
            self._evictions.begin(client_id)
        elif online:
            self._online(client_id)
