"""The helper as a cloud function: one invocation, from a signed call to a signed reply.

Called by the entry files in `entries`. Nobody is authenticated by a connection here, so the call must carry the
signature of the fleet's aggregator, and is answered once. The decision is that of `fedless helper serve` (`closing`);
its memory is one that all instances share. A process keeps the last sum for the calls that fetch its other parts.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache as once
from typing import Any

from cloud_adapters.handlers.invoked import since_process_start_ms
from edge_runtime.log import say
from fedless.helper.closing import Helper, Trust
from fedless.helper.deployed import HelperDeployment, Keys, read_deployment, read_keys
from fedless.helper.opening import open_memory
from fedless.helper.remembering import Remembering
from fedless.protocol import identity
from fedless.protocol.cloud import REPLIED, Answer, answer_to_values, call_from_json
from fedless.protocol.crypto import ecdsa_sign, sha256, x25519_public
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError
from fedless.protocol.prg import Words
from fedless.protocol.secagg import calls, codec
from fedless.protocol.secagg.calls import Call, Reply, SignedCall
from fedless.protocol.secagg.helper import RefusedReports
from fedless.protocol.secagg.helper_messages import CloseRequest, MaskSum

CALL_BYTES_MAX = 64 * 2**20


@dataclass(frozen=True)
class _Sum:
    """A sum that was answered in part: of which request, and what it is."""

    request: bytes
    head: MaskSum
    words: Words


class HelperFunction:
    """One process of a deployed helper; it answers one call at a time."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._turn = threading.Lock()
        self._calls = 0
        self._sum: _Sum | None = None

    def run(self, event: bytes | str | Mapping[str, Any]) -> dict[str, Any]:
        """One invocation; the answer's JSON values. Never raises: what is wrong is an outcome.

        Whoever did not prove to be the aggregator gets a code and no signature.
        """
        if not self._turn.acquire(blocking=False):
            return answer_to_values(Answer(Code.BUSY.value, "This process is at work on another call."))
        try:
            return answer_to_values(self._run(event))
        finally:
            self._turn.release()

    def _run(self, event: bytes | str | Mapping[str, Any]) -> Answer:
        begun = time.monotonic()
        start, imported = ("warm", 0.0) if self._calls else ("cold", since_process_start_ms())
        self._calls += 1
        outcome, detail, reply = REPLIED, "", b""
        try:
            signed, call = calls.open_call(
                call_from_json(event), verify_caller=self._helper.trust.caller, at_ms=self._helper.clock()
            )
            reply = calls.sign_reply(self._reply(signed, call), sign=self._sign)
        except FedlessError as error:
            outcome, detail = error.code.value, error.detail
            say("helper", "call_refused", code=outcome, why=detail)
        total_ms = round((time.monotonic() - begun) * 1000, 1)
        return Answer(outcome, detail, start, total_ms, imported, reply=reply)

    def _reply(self, signed: SignedCall, call: Call) -> Reply:
        """What to sign for the aggregator, refusals included."""
        round_id = call.request.open.round_id
        try:
            self._admit(call)
            answer = self._answer(call.request)
            if isinstance(answer, RefusedReports):
                say("helper", "reports_refused", round=round_id, count=len(answer.reasons))
                return calls.refusal_of(signed, answer)
            return self._part(signed, call, answer)
        except PeerError as error:
            say("helper", "call_refused", round=round_id, code=error.code.value, why=error.detail)
            return calls.refusal_of(signed, error)
        except LocalError as error:  # what is wrong on our side stays in our log
            say("helper", "call_failed", round=round_id, code=error.code.value, why=error.detail)
            return calls.refusal_of(signed, PeerError(Code.INTERNAL, "The helper's log says why."))

    def _admit(self, call: Call) -> None:
        """Raise `PeerError` for a call that is for another helper or time, too large, or here for the second time."""
        helper = self._helper
        publics = [x25519_public(each) for each in helper.hpke()]
        meant = next((each for each in publics if sha256(each) == call.helper_key_digest), publics[0])
        calls.judge_call(call, helper.trust.fleet, meant, helper.clock())
        helper.demands.check_size(call.request.open, len(call.request.reports))
        if not helper.memory.take_call(call.call_id, call.expires_at_ms, helper.clock()):
            raise PeerError(Code.CALL_REPEATED)

    def _answer(self, request: CloseRequest) -> _Sum | RefusedReports:
        digest = sha256(codec.dumps(request))
        kept = self._sum
        if kept is not None and kept.request == digest:
            return kept
        self._sum = None
        answer = self._helper.close(request)
        return answer if isinstance(answer, RefusedReports) else _Sum(digest, *answer)

    def _part(self, signed: SignedCall, call: Call, whole: _Sum) -> Reply:
        reply = calls.part_of(signed, call, whole.head, whole.words)
        last = call.first_byte + len(reply.data) == whole.words.nbytes
        self._sum = None if last else whole
        say("helper", "sum_answered", round=call.request.open.round_id, reports=len(call.request.reports),
            first_byte=call.first_byte, bytes=len(reply.data))  # fmt: skip
        return reply

    def _sign(self, message: bytes) -> bytes:
        return ecdsa_sign(self._helper.key, message)


def made(deployment: HelperDeployment, keys: Keys, memory: Remembering) -> HelperFunction:
    """A process of the helper, on the real clock."""
    authorities = identity.certificates(deployment.authority_pem.encode())
    return HelperFunction(
        Helper(
            trust=Trust(deployment.fleet, authorities, frozenset(deployment.denied)),
            demands=deployment.demands,
            memory=memory,
            clock=lambda: time.time_ns() // 1_000_000,
            randomness=os.urandom,
            key=keys.certificate_key,
            hpke=lambda: (keys.hpke, keys.next_hpke) if keys.next_hpke else (keys.hpke,),
        )
    )


@once
def deployed() -> HelperFunction:
    """This process's helper. Raises `LocalError`, or `PeerError(BUSY)` where its memory is away."""
    deployment, keys = read_deployment(), read_keys()
    if not deployment.memory:
        raise LocalError(
            Code.CONFIG_INVALID, "A helper that is a function needs a memory that its instances share.",
            fix="Set state.url (docs/helper.md), and package it again.",
        )  # fmt: skip
    return made(deployment, keys, open_memory(None, deployment.memory, keys.database_password))


def run(event: bytes | str | Mapping[str, Any], left_ms: float | None = None) -> dict[str, Any]:
    """One invocation of the deployed helper: what every entry file calls. The answer's JSON values."""
    del left_ms
    try:
        function = deployed()
    except FedlessError as error:
        say("helper", "not_deployed", code=error.code.value, why=error.detail)
        return answer_to_values(Answer(error.code.value, " ".join(filter(None, (error.detail, error.fix)))))
    return function.run(event)
