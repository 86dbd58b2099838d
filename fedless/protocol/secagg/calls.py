"""*Pure.* Calls to a helper that is a function: no connection says who asks and who answers, so signatures do.

The aggregator makes a `Call`, signs it with its certificate's key, and gets a `Reply` that the helper's certificate
key signed for exactly that call. A call is good once and for a short time; asking again takes a new one. A sum may be
larger than a platform's answer: a call asks for a part of its bytes, and every part is of one and the same sum, since
the helper remembers the set. Rounds, sets and sums are those of `helper`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fedless.protocol.crypto import KEY_BYTES, Label, info, sha256
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.prg import Words, word_dtype
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.helper import RefusedReports
from fedless.protocol.secagg.helper_messages import CloseRequest, MaskSum
from fedless.protocol.secagg.messages import Member, Sign, VerifyMember

CALL_ID_BYTES = 16
CALL_MS = 5 * 60_000
"""A call is good for so long at most: helpers forget its id afterwards."""
CLOCK_MS = 60_000
"""The aggregator's clock may be ahead by so much."""
_DETAIL_MAX = 500


@dataclass(frozen=True)
class Call:
    """Aggregator to helper. `call_id`: 16 random bytes, new for each attempt.

    `helper_key_digest`: SHA-256 of the HPKE key of the helper that is meant. Wanted are at most `bytes_max` bytes of
    the sum from `first_byte` on.
    """

    fleet: str
    helper_key_digest: bytes
    call_id: bytes
    expires_at_ms: int
    first_byte: int
    bytes_max: int
    request: CloseRequest


@dataclass(frozen=True)
class SignedCall:
    """`content`: a `Call` in the codec's bytes. `certificate`: the aggregator's leaf, DER.

    `signature`: ECDSA, DER, by that certificate's key over I("helper-call", content).
    """

    content: bytes = field(repr=False)
    certificate: bytes
    signature: bytes


@dataclass(frozen=True)
class RefusedReport:
    """A report that keeps a set from being closed, and the code's value."""

    client_id: str
    code: str


@dataclass(frozen=True)
class Reply:
    """Helper to aggregator. `call_digest`: SHA-256 of the call's content.

    Either `head` and `data`, bytes of the sum from the call's `first_byte` on; or `refused`; or `code` (a code's value)
    with `detail`, `fix` and `retry_after_ms` (0: not said).
    """

    call_digest: bytes
    head: MaskSum | None = None
    data: bytes = field(default=b"", repr=False)
    refused: tuple[RefusedReport, ...] = ()
    code: str = ""
    detail: str = ""
    fix: str = ""
    retry_after_ms: int = 0


@dataclass(frozen=True)
class SignedReply:
    """`content`: a `Reply` in the codec's bytes.

    `signature`: ECDSA, DER, by the helper's certificate key over I("helper-reply", content).
    """

    content: bytes = field(repr=False)
    signature: bytes


# -- the aggregator ----------------------------------------------------------------------------


def sign_call(call: Call, certificate: bytes, *, sign: Sign) -> SignedCall:
    """Aggregator: a call, ready to go."""
    content = codec.dumps(call)
    return SignedCall(content, certificate, sign(info(Label.HELPER_CALL, content)))


def open_reply(call: SignedCall, data: bytes, helper: Member) -> Reply:
    """Aggregator: the reply to a call, which only this helper can have made, for this call alone.

    Raises `PeerError`: MALFORMED, BAD_SIGNATURE, BAD_CONTEXT (the reply to another call).
    """
    signed = codec.loads(SignedReply, data)
    if not helper.verify(signed.signature, info(Label.HELPER_REPLY, signed.content)):
        raise PeerError(Code.BAD_SIGNATURE, "The reply is not signed by the helper.")
    reply = codec.loads(Reply, signed.content)
    if reply.call_digest != sha256(call.content):
        raise PeerError(Code.BAD_CONTEXT, "The helper replied to another call.")
    return reply


class Assembly:
    """Aggregator: one sum, put together from the replies to several calls."""

    def __init__(self, request: CloseRequest) -> None:
        encoding = request.open.encoding
        self.words: Words = np.empty(encoding.words, dtype=word_dtype(encoding.bits))
        self._bytes = self.words.data.cast("B")
        self._head: MaskSum | None = None
        self.first_byte = 0

    def take(self, reply: Reply) -> tuple[MaskSum, Words] | RefusedReports | None:
        """The whole answer, or None if another part is to be asked for, from `first_byte` on.

        Raises what the helper refused, as `PeerError`; MALFORMED, WRONG_LENGTH, or CONFLICTING_REPEAT when the parts
        are not of one sum.
        """
        if reply.code:
            after = reply.retry_after_ms or None
            raise PeerError(Code.of(reply.code), reply.detail, fix=reply.fix, retry_after_ms=after)
        if reply.refused:
            return RefusedReports({item.client_id: Code.of(item.code) for item in reply.refused})
        head, data = reply.head, reply.data
        if head is None:
            raise PeerError(Code.MALFORMED, "Expected a sum, refused reports or a code.")
        known = self._head or head
        if (head.context, head.set_digest, head.sha256) != (known.context, known.set_digest, known.sha256):
            raise PeerError(Code.CONFLICTING_REPEAT, "The parts that the helper sent are not of one sum.")
        end = self.first_byte + len(data)
        if end > len(self._bytes) or not data:
            expected = len(self._bytes) - self.first_byte
            raise PeerError(
                Code.WRONG_LENGTH, f"Expected 1 to {expected} bytes of the sum, found {len(data)}."
            )
        self._bytes[self.first_byte : end] = data
        self.first_byte, self._head = end, known
        return (known, self.words) if end == len(self._bytes) else None


# -- the helper --------------------------------------------------------------------------------


def open_call(data: bytes, *, verify_caller: VerifyMember, at_ms: int) -> tuple[SignedCall, Call]:
    """Helper: a call that the fleet's aggregator signed. Nothing of its content is judged yet.

    `verify_caller`: the aggregator whose certificate it is, at a moment (Unix ms), or `PeerError`. Raises `PeerError`:
    what it raises, MALFORMED, BAD_SIGNATURE.
    """
    signed = codec.loads(SignedCall, data)
    caller = verify_caller(signed.certificate, at_ms)
    if not caller.verify(signed.signature, info(Label.HELPER_CALL, signed.content)):
        raise PeerError(Code.BAD_SIGNATURE, "The call is not signed by the aggregator.")
    return signed, codec.loads(Call, signed.content)


def judge_call(call: Call, fleet: str, helper_key: bytes, at_ms: int) -> None:
    """Helper: whether a call is for this helper and for now; that it is the first with its id is the memory's to say.

    Raises `PeerError`: HELPER_KEY, CALL_EXPIRED, MALFORMED.
    """
    if call.fleet != fleet or call.helper_key_digest != sha256(helper_key):
        raise PeerError(Code.HELPER_KEY, "The call is for another helper.")
    if not at_ms <= call.expires_at_ms <= at_ms + CALL_MS + CLOCK_MS:
        detail = (
            f"It ends {(call.expires_at_ms - at_ms) / 1000:.0f} s from now; expected 0 to {CALL_MS // 1000}."
        )
        raise PeerError(Code.CALL_EXPIRED, detail, fix="Check the aggregator's clock.")
    if len(call.call_id) != CALL_ID_BYTES or len(call.helper_key_digest) != KEY_BYTES or not call.bytes_max:
        raise PeerError(Code.MALFORMED, f"Expected an id of {CALL_ID_BYTES} bytes, and bytes to answer.")


def part_of(call: SignedCall, wanted: Call, head: MaskSum, words: Words) -> Reply:
    """Helper: the wanted bytes of a sum. Raises `PeerError(OUT_OF_RANGE)`."""
    whole = words.data.cast("B")
    if wanted.first_byte >= len(whole):
        raise PeerError(Code.OUT_OF_RANGE, f"The sum has {len(whole)} bytes.")
    part = bytes(whole[wanted.first_byte : wanted.first_byte + wanted.bytes_max])
    return Reply(sha256(call.content), head=head, data=part)


def refusal_of(call: SignedCall, refused: RefusedReports | PeerError) -> Reply:
    """Helper: why there is no sum."""
    digest = sha256(call.content)
    if isinstance(refused, RefusedReports):
        reports = tuple(RefusedReport(client_id, code.value) for client_id, code in refused.reasons.items())
        return Reply(digest, refused=reports)
    return Reply(
        digest, code=refused.code.value, detail=refused.detail[:_DETAIL_MAX], fix=refused.fix[:_DETAIL_MAX],
        retry_after_ms=refused.retry_after_ms or 0,
    )  # fmt: skip


def sign_reply(reply: Reply, *, sign: Sign) -> bytes:
    """Helper: a reply, ready to go."""
    content = codec.dumps(reply)
    return codec.dumps(SignedReply(content, sign(info(Label.HELPER_REPLY, content))))
