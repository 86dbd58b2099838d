"""Erases models that may go and blobs that nobody needs: at the start, then every hour. Driven by the service.

First the database says what is given up, then what is stored is compared with what is needed; a needed blob that an
object store lacks and a copy here has (after a back-up was restored) is stored. What was put or touched
in the last day stays, whether or not anybody needs it yet: a run that is about to start, a model about to be committed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from aggregator.blobs import Blobs
from aggregator.interfaces import Clock, Sleep
from aggregator.store import retention
from aggregator.store.engine import Database
from fedless.protocol.errors import LocalError

EVERY_MS = 3_600_000
GRACE_S = 86_400.0
log = structlog.get_logger()


@dataclass(frozen=True)
class Swept:
    """What one sweep did."""

    models: int
    states: int
    blobs: int


class Sweep:
    """The fleet's sweeper; `keep_models`: the newest versions of each run that stay, 0: all."""

    def __init__(
        self, database: Database, blobs: Blobs, keep_models: int, *, clock: Clock, sleep: Sleep
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._keep_models = keep_models
        self._clock = clock
        self._sleep = sleep

    async def run(self) -> None:
        """Until it is cancelled; what goes wrong is logged, and tried again an hour later."""
        while True:
            try:
                swept = await self.once()
            except LocalError as error:
                log.warning("sweep_failed", code=error.code.value, detail=error.detail)
            else:
                if swept != Swept(0, 0, 0):
                    log.info("swept", models=swept.models, states=swept.states, blobs=swept.blobs)
            await self._sleep(EVERY_MS)

    async def once(self) -> Swept:
        """One sweep. Raises `LocalError` STORE_UNREACHABLE; what was erased until then is erased."""
        now = self._clock()

        def give_up(connection: Connection) -> tuple[int, int]:
            models = retention.give_up_models(connection, self._keep_models, now) if self._keep_models else 0
            return models, retention.forget_state(connection)

        models, states = await self._database.run(give_up)
        stored = await asyncio.to_thread(lambda: list(self._blobs.stored()))
        needed = await self._database.run(lambda c: retention.needed(c, now))
        for digest in needed - {digest for digest, _ in stored}:
            if not await asyncio.to_thread(self._blobs.put_back, digest):
                log.error("blob_missing", digest=digest.hex())
        old = [digest for digest, age_s in stored if age_s >= GRACE_S and digest not in needed]
        erased = 0
        for digest in old:
            erased += await asyncio.to_thread(self._blobs.erase, digest, GRACE_S)
        await asyncio.to_thread(self._blobs.trim)
        return Swept(models, states, erased)
