"""Asks devices that are behind to renew: when the service starts those that are there, later each one that comes.

What they are behind with is `Registrar.lacks`: a list of keys or authorities that they have not followed. It is an
order like any other (`fedless function result` shows it), and at most one an hour for each device. And again
when the fleet has changed something while the service runs. Called by `main`.
"""

from __future__ import annotations

import asyncio

import structlog

from aggregator.enrollment import Registrar
from aggregator.interfaces import Clock, Random
from aggregator.orders import CLIENTS_MAX, Orders, Wish
from fedless.protocol.errors import PeerError
from fedless.protocol.messages import NONCE_BYTES, Action, Order

VALID_MS = 3_600_000
GATHER_S = 1.0
"""So long those who come are gathered for one order."""
_log = structlog.get_logger("rollout")


class Rollout:
    """Of one fleet; `begin`, and then `seen` with each device that comes to the broker."""

    def __init__(
        self,
        registrar: Registrar,
        orders: Orders,
        clock: Clock,
        random: Random,
        *,
        gather_s: float = GATHER_S,
    ) -> None:
        self._gather_s = gather_s
        self._registrar = registrar
        self._orders = orders
        self._clock = clock
        self._random = random
        self._asked: dict[str, int] = {}
        self._more = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """In the event loop: from now on those who come are asked, and first those who are there."""
        self._registrar.on_online.append(self.seen)
        self.seen("")

    def seen(self, _client_id: str) -> None:
        """A device has come; whether it is behind is looked up with the others that come at the same time."""
        self._more = True
        if self._registrar.changed and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._ask_all())

    def again(self) -> None:
        """Keys or authorities have changed: those who are there are asked, also who was asked within the hour."""
        self._asked.clear()
        self.seen("")

    async def close(self) -> None:
        """At the service's end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask_all(self) -> None:
        while self._more:  # who comes while others are being asked is not passed over
            await asyncio.sleep(self._gather_s)
            self._more = False
            await self._ask()

    async def _ask(self) -> None:
        now_ms = self._clock()
        self._asked = {name: at for name, at in self._asked.items() if now_ms - at < VALID_MS}
        behind = [row.client_id for row, _ in await self._registrar.behind() if row.online]
        wanted = [client for client in behind if client not in self._asked][:CLIENTS_MAX]
        if not wanted:
            return
        self._asked |= dict.fromkeys(wanted, now_ms)
        wish = Wish(self._random(NONCE_BYTES), Order(Action.RENEW), valid_ms=VALID_MS, client_ids=wanted)
        try:
            await self._orders.give(wish)
        except (
            PeerError
        ) as error:  # one of them was removed meanwhile: the others are asked when they come again
            _log.warning("not_asked_to_renew", code=error.code.value, detail=error.detail)
