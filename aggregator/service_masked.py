"""The methods of masked rounds: a key epoch's set-up (M0 to M3), and unmasking (M6 to M8).

Authenticate, decode, call, encode; a refusal is counted for its client. Part of the Rounds service.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from aggregator.authority import Caller, Callers
from aggregator.epochs import KeyEpochs
from aggregator.interfaces import Clock
from aggregator.live import own_faults_as_refusals
from aggregator.pairwise import PairwiseRounds
from aggregator.service_guard import CLIENTS, Guarded, guarded
from aggregator.store import history
from aggregator.store.engine import Database
from fedless.protocol import wire
from fedless.protocol.errors import PeerError
from fedless.v1 import rounds_pb2

T = TypeVar("T")


@dataclass(frozen=True)
class Masks:
    """What answers the methods of pairwise mode."""

    database: Database
    epochs: KeyEpochs
    rounds: PairwiseRounds


class MaskedMethods(Guarded):
    """Pairwise mode's part of the Rounds service; see rounds.proto for each method."""

    def __init__(self, callers: Callers, masks: Masks, clock: Clock) -> None:
        super().__init__(callers, clock)
        self._masks = masks

    @guarded(CLIENTS)
    async def PostEpochKeys(self, request: rounds_pb2.EpochStep, caller: Caller) -> rounds_pb2.StepReceipt:  # noqa: N802
        """M0."""
        epoch, message = wire.epoch_step_from_pb(request)
        await self._counted(caller, self._masks.epochs.post_keys(caller.name.id, epoch, message))
        return rounds_pb2.StepReceipt(now_ms=self.clock())

    @guarded(CLIENTS)
    async def GetRoster(self, request: rounds_pb2.EpochQuery, caller: Caller) -> rounds_pb2.EpochStep:  # noqa: N802
        """M1; held."""
        message = await self._counted(caller, self._masks.epochs.roster(caller.name.id, request.epoch))
        return wire.epoch_step_to_pb(request.epoch, message)

    @guarded(CLIENTS)
    async def PostEpochShares(self, request: rounds_pb2.EpochStep, caller: Caller) -> rounds_pb2.StepReceipt:  # noqa: N802
        """M2."""
        epoch, message = wire.epoch_step_from_pb(request)
        await self._counted(caller, self._masks.epochs.post_shares(caller.name.id, epoch, message))
        return rounds_pb2.StepReceipt(now_ms=self.clock())

    @guarded(CLIENTS)
    async def GetInbox(self, request: rounds_pb2.EpochQuery, caller: Caller) -> rounds_pb2.EpochStep:  # noqa: N802
        """M3; held."""
        message = await self._counted(caller, self._masks.epochs.inbox(caller.name.id, request.epoch))
        return wire.epoch_step_to_pb(request.epoch, message)

    @guarded(CLIENTS)
    async def GetUnmaskRequest(self, request: rounds_pb2.RoundQuery, caller: Caller) -> rounds_pb2.RoundStep:  # noqa: N802
        """M6; held."""
        message = await self._counted(
            caller, self._masks.rounds.unmask_request(caller.name.id, request.round_id)
        )
        return wire.round_step_to_pb(request.round_id, message)

    @guarded(CLIENTS)
    async def PostUnmaskResponse(  # noqa: N802
        self, request: rounds_pb2.RoundStep, caller: Caller
    ) -> rounds_pb2.StepReceipt:
        """M7."""
        round_id, message = wire.round_step_from_pb(request)
        await self._counted(caller, self._masks.rounds.post_response(caller.name.id, round_id, message))
        return rounds_pb2.StepReceipt(now_ms=self.clock())

    @guarded(CLIENTS)
    async def GetRoundResult(self, request: rounds_pb2.RoundQuery, caller: Caller) -> rounds_pb2.RoundStep:  # noqa: N802
        """M8."""
        message = await self._counted(caller, self._masks.rounds.result(caller.name.id, request.round_id))
        return wire.round_step_to_pb(request.round_id, message)

    async def _counted(self, caller: Caller, work: Awaitable[T]) -> T:
        try:
            with own_faults_as_refusals():
                return await work
        except PeerError as error:
            code, now = error.code.value, self.clock()
            await self._masks.database.run(lambda c: history.count(c, caller.name.id, code, now))
            raise
