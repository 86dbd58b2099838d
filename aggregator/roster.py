"""The list of clients as an operator keeps it: names, labels, what is known of one, and forgetting one.

Joining and leaving are `enrollment`'s; this changes no certificate but by its `revoke`. Called by the Operator service.
A name is for people: certificates, topics and history keep the id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy import Connection

from aggregator.enrollment import Registrar, check_labels
from aggregator.store import fleet as store
from aggregator.store import functions, history
from aggregator.store.engine import Database
from fedless.protocol.errors import Code, PeerError

NAME_MAX = 64
_log = structlog.get_logger("roster")


@dataclass(frozen=True)
class Known:
    """What is known of a client; `certificates` as `store.certificates_of`, `platform` is a cloud function's."""

    row: store.ClientRow
    counts: Mapping[str, int]
    certificates: Sequence[tuple[str, int, int, int]]
    platform: str


class Roster:
    """The clients of a fleet, by id or by name."""

    def __init__(self, database: Database, registrar: Registrar) -> None:
        self._database = database
        self._registrar = registrar

    async def find(self, client: str) -> str:
        """The id of the client with this id or name. Raises `PeerError(UNKNOWN_CLIENT)`."""
        return await self._database.run(lambda c: found(c, client))

    def lacks(self, row: store.ClientRow) -> list[str]:
        """The kinds of trust whose newest list a client, as far as it has told, does not follow yet."""
        return self._registrar.lacks(row) if row.state == store.ENROLLED else []

    async def show(self, client: str) -> Known:
        """Everything that is known of a client. Raises `PeerError(UNKNOWN_CLIENT)`."""

        def work(connection: Connection) -> Known:
            client_id = found(connection, client)
            row = next(row for row in store.all_clients(connection) if row.client_id == client_id)
            counts = dict(history.counts(connection).get(client_id, {}))
            function = functions.find(connection, client_id)
            platform = function.platform if function is not None else ""
            return Known(row, counts, store.certificates_of(connection, client_id), platform)

        return await self._database.run(work)

    async def rename(self, client: str, name: str) -> str:
        """Gives a client a name, or takes it ("") away; its id. Raises UNKNOWN_CLIENT, RESERVED_NAME, WRONG_STATE."""
        if len(name) > NAME_MAX or not name.isprintable() or name != name.strip():
            detail = f"Expected a name of at most {NAME_MAX} printable characters."
            raise PeerError(Code.RESERVED_NAME, detail, fix="Choose another name.")

        def work(connection: Connection) -> str:
            client_id = found(connection, client)
            if not store.rename(connection, client_id, name):
                detail = f"Another client is called {name!r}, or has it as its id."
                raise PeerError(Code.WRONG_STATE, detail, fix="Choose another name.")
            return client_id

        client_id = await self._database.run(work)
        _log.info("client_renamed", client=client_id, name=name)
        return client_id

    async def label(self, client: str, changes: Mapping[str, str], gone: Sequence[str]) -> Mapping[str, str]:
        """Sets and takes labels; all of them then. Raises `PeerError` UNKNOWN_CLIENT or OUT_OF_RANGE."""

        def work(connection: Connection) -> dict[str, str]:
            client_id = found(connection, client)
            row = next(row for row in store.all_clients(connection) if row.client_id == client_id)
            labels = {key: text for key, text in row.labels.items() if key not in gone} | dict(changes)
            check_labels(labels)
            store.label(connection, client_id, labels)
            return labels

        return await self._database.run(work)

    async def remove(self, client: str) -> str:
        """Revokes a client and forgets it: it is in no list any more, its past rounds stay. Its id."""
        client_id = await self.find(client)
        await self._registrar.revoke(client_id, "removed")
        await self._database.run(lambda c: store.remove(c, client_id))
        _log.info("client_removed", client=client_id)
        return client_id


def found(connection: Connection, client: str) -> str:
    """The id of the client with this id or name, on a connection. Raises `PeerError(UNKNOWN_CLIENT)`."""
    client_id = store.resolve(connection, client)
    if client_id is None:
        raise PeerError(Code.UNKNOWN_CLIENT, f"Found no {client[:64]!r}.", fix="See `fedless fleet list`.")
    return client_id
