"""The aggregator's calls to a helper that is a cloud function: signed calls through the platform's invoker.

The platform knows who may invoke, and the helper does not rely on it: each call is signed with the aggregator's
certificate key, is good once and for minutes, and only a reply that the helper's certificate key signed for it
counts. A platform's answer may be smaller than a sum: then its parts are asked for one after another, and what is here
already is kept when a call fails. Each is one attempt; `helpers` asks again, for as long as it waits for the helper.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import structlog

from aggregator.config import HelperSettings, Settings
from aggregator.interfaces import Clock, Random
from aggregator.link import END_OF_CERTIFICATE, Answer, HelperLink, SecondParty
from cloud_adapters.base import Invoker
from cloud_adapters.registry import invoker
from fedless.protocol.cloud import REPLIED, call_to_json
from fedless.protocol.crypto import P256Private, ecdsa_sign, p256_from_pem, sha256
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.secagg import calls, codec
from fedless.protocol.secagg.calls import Assembly, Call, SignedCall
from fedless.protocol.secagg.helper_messages import CloseRequest

NAME = "helper"
ONE_WAY = frozenset({"event", "cloudevent", "async"})
"""Modes of adapters in which nothing comes back."""
PART_BYTES_MAX = 16 * 2**20
_ROOM = 64 * 1024
"""Of an answer, for what is beside the sum's bytes."""
_MAY_PASS = frozenset({
    Code.PLATFORM_UNREACHABLE, Code.PLATFORM_BUSY, Code.PLATFORM_TIMEOUT, Code.PLATFORM_ANSWER, Code.PLATFORM_DENIED,
    Code.FUNCTION_FAILED, Code.FUNCTION_UNKNOWN, Code.CALL_REPEATED, Code.CALL_EXPIRED,
})  # fmt: skip
"""What a new call may not meet, or the helper's operator may mend while it is waited for."""
_log = structlog.get_logger("helper")


def open_invoker(settings: HelperSettings) -> Invoker:
    """The invoker of the settings. Raises `LocalError` CONFIG_INVALID or NOT_INSTALLED."""
    if settings.function.get("mode") in ONE_WAY:
        raise LocalError(
            Code.CONFIG_INVALID, f"helper.function.mode: nothing comes back in mode {settings.function['mode']}.",
            fix="Choose the synchronous one (docs/adapters.md).",
        )  # fmt: skip
    return invoker(settings.platform, NAME, settings.function)


def calls_to_helper(
    settings: Settings, party: SecondParty, clock: Clock, random: Random
) -> HelperLink | HelperExchange:
    """How this fleet's helper is asked: at its address, or on its platform. Raises `LocalError`, as `open_invoker`."""
    directory, fleet = settings.listen.directory, settings.fleet.name
    if settings.helper.address:
        return HelperLink(party, directory, fleet)
    platform = open_invoker(settings.helper)
    return HelperExchange(party, platform, directory, fleet, clock=clock, random=random)


class HelperExchange:
    """Asks the helper, as `link.HelperLink` does. `directory` holds the aggregator's cert.pem and cert.key."""

    def __init__(
        self,
        party: SecondParty,
        platform: Invoker,
        directory: Path,
        fleet: str,
        *,
        clock: Clock,
        random: Random,
    ) -> None:
        self.party = party
        self._invoker = platform
        self._directory = directory
        self._fleet = fleet
        self._clock = clock
        self._random = random
        self._begun: tuple[bytes, Assembly] | None = None
        whole = platform.exchange_limit.value
        self._part_bytes = min(PART_BYTES_MAX, (whole - whole // 4 - _ROOM) // 4 * 4)  # base64 adds a third

    def follow(self, party: SecondParty) -> None:
        """The helper has another certificate or key from now on."""
        self.party = party

    async def close(self, request: CloseRequest, timeout_ms: int) -> Answer:
        """The sum of a set's masks, or the reports that keep it from being closed; what it sums is not checked.

        Raises `PeerError`: what the helper refused, HELPER_UNREACHABLE, FUNCTION_LIMIT, BAD_SIGNATURE, BAD_CONTEXT.
        """
        until, assembly = self._clock() + timeout_ms, self._assembly(request)
        try:
            answer = None
            while answer is None:  # ends: each reply brings at least a byte, or raises
                reply = await self._ask(request, assembly.first_byte, until)
                self._begun = None  # but for a part: what a reply refuses begins anew
                answer = assembly.take(reply)
                if answer is None:
                    self._begun = (request.set_digest, assembly)
            return answer
        finally:
            await self._invoker.close()

    def _assembly(self, request: CloseRequest) -> Assembly:
        """What is here of this set's sum already."""
        if self._begun is None or self._begun[0] != request.set_digest:
            self._begun = (request.set_digest, Assembly(request))
        return self._begun[1]

    async def _ask(self, request: CloseRequest, first_byte: int, until: int) -> calls.Reply:
        now = self._clock()
        call = Call(
            fleet=self._fleet, helper_key_digest=sha256(self.party.key), call_id=self._random(calls.CALL_ID_BYTES),
            expires_at_ms=now + min(max(until - now, 1000), calls.CALL_MS), first_byte=first_byte,
            bytes_max=self._part_bytes, request=request,
        )  # fmt: skip
        certificate, key = self._own()
        signed = calls.sign_call(call, certificate, sign=lambda message: ecdsa_sign(key, message))
        try:
            data = await self._invoke(signed, max(until - now, 1000))
            return calls.open_reply(signed, data, self.party.member)
        except PeerError as error:
            if error.code not in _MAY_PASS:
                raise
            raise _away(error) from error

    async def _invoke(self, signed: SignedCall, timeout_ms: int) -> bytes:
        body = call_to_json(codec.dumps(signed))
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                answer = await self._invoker.exchange(body, timeout_ms)
        except TimeoutError as error:
            raise PeerError(Code.HELPER_UNREACHABLE, f"No answer in {timeout_ms / 1000:.0f} s.") from error
        except LocalError as error:  # a secret's file that is gone: it may come back
            raise _away(error) from error
        if answer.outcome != REPLIED:  # not signed: whoever said it, it is taken for a helper that is away
            detail = f"It answered {answer.outcome}, without a signature: {answer.detail}"
            raise PeerError(Code.HELPER_UNREACHABLE, detail.rstrip(".") + ".")
        _log.info("helper_answered", start=answer.start, took_ms=answer.total_ms)
        return answer.reply

    def _own(self) -> tuple[bytes, P256Private]:
        """The aggregator's leaf (DER) and its key, as they are now: they are renewed."""
        try:
            chain = (self._directory / "cert.pem").read_text("ascii")
            key = p256_from_pem((self._directory / "cert.key").read_bytes())
            return ssl.PEM_cert_to_DER_cert(chain.partition(END_OF_CERTIFICATE)[0] + END_OF_CERTIFICATE), key
        except (OSError, ValueError) as error:
            detail = f"The aggregator's certificate cannot be read ({type(error).__name__})."
            raise LocalError(Code.STATE_MISSING, detail, fix="Restore it from a back-up.") from error


def _away(error: PeerError | LocalError) -> PeerError:
    return PeerError(Code.HELPER_UNREACHABLE, f"{error.code.value}: {error.detail}", fix=error.fix)
