"""Who comes back to the broker hears again what it has not answered.

A wake-up that the broker took counts as delivered, but a broker that is killed forgets the newest ones, and an agent
lets go of those that it had not passed on when its connection ended. So whoever comes to the broker and has not checked
in to an open round a moment later is woken for it again, with the same ticket: twice is harmless, never is a round that
waits for its deadline. Called by `main` with each client that the status topics say is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial

import structlog

from aggregator.interfaces import Clock, Sleep
from aggregator.late import ticket_terms
from aggregator.live import tell_failure
from aggregator.store import rounds as store
from aggregator.store.engine import Database
from aggregator.tickets import Tickets
from fedless.protocol.errors import LocalError

SILENT_MS = 5_000
"""So long a client that came has for checking in: most were woken by what the broker kept for them."""
_log = structlog.get_logger("returns")


class Returns:
    """Of one fleet."""

    def __init__(self, database: Database, tickets: Tickets, *, clock: Clock, sleep: Sleep) -> None:
        self._database = database
        self._tickets = tickets
        self._clock = clock
        self._sleep = sleep
        self._came: dict[str, int] = {}
        self._looking: asyncio.Task[None] | None = None
        self._wakes: set[asyncio.Task[None]] = set()

    def came(self, client_id: str) -> None:
        """A client is at the broker; in the event loop."""
        self._came[client_id] = self._clock()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._look())

    async def close(self) -> None:
        """At the service's end."""
        tasks = [*self._wakes, *([] if self._looking is None else [self._looking])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self) -> None:
        """As long as somebody came lately: all who came at about the same time are looked up together."""
        while self._came:
            await self._sleep(SILENT_MS)
            until = self._clock() - SILENT_MS
            due = {client_id for client_id, at_ms in self._came.items() if at_ms <= until}
            try:
                silent = await self._database.run(partial(store.silent, client_ids=due))
            except LocalError as error:  # the database is away: they are looked up when it is back
                _log.warning("not_looked_up", clients=len(due), code=error.code.value)
                continue
            self._came = {
                name: at_ms for name, at_ms in self._came.items() if name not in due or at_ms > until
            }
            for terms, member in silent:
                _log.info("woken_again", round=terms.round_id, client=member.client_id)
                self._wake(self._tickets.wake(ticket_terms(terms, member), member.client_id, member.nonce))

    def _wake(self, sending: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(sending)
        self._wakes.add(task)
        task.add_done_callback(self._wakes.discard)
        task.add_done_callback(tell_failure)
