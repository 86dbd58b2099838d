"""The committed vectors: reproduced to the byte, checked by a second implementation, and the bad ones refused.

The second implementation (below) shares no code with ours but the ciphers of `cryptography`: it is what
somebody writes from protocol.md alone.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedless.protocol.errors import PeerError
from fedless.protocol.secagg import client, helper, setup
from fedless.protocol.secagg.helper import HelperRules, RefusedReports
from fedless.protocol.secagg.helper_messages import CloseRequest, HelperOpen, HelperReport
from fedless.protocol.secagg.messages import Inbox, Roster, RoundOpen, UnmaskRequest
from tests.secagg_fleet import NOW_MS, Fleet, verify_aggregator, verify_member
from tests.vectors import make_vectors
from tests.vectors.helper_mode import HELPER_PRIVATE
from tests.vectors.jsonable import from_json
from tests.vectors.make_vectors import FILES
from tests.vectors.pairwise import (
    ABSENT_FROM_REPORTS,
    ABSENT_FROM_SHARES,
    ENCODING,
    members_before_sharing,
    update_words,
)

HERE = Path(__file__).parents[2] / "vectors"
P = 2**256 + 297


def load(name: str) -> Any:
    return json.loads((HERE / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_vectors_regenerate_to_the_same_bytes(name: str) -> None:
    assert (HERE / name).read_text() == make_vectors.render(name), (
        "run `make vectors` and look at the difference"
    )


# -- a second implementation -------------------------------------------------------------------


def enc(*items: int | str | bytes) -> bytes:
    out = b""
    for item in items:
        raw = item.to_bytes(8, "big") if isinstance(item, int) else item
        data = raw.encode() if isinstance(raw, str) else raw
        out += len(data).to_bytes(4, "big") + data
    return out


def info(label: str, *items: int | str | bytes) -> bytes:
    return b"fedless-sa1/" + label.encode() + b"\0" + enc(*items)


def hkdf(key: bytes, inf: bytes, salt: bytes = bytes(32)) -> bytes:
    return hmac.digest(hmac.digest(salt, key, "sha256"), inf + b"\x01", "sha256")


def dh(private: str, public: str) -> bytes:
    own = X25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    return own.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public)))


def words(prg: str, seed: bytes, count: int) -> list[int]:
    if prg == "aes-256-ctr":
        cipher = Cipher(algorithms.AES(seed), modes.CTR(bytes(16)))
    else:
        cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), None)  # type: ignore[arg-type]
    data = cipher.encryptor().update(bytes(4 * count))
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]


def polynomial(secret: str, higher: list[str], x: int) -> bytes:
    value = int(secret, 16)
    for power, coefficient in enumerate(higher, start=1):
        value += int(coefficient, 16) * x**power
    return (value % P).to_bytes(33, "big")


def test_roster_hash_and_context_by_hand() -> None:
    good = load("pairwise.json")
    roster, opened = good["M1"], good["round"]["M4"]
    rows = enc(len(roster["entries"]))
    for index, entry in enumerate(roster["entries"], start=1):
        rows += enc(
            index, entry["client_id"], *(bytes.fromhex(entry[k]) for k in ("certificate", "channel_key"))
        )
        for field in ("mask_keys", "commitments"):
            rows += enc(len(entry[field]), *(bytes.fromhex(item) for item in entry[field]))
        rows += enc(bytes.fromhex(entry["signature"]))
    entries = hashlib.sha256(b"fedless-sa1/roster-entries\0" + rows).digest()
    head = [roster[k] for k in ("epoch", "mode", "neighbours", "threshold", "slots")]
    rh = hashlib.sha256(info("roster", *head, bytes.fromhex(roster["graph_seed"]), entries)).digest()
    assert rh.hex() == good["roster_hash"]
    active = hashlib.sha256(info("active", rh, len(good["E"]), *good["E"])).digest()
    assert active.hex() == good["active_hash"]
    ctx = info(
        "round-ctx",
        rh,
        active,
        opened["epoch"],
        opened["slot"],
        opened["round_id"],
        bytes.fromhex(opened["model_digest"]),
        bytes.fromhex(opened["task_digest"]),
        bytes.fromhex(good["round"]["encoding_hash"]),
        opened["prg"],
        opened["encoding"]["bits"],
    )
    assert hashlib.sha256(ctx).hexdigest() == good["round"]["ctx"]


def test_key_schedule_and_boxes_by_hand() -> None:
    good = load("pairwise.json")
    entries = good["M1"]["entries"]
    for index, entry in enumerate(entries, start=1):
        secret = good["secrets"][str(index)]
        ck = bytes.fromhex(secret["ck_0"])
        assert ck == bytes([index, 1, *range(30)])
        assert hkdf(ck, info("chan-sk")).hex() == secret["c"]
        for slot, row in enumerate(secret["slots"]):
            assert ck.hex() == row["ck"]
            assert hkdf(ck, info("mask-sk", slot)).hex() == row["s"]
            assert hkdf(ck, info("self-sk", slot)).hex() == row["b"]
            commitment = info("self-commit", entry["client_id"], 1, slot, bytes.fromhex(row["b"]))
            assert hashlib.sha256(commitment).hexdigest() == entry["commitments"][slot]
            ck = hkdf(ck, info("next"))
    first = good["secrets"]["1"]
    rh = bytes.fromhex(good["roster_hash"])
    for box, key in zip(good["M2"][0]["boxes"], good["box_keys_of_member_1"], strict=True):
        v = box["peer"]
        derived = hkdf(dh(first["c"], entries[v - 1]["channel_key"]), info("share-key", 1, v), rh)
        assert derived.hex() == key["key"]
        associated = info("share", rh, 1, 1, v, 6, 2)
        nonce, sealed = bytes.fromhex(box["nonce"]), bytes.fromhex(box["sealed"])
        plain = AESGCM(derived).decrypt(nonce, sealed, associated)
        expected = b"".join(
            polynomial(row["s"], row["polynomial_of_s"], v) + polynomial(row["b"], row["polynomial_of_b"], v)
            for row in first["slots"]
        )
        assert plain == expected


def test_masks_and_sum_by_hand() -> None:
    good = load("pairwise.json")
    round_ = good["round"]
    ctx, prg, members = bytes.fromhex(round_["ctx"]), round_["M4"]["prg"], good["E"]
    total = [0] * 8
    for report in round_["M5"]:
        i = report["head"]["index"]
        y = list(report["encoded"])
        secret = good["secrets"][str(i)]["slots"][0]
        m = hkdf(bytes.fromhex(secret["b"]), info("self-mask", i), ctx)
        assert m.hex() == report["seeds"]["m"]
        y = [a + b for a, b in zip(y, words(prg, m, 8), strict=True)]
        for v in members:
            if v == i:
                continue
            public = good["M1"]["entries"][v - 1]["mask_keys"][0]
            z = hkdf(dh(secret["s"], public), info("pair-mask", min(i, v), max(i, v)), ctx)
            assert z.hex() == report["seeds"]["z"][str(v)]
            sign = 1 if v > i else -1
            y = [a + sign * b for a, b in zip(y, words(prg, z, 8), strict=True)]
        assert [word % 2**32 for word in y] == report["masked"]
        total = [(a + b) % 2**32 for a, b in zip(total, report["encoded"], strict=True)]
    assert total == round_["sum"]
    unmasked = list(round_["masked_sum"])
    for sign, seeds in ((1, round_["streams_to_add"]), (-1, round_["streams_to_subtract"])):
        for seed in seeds:
            stream = words(prg, bytes.fromhex(seed), 8)
            unmasked = [(a + sign * b) % 2**32 for a, b in zip(unmasked, stream, strict=True)]
    assert unmasked == round_["sum"]


def test_answers_by_hand() -> None:
    good = load("pairwise.json")
    alive = int.from_bytes(bytes.fromhex(good["round"]["M6"]["alive"]), "little")
    for response in good["round"]["M7"]:
        shares = bytes.fromhex(response["shares"])
        for at, member in enumerate(good["E"]):
            row = good["secrets"][str(member)]["slots"][0]
            kind = "b" if alive >> at & 1 else "s"
            expected = polynomial(row[kind], row[f"polynomial_of_{kind}"], response["index"])
            assert shares[33 * at : 33 * at + 33] == expected


def test_helper_round_by_hand() -> None:
    good = load("helper.json")
    ctx, prg = bytes.fromhex(good["ctx"]), good["open"]["prg"]
    masks = [0] * 8
    for report in good["reports"]:
        seed = hkdf(bytes.fromhex(report["seed"]), info("helper-mask"), ctx)
        assert seed.hex() == report["stream_seed"]
        stream = words(prg, seed, 8)
        masks = [(a + b) % 2**32 for a, b in zip(masks, stream, strict=True)]
        masked = [(a + b) % 2**32 for a, b in zip(report["encoded"], stream, strict=True)]
        assert masked == report["masked"]
    assert masks == good["mask_sum"]
    assert [(a - b) % 2**32 for a, b in zip(good["masked_sum"], masks, strict=True)] == good["sum"]


def test_kept_envelopes_open_to_their_seeds() -> None:
    good = load("helper.json")
    request = CloseRequest(
        from_json(HelperOpen, good["open"]),
        tuple(from_json(HelperReport, report["head"]) for report in good["reports"]),
    )
    decided = helper.close_set(
        request,
        HelperRules(3),
        None,
        hpke_private=bytes.fromhex(good["hpke_private"]),
        at_ms=NOW_MS,
        verify_member=verify_member,
    )
    assert not isinstance(decided, RefusedReports)
    assert [seed.hex() for seed in decided.stream_seeds] == [r["stream_seed"] for r in good["reports"]]


# -- the bad ones ------------------------------------------------------------------------------


def fleet_before(step: str) -> Fleet:
    """The fleet of `pairwise.json`, up to the message that a bad vector replaces."""
    fleet = members_before_sharing()
    if step == "M1":
        return fleet
    for index in fleet.everyone:
        if index != ABSENT_FROM_SHARES:
            fleet.share(index)
    fleet.activate()
    if step == "M3":
        return fleet
    for index in fleet.server.members:
        fleet.collect(index)
    if step == "M6":
        round_ = fleet.open(ENCODING)
        for index in fleet.server.members:
            if index != ABSENT_FROM_REPORTS:
                round_ = fleet.report(round_, index, update_words(index))
    return fleet


def apply(fleet: Fleet, step: str, member: int, message: Any) -> None:
    state = fleet.states[member]
    if step == "M1":
        setup.accept_roster(
            state,
            from_json(Roster, message),
            fleet.policy,
            verify_member=verify_member,
            verify_aggregator=verify_aggregator,
        )
    elif step == "M3":
        inbox = from_json(Inbox, message)
        setup.accept_inbox(state, inbox, fleet.policy, verify_aggregator=verify_aggregator)
    elif step == "M4":
        fleet.accept_round(member, from_json(RoundOpen, message))
    else:
        request = from_json(UnmaskRequest, message)
        client.answer_unmask(state, request, verify_aggregator=verify_aggregator)


@pytest.mark.parametrize("vector", load("bad_pairwise.json"), ids=lambda v: f"{v['step']} {v['name']}")
def test_bad_message_is_refused_at_its_step(vector: dict[str, Any]) -> None:
    fleet = fleet_before(vector["step"])
    with pytest.raises(PeerError) as refusal:
        apply(fleet, vector["step"], vector["member"], vector["message"])
    assert refusal.value.code.value == vector["code"]


@pytest.mark.parametrize("vector", load("bad_helper.json"), ids=lambda v: v["name"])
def test_bad_set_is_refused_by_the_helper(vector: dict[str, Any]) -> None:
    request = from_json(CloseRequest, vector["request"])
    rules = HelperRules(vector["minimum"])
    private = HELPER_PRIVATE
    try:
        helper.check_request(request, rules, own_key=request.open.helper_key)
        decided = helper.close_set(
            request, rules, None, hpke_private=private, at_ms=NOW_MS, verify_member=verify_member
        )
    except PeerError as error:
        assert error.code.value == vector["code"]  # noqa: PT017 - or it is refused by report
    else:
        assert isinstance(decided, RefusedReports)
        assert {name: code.value for name, code in decided.reasons.items()} == vector["reasons"]
