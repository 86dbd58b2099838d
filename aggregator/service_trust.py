"""The Operator's methods for whom the fleet trusts: new keys and authorities. Part of the Operator service."""

from __future__ import annotations

from aggregator.authority import Caller
from aggregator.reload import Reload
from aggregator.service_guard import OPERATORS, Guarded, guarded
from fedless.v1 import operator_pb2 as pb


class TrustMethods(Guarded):
    """Keys, authorities and certificates of the fleet itself."""

    holder: Reload

    @guarded(OPERATORS)
    async def Reload(self, _request: pb.ReloadRequest, _caller: Caller) -> pb.ReloadReply:  # noqa: N802
        """Takes up what the fleet's folder holds now."""
        return pb.ReloadReply(changed=await self.holder.take_up())
