"""The operators of a fleet: whose certificates have called, and taking one from its holder.

Certificates are signed where the authority's key is (`given`, by the command line), never by a call: an operator
cannot make operators. A revoked one is refused with its next call, and is on the broker's list. Called by the Operator
service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import structlog
from sqlalchemy import Connection

from aggregator.authorities import Authorities
from aggregator.authority import SERVER_DAYS, Caller, Issued
from aggregator.enrollment import Registrar
from aggregator.founding import write_private
from aggregator.interfaces import Clock
from aggregator.store import operators as store
from aggregator.store.engine import Database
from fedless.protocol import identity
from fedless.protocol.errors import Code, FedlessError, PeerError

SEEN_EVERY_MS = 60_000
"""A certificate's last call is written down at most so often."""
REASON_MAX = 128
_log = structlog.get_logger("operators")


class Operators:
    """Of one fleet; `seen` hears of each call that was admitted."""

    def __init__(self, database: Database, registrar: Registrar, clock: Clock) -> None:
        self._database = database
        self._registrar = registrar
        self._clock = clock
        self._noted: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def seen(self, caller: Caller) -> None:
        """In the event loop: an operator calls."""
        now_ms = self._clock()
        if 0 <= now_ms - self._noted.get(caller.serial, -SEEN_EVERY_MS) < SEEN_EVERY_MS:
            return
        self._noted[caller.serial] = now_ms
        task = asyncio.ensure_future(self._note(caller, now_ms))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def every(self) -> Sequence[store.OperatorRow]:
        """All certificates that are known."""
        await asyncio.gather(*self._tasks)
        return await self._database.run(store.every)

    async def revoke(self, operator: str, certificate_pem: bytes, reason: str, by: Caller) -> list[str]:
        """Takes a certificate (its serial in hex, or all of a name, or the one given, known or not); the serials.

        Raises `PeerError` UNKNOWN_CLIENT, FOREIGN_CERTIFICATE, or WRONG_STATE for the one that the caller uses.
        """
        now_ms = self._clock()
        given = self._given(certificate_pem, now_ms) if certificate_pem else None

        def record(connection: Connection) -> list[str]:
            if given is not None:
                store.note(connection, given.serial, given.name.id, given.not_after_ms, now_ms)
            wanted = {given.serial} if given else _found(connection, operator)
            if by.serial in wanted:
                detail = "It is the certificate that you call with."
                raise PeerError(
                    Code.WRONG_STATE, detail, fix="Make another one first: `fedless operator renew`."
                )
            for serial in wanted:
                store.revoke(connection, serial, by.name.id, reason[:REASON_MAX], now_ms)
            return sorted(wanted)

        serials = await self._registrar.deny(record)
        for serial in serials:
            _log.info("operator_revoked", serial=serial, by=by.name.id, by_serial=by.serial, reason=reason)
        return serials

    def _given(self, certificate_pem: bytes, now_ms: int) -> Caller:
        caller = self._registrar.callers.read(certificate_pem, now_ms)
        if caller.name.role is not identity.Role.OPERATOR:
            detail = f"Expected an operator's certificate, found that of a {caller.name.role}."
            raise PeerError(Code.FOREIGN_CERTIFICATE, detail)
        return caller

    async def _note(self, caller: Caller, now_ms: int) -> None:
        def record(connection: Connection) -> None:
            store.note(connection, caller.serial, caller.name.id, caller.not_after_ms, now_ms)
            store.saw(connection, caller.serial, now_ms)

        try:
            await self._database.run(record)
        except (
            FedlessError,
            RuntimeError,
        ) as error:  # the database is away, or closed: a later call is noted
            self._noted.pop(caller.serial, None)
            _log.warning("operator_not_noted", operator=caller.name.id, error=type(error).__name__)


def _found(connection: Connection, operator: str) -> set[str]:
    known = store.every(connection)
    wanted = {row.serial for row in known if operator.lower() == row.serial} or {
        row.serial for row in known if operator == row.name
    }
    if not wanted:
        detail = f"Found no operator {operator[:64]!r}."
        fix = "See `fedless operator list`; or name the file of the certificate with --certificate."
        raise PeerError(Code.UNKNOWN_CLIENT, detail, fix=fix)
    return wanted


def given(out: Path, authorities: Authorities, name: str, settings_toml: bytes, now_ms: int) -> Issued:
    """Writes an operator's folder with a new key; the certificate. Raises `PeerError` RESERVED_NAME for a bad name."""
    who = identity.Name(authorities.fleet, identity.Role.OPERATOR, identity.check_id(name, "operator's name"))
    key = identity.new_key()
    issued = authorities.issuing.issue(who, identity.make_csr(key), now_ms, SERVER_DAYS)
    files = {
        "operator.toml": settings_toml,
        "authority.pem": authorities.pem,
        "cert.key": identity.key_pem(key),
        "cert.pem": issued.chain_pem,
    }
    for file, content in files.items():
        write_private(out / file, content)
    return issued
