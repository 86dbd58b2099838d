"""The Operator's methods for whom the fleet trusts: keys, authorities, operators. Part of the Operator service."""

from __future__ import annotations

from dataclasses import asdict

from aggregator.authority import Caller
from aggregator.operators import Operators
from aggregator.reload import Reload
from aggregator.service_guard import OPERATORS, Guarded, guarded
from fedless.protocol.errors import Code, PeerError
from fedless.v1 import operator_pb2 as pb

PEM_BYTES_MAX = 16 * 1024


class TrustMethods(Guarded):
    """Keys, authorities and certificates of the fleet itself, and who may command it."""

    holder: Reload
    operators: Operators

    @guarded(OPERATORS)
    async def Reload(self, _request: pb.ReloadRequest, _caller: Caller) -> pb.ReloadReply:  # noqa: N802
        """Takes up what the fleet's folder holds now."""
        return pb.ReloadReply(changed=await self.holder.take_up())

    @guarded(OPERATORS)
    async def ListOperators(self, _request: pb.ListOperatorsRequest, caller: Caller) -> pb.ListOperatorsReply:  # noqa: N802
        """All certificates of operators that are known."""
        every = [pb.OperatorInfo(**asdict(row)) for row in await self.operators.every()]
        return pb.ListOperatorsReply(operators=every, own_serial=caller.serial)

    @guarded(OPERATORS)
    async def RevokeOperator(  # noqa: N802
        self, request: pb.RevokeOperatorRequest, caller: Caller
    ) -> pb.RevokeOperatorReply:
        """Takes an operator's certificate."""
        if len(request.certificate_pem) > PEM_BYTES_MAX:
            raise PeerError(Code.OUT_OF_RANGE, f"Expected a certificate of at most {PEM_BYTES_MAX} bytes.")
        serials = await self.operators.revoke(
            request.operator, request.certificate_pem, request.reason, caller
        )
        return pb.RevokeOperatorReply(serials=serials)
