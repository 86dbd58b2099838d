"""The vectors of calls, by hand where that is possible, and by the code where it must refuse."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from fedless.protocol import crypto
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg import calls, codec
from fedless.protocol.secagg.calls import Assembly, Call, SignedCall, SignedReply
from fedless.protocol.secagg.helper import RefusedReports
from fedless.protocol.secagg.helper_messages import MaskSum
from fedless.protocol.secagg.messages import Member
from tests.vectors.calls import FLEET
from tests.vectors.jsonable import from_json

VECTORS = Path(__file__).parents[2] / "vectors"
GOOD: dict[str, Any] = json.loads((VECTORS / "calls.json").read_text())
HELPER = Member(
    "helper-1", False, crypto.p256_public(bytes.fromhex(GOOD["helper_certificate"]).partition(b"\0")[2])
)


def verify_caller(certificate: bytes, _at_ms: int) -> Member:
    """What `identity` does with real certificates."""
    name, _, public = certificate.partition(b"\0")
    if not name.startswith(b"aggregator/"):
        raise PeerError(Code.WRONG_ROLE)
    return Member("main", is_device=False, public_key=crypto.p256_public(public))


def signed_text(label: str, content: bytes) -> bytes:
    """I(label, content), written out."""
    return b"fedless-sa1/" + label.encode() + b"\0" + struct.pack(">I", len(content)) + content


def test_parts_by_hand() -> None:
    total, whole = b"", b"".join(struct.pack("<I", word) for word in GOOD["mask_sum"])
    for part in GOOD["parts"]:
        call, reply = part["call"], part["reply"]
        content = bytes.fromhex(part["signed_call"]["content"])
        assert content.startswith(struct.pack(">I", len(FLEET)) + FLEET.encode() + struct.pack(">I", 32))
        assert reply["call_digest"] == hashlib.sha256(content).hexdigest()
        aggregator = verify_caller(bytes.fromhex(part["signed_call"]["certificate"]), 0)
        signature = bytes.fromhex(part["signed_call"]["signature"])
        assert aggregator.verify(signature, signed_text("helper-call", content))
        answered = codec.loads(SignedReply, bytes.fromhex(part["signed_reply"]))
        assert HELPER.verify(answered.signature, signed_text("helper-reply", answered.content))
        data = bytes.fromhex(reply["data"])
        assert data == whole[call["first_byte"] :][: call["bytes_max"]]
        assert reply["head"]["sha256"] == hashlib.sha256(whole).hexdigest()
        total += data
    assert total == whole


def test_replies_are_opened_and_put_together() -> None:
    calls_of = [from_json(SignedCall, part["signed_call"]) for part in GOOD["parts"]]
    assembly = Assembly(from_json(Call, GOOD["parts"][0]["call"]).request)
    answers = [
        assembly.take(calls.open_reply(call, bytes.fromhex(part["signed_reply"]), HELPER))
        for call, part in zip(calls_of, GOOD["parts"], strict=True)
    ]
    assert answers[0] is None
    assert isinstance(answers[1], tuple)
    assert answers[1][1].tolist() == GOOD["mask_sum"]
    with pytest.raises(PeerError) as error:
        calls.open_reply(calls_of[0], bytes.fromhex(GOOD["parts"][1]["signed_reply"]), HELPER)
    assert error.value.code is Code.BAD_CONTEXT
    refused = calls.open_reply(calls_of[0], bytes.fromhex(GOOD["refused"]["signed_reply"]), HELPER)
    assert assembly.take(refused) == RefusedReports({"client-004": Code.SEED_REPEATED})


def judge(call: SignedCall, at_ms: int, passed: list[str]) -> None:
    """As the helper does; every step that is passed is noted."""
    signed, wanted = calls.open_call(codec.dumps(call), verify_caller=verify_caller, at_ms=at_ms)
    passed.append("open")
    calls.judge_call(wanted, FLEET, wanted.request.open.helper_key, at_ms)
    passed.append("judge")
    head = from_json(MaskSum, GOOD["parts"][0]["reply"]["head"])
    calls.part_of(signed, wanted, head, Assembly(wanted.request).words)


@pytest.mark.parametrize(
    "vector", json.loads((VECTORS / "bad_calls.json").read_text()), ids=lambda v: v["name"]
)
def test_bad_call_is_refused_at_its_step(vector: dict[str, Any]) -> None:
    passed: list[str] = []
    with pytest.raises(PeerError) as error:
        judge(from_json(SignedCall, vector["call"]), vector["at_ms"], passed)
    assert error.value.code.value == vector["code"]
    assert [*passed, vector["step"]] == ["open", "judge", "part"][: len(passed) + 1]
