"""Cloud functions join a fleet: registration once, a claim and a short certificate for each invocation.

A function has no identity of its own. Whoever holds a wake-up's payload may exchange its claim, once and until the
round's deadline, for a certificate of role `function` that ends soon after. Called by `enrollment` (its Registrar
serves the exchange), by the Operator service, and by `invoke` for the claims.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy import Connection

from aggregator.authority import Authority, Issued
from aggregator.interfaces import Clock, Random
from aggregator.store import functions as store
from aggregator.store.engine import Database
from cloud_adapters.registry import check_settings
from fedless.protocol import identity
from fedless.protocol.claim import Claim, secret_hash, secret_text
from fedless.protocol.cloud import Deployment, deployment_to_json
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import Mode, PolicyMessage, SigningKey

CLOSE_WINDOW_MS = 300_000
"""A function's certificate outlives its claim by this: in helper mode it is looked at again when the round closes."""
CLAIM_MS_MAX = 24 * 3_600_000
SETTINGS_BYTES_MAX = 64 * 1024
THREADS_MAX = 64
STATES = re.compile(r"(s3|gs|az|https|file)://[^\s?#]{1,900}")
FUNCTION_MODES = frozenset({Mode.PLAIN.value, Mode.HELPER.value})
"""Pairwise masks need a memory between rounds, which a function has not."""
_log = structlog.get_logger("functions")


class Functions:
    """The registered cloud functions of a fleet. `authority_pem`: the authorities that they are to believe."""

    def __init__(
        self, database: Database, authority: Authority, authority_pem: bytes, clock: Clock, random: Random
    ) -> None:
        self._database = database
        self._authority = authority
        self._authority_pem = authority_pem
        self._clock = clock
        self._random = random

    def follow(self, authority: Authority, authority_pem: bytes) -> None:
        """Another authority signs from now on, or others are to be believed."""
        self._authority, self._authority_pem = authority, authority_pem

    async def add(
        self,
        client_id: str,
        platform: str,
        settings_json: str,
        ticket_keys: tuple[SigningKey, ...],
        publisher_keys: tuple[SigningKey, ...],
        policy: PolicyMessage,
    ) -> str:
        """Registers a function or changes its settings; what it is to be deployed with (JSON, no secret).

        Raises `PeerError` RESERVED_NAME, CONFIG_INVALID, NOT_INSTALLED or WRONG_STATE.
        """
        identity.check_id(client_id, "client id")
        settings = _parsed(settings_json)
        check_settings(platform, client_id, settings)
        now_ms = self._clock()
        if not await self._database.run(lambda c: store.add(c, client_id, platform, settings, now_ms)):
            raise PeerError(
                Code.WRONG_STATE, f"Client {client_id!r} is a device.", fix="Choose another name."
            )
        _log.info("function_added", client=client_id, platform=platform)
        deployment = Deployment(
            fleet=self._authority.fleet,
            client_id=client_id,
            authority_pem=self._authority_pem.decode(),
            ticket_keys=ticket_keys,
            publisher_keys=publisher_keys,
            policy=replace(policy, modes=tuple(Mode(mode) for mode in settings["modes"]))
            if "modes" in settings
            else policy,
            data=settings.get("data", {}),
            threads=settings.get("threads", 1),
            states=settings.get("states", ""),
        )
        return deployment_to_json(deployment)

    async def find(self, client_id: str) -> store.FunctionRow | None:
        """The function with this id; None for devices and for nobody."""
        return await self._database.run(lambda c: store.find(c, client_id))

    async def claim(self, client_id: str, address: str, expires_at_ms: int) -> str:
        """The text of a claim for one invocation; a secret. Raises `PeerError` UNKNOWN_CLIENT if it was revoked."""
        now_ms = self._clock()
        secret = secret_text(self._random(16))
        digest, end = secret_hash(secret), min(expires_at_ms, now_ms + CLAIM_MS_MAX)
        if not await self._database.run(lambda c: store.add_claim(c, client_id, digest, now_ms, end)):
            raise PeerError(Code.UNKNOWN_CLIENT, f"Function {client_id!r} is not enrolled.")
        return Claim(address, self._authority.digest, secret).text

    def issue(self, client_id: str, csr_der: bytes, until_ms: int) -> Issued:
        """A certificate for one invocation: to its claim's end and the close window; raises `PeerError` BAD_CSR."""
        name = identity.Name(self._authority.fleet, identity.Role.FUNCTION, client_id)
        return self._authority.issue_until(name, csr_der, until_ms + CLOSE_WINDOW_MS)


def is_function(connection: Connection, client_id: str) -> bool:
    """Whether a client is a cloud function, on a connection."""
    return store.find(connection, client_id) is not None


def _parsed(settings_json: str) -> dict[str, Any]:
    try:
        settings = json.loads(settings_json) if len(settings_json) <= SETTINGS_BYTES_MAX else None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise PeerError(
            Code.CONFIG_INVALID, f"Expected settings as a JSON object of at most {SETTINGS_BYTES_MAX} bytes."
        )
    data, threads = settings.get("data", {}), settings.get("threads", 1)
    if not isinstance(data, dict) or not all(isinstance(table, dict) for table in data.values()):
        raise PeerError(Code.CONFIG_INVALID, "data: must be a table of tables, [data.NAME].")
    if not isinstance(threads, int) or not 1 <= threads <= THREADS_MAX:
        raise PeerError(Code.CONFIG_INVALID, f"threads: must be an integer from 1 to {THREADS_MAX}.")
    states = settings.get("states", "")
    if not isinstance(states, str) or (states and not STATES.fullmatch(states)):
        raise PeerError(Code.CONFIG_INVALID, "states: must be the URL of a folder in an object store.")
    modes = settings.get("modes", [])
    if not isinstance(modes, list) or not set(modes) <= FUNCTION_MODES:
        raise PeerError(Code.CONFIG_INVALID, f"modes: must be a list of {', '.join(sorted(FUNCTION_MODES))}.")
    return settings
