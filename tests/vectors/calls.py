"""Vectors of calls to a helper that is a function: a set's sum in two parts, and calls that must be refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fedless.protocol import crypto
from fedless.protocol.errors import Code
from fedless.protocol.prg import Words, expand
from fedless.protocol.secagg import calls, helper
from fedless.protocol.secagg.calls import Call, SignedCall
from fedless.protocol.secagg.helper_messages import CloseRequest, MaskSum
from tests.secagg_fleet import certificate_of, client_sign, counting
from tests.vectors.helper_mode import HELPER_SCALAR, helper_opening, helper_report, kept_envelopes

FLEET, AGGREGATOR_SCALAR, CALL_AT_MS = "greenhouse", 998, 1_790_000_000_000
AGGREGATOR_CERTIFICATE = certificate_of("main", AGGREGATOR_SCALAR, "aggregator")


def the_call(**changes: Any) -> Call:
    """For the first twenty bytes of the sum of `helper.json`'s reports."""
    opened, kept = helper_opening(), kept_envelopes()
    heads = [helper_report(opened, i, kept.get(f"client-{i:03d}", b""))[0] for i in (1, 2, 4, 6)]
    call = Call(
        fleet=FLEET,
        helper_key_digest=crypto.sha256(opened.helper_key),
        call_id=counting(7)[:16],
        expires_at_ms=CALL_AT_MS + 60_000,
        first_byte=0,
        bytes_max=20,
        request=CloseRequest(opened, tuple(heads)),
    )
    return dataclasses.replace(call, **changes)


def signed(call: Call, scalar: int = AGGREGATOR_SCALAR) -> SignedCall:
    """As the aggregator signs it."""
    return calls.sign_call(call, AGGREGATOR_CERTIFICATE, sign=client_sign(scalar))


def call_vectors() -> dict[str, Any]:
    """Two calls for one sum, and their replies; then one that refuses a report."""
    first, second = the_call(), the_call(call_id=counting(8)[:16], first_byte=20)
    opened = first.request.open
    masks: Words = np.zeros(opened.encoding.words, dtype=np.uint32)
    for number in (1, 2, 4, 6):
        masks += expand(opened.prg, helper.stream_seed(counting(number), opened.context), len(masks), 32)
    head = MaskSum(opened.context, first.request.set_digest, crypto.sha256(masks.tobytes()), b"")
    head = dataclasses.replace(head, signature=client_sign(HELPER_SCALAR)(head.signed))
    parts = [_exchange(call, calls.part_of(signed(call), call, head, masks)) for call in (first, second)]
    refused = helper.RefusedReports({"client-004": Code.SEED_REPEATED})
    return {
        "at_ms": CALL_AT_MS,
        "aggregator_certificate": AGGREGATOR_CERTIFICATE,
        "helper_certificate": opened.helper_certificate,
        "mask_sum": masks,
        "parts": parts,
        "refused": _exchange(first, calls.refusal_of(signed(first), refused)),
    }


def _exchange(call: Call, reply: calls.Reply) -> dict[str, Any]:
    return {
        "call": call,
        "signed_call": signed(call),
        "reply": reply,
        "signed_reply": calls.sign_reply(reply, sign=client_sign(HELPER_SCALAR)),
    }


def bad_calls() -> list[dict[str, Any]]:
    """Calls that the helper must refuse: at `open` without a signature, at `judge` and `part` with one."""
    good = signed(the_call())
    other, device = signed(the_call(bytes_max=99)), certificate_of("client-001", 1)
    late, early = CALL_AT_MS - 1, CALL_AT_MS + calls.CALL_MS + calls.CLOCK_MS + 1
    rows: list[tuple[str, str, SignedCall, str]] = [
        ("signed by another key", "open", signed(the_call(), 1), "bad_signature"),
        ("changed after it was signed", "open", dataclasses.replace(good, content=other.content), "bad_signature"),
        ("of a device", "open", calls.sign_call(the_call(), device, sign=client_sign(1)), "wrong_role"),
        ("truncated", "open", calls.SignedCall(good.content[:-1], *_signed_again(good.content[:-1])), "malformed"),
        ("past its end", "judge", signed(the_call(expires_at_ms=late)), "call_expired"),
        ("good for too long", "judge", signed(the_call(expires_at_ms=early)), "call_expired"),
        ("for another fleet", "judge", signed(the_call(fleet="orchard")), "helper_key"),
        ("for another helper", "judge", signed(the_call(helper_key_digest=bytes(32))), "helper_key"),
        ("with a short id", "judge", signed(the_call(call_id=b"short")), "malformed"),
        ("behind the end of the sum", "part", signed(the_call(first_byte=10_000)), "out_of_range"),
    ]  # fmt: skip
    return [
        {"name": name, "step": step, "at_ms": CALL_AT_MS, "call": call, "code": code}
        for name, step, call, code in rows
    ]


def _signed_again(content: bytes) -> tuple[bytes, bytes]:
    signature = client_sign(AGGREGATOR_SCALAR)(crypto.info(crypto.Label.HELPER_CALL, content))
    return AGGREGATOR_CERTIFICATE, signature
