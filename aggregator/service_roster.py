"""The Operator's methods for single clients: show, rename, label, remove. Part of the Operator service."""

from __future__ import annotations

import json
from collections.abc import Sequence

from aggregator.authority import Caller
from aggregator.roster import Roster
from aggregator.service_guard import OPERATORS, Guarded, guarded
from aggregator.store import fleet as store
from fedless.protocol.errors import Code
from fedless.v1 import operator_pb2 as pb

CODES = frozenset(code.value for code in Code)


class RosterMethods(Guarded):
    """One client at a time, by id or name."""

    roster: Roster

    @guarded(OPERATORS)
    async def ShowClient(self, request: pb.ClientRequest, _caller: Caller) -> pb.ShowClientReply:  # noqa: N802
        """What is known of a client."""
        known = await self.roster.show(request.client)
        row = known.row
        return pb.ShowClientReply(
            client=client_to_pb(row, dict(known.counts), self.roster.lacks(row)),
            platform=known.platform,
            revoked_reason=row.revoked_reason,
            not_before_ms=row.not_before_ms,
            not_before_reason=row.not_before_reason,
            profile_json=json.dumps(dict(row.profile)),
            certificates=[
                pb.CertificateInfo(
                    serial=serial, issued_at_ms=issued, not_after_ms=end, revoked_at_ms=revoked
                )
                for serial, issued, end, revoked in known.certificates
            ],
        )

    @guarded(OPERATORS)
    async def RenameClient(self, request: pb.RenameClientRequest, _caller: Caller) -> pb.ClientReply:  # noqa: N802
        """Gives a client a name for people."""
        return pb.ClientReply(client_id=await self.roster.rename(request.client, request.name))

    @guarded(OPERATORS)
    async def LabelClient(self, request: pb.LabelClientRequest, _caller: Caller) -> pb.LabelClientReply:  # noqa: N802
        """Sets and takes labels."""
        labels = await self.roster.label(request.client, dict(request.labels), list(request.gone))
        return pb.LabelClientReply(labels=labels)

    @guarded(OPERATORS)
    async def RemoveClient(self, request: pb.ClientRequest, _caller: Caller) -> pb.ClientReply:  # noqa: N802
        """Revokes a client and forgets it."""
        return pb.ClientReply(client_id=await self.roster.remove(request.client))


def client_to_pb(client: store.ClientRow, counts: dict[str, int], lacks: Sequence[str]) -> pb.ClientInfo:
    """A client with what it refused (its own status says so), what it was refused, and whom it does not trust yet."""
    told: dict[str, int] = client.profile.get("refusals", {})
    refusals = {name: told.get(name, 0) + counts.get(name, 0) for name in (told | counts) if name in CODES}
    return pb.ClientInfo(
        client_id=client.client_id,
        state=client.state,
        enrolled_at_ms=client.enrolled_at_ms,
        last_seen_ms=client.last_seen_ms,
        online=client.online,
        labels=client.labels,
        reports=counts.get("reports", 0),
        refusals=refusals,
        certificate_not_after_ms=client.certificate_not_after_ms,
        runtime_version=client.profile.get("runtime_version", ""),
        name=client.name,
        lacks=lacks,
    )
