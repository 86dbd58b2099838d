"""Writes the test vectors beside it: `python -m tests.vectors.make_vectors [directory]`. Same bytes every time."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from fedless.protocol import crypto
from fedless.protocol.crypto import Label, Prg
from fedless.protocol.errors import PeerError
from fedless.protocol.prg import Words, expand
from fedless.protocol.secagg import helper, keys, ring, server, shamir
from fedless.protocol.secagg.assembly import inbox_for
from fedless.protocol.secagg.client import context_of
from fedless.protocol.secagg.helper_messages import (
    CloseRequest,
    HelperOpen,
    HelperReport,
    MaskSum,
    envelope_info,
)
from fedless.protocol.secagg.messages import (
    RoundOpen,
    UnmaskRequest,
    active_signed,
    alive_signed,
    bitmap,
    share_associated,
    share_key_info,
)
from fedless.protocol.secagg.ring import Extra, RingEncoding, plan
from tests.secagg_fleet import (
    AGGREGATOR_PRIVATE,
    END_MS,
    Fleet,
    aggregator_sign,
    certificate_of,
    chain_key,
    client_sign,
    counting,
)

HERE = Path(__file__).parent
T = TypeVar("T")
HELPER_PRIVATE, HELPER_SCALAR = counting(100), 999
ENCODING = plan(n=7, dimension=6, clip=1.0, max_examples=100, extras=(Extra("loss", 10.0),))
ABSENT_FROM_SHARES, ABSENT_FROM_REPORTS = 3, 7
HOLDERS = (1, 2, 4, 5, 7, 8)


# -- dataclasses as JSON -----------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """A message as JSON: bytes as hex, dataclasses as objects."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [to_json(element) for element in value]
    if isinstance(value, dict):
        return {str(name): to_json(element) for name, element in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value.value if isinstance(value, StrEnum) else value


def from_json(kind: Any, value: Any) -> Any:
    """The message of type `kind` that `to_json` wrote."""
    if get_origin(kind) is UnionType:
        inner = next(part for part in get_args(kind) if part is not NoneType)
        return None if value is None else from_json(inner, value)
    if get_origin(kind) is tuple:
        return tuple(from_json(get_args(kind)[0], element) for element in value)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{name: from_json(hints[name], element) for name, element in value.items()})  # type: ignore[operator]
    if kind is bytes:
        return bytes.fromhex(value)
    return kind(value)


# -- primitives --------------------------------------------------------------------------------


def primitives() -> dict[str, Any]:
    """Section 10's known answers, and one of every other primitive."""
    u, v = counting(0), counting(32)
    shared = crypto.x25519_shared(u, crypto.x25519_public(v))
    ctx = crypto.digest(
        Label.ROUND_CTX, bytes(32), 0, "round-7", crypto.sha256(b"model"), crypto.sha256(b"cfg")
    )
    pair = keys.pair_seed(u, crypto.x25519_public(v), ctx, 1, 2)
    message = crypto.info(Label.MASKED, ctx, 1, bytes(32))
    return {
        "enc": [
            {"items": ["ab", 1, {"bytes": "ff"}], "enc": crypto.enc("ab", 1, b"\xff").hex()},
            {"items": [["a", "b"]], "list": True, "enc": crypto.enc(["a", "b"]).hex()},
        ],
        "info_pair_mask_1_2": crypto.info(Label.PAIR_MASK, 1, 2).hex(),
        "x25519": {"private_u": u.hex(), "private_v": v.hex(), "shared": shared.hex()},
        "reduced_round_ctx": ctx.hex(),
        "pair_seed": pair.hex(),
        "self_mask": keys.self_mask_seed(b"\x07" * 32, ctx, 1).hex(),
        "share_key": crypto.hkdf(shared, share_key_info(1, 2), salt=bytes(32)).hex(),
        "self_commitment": crypto.digest(Label.SELF_COMMIT, "client-1", 1, 0, b"\x07" * 32).hex(),
        "streams": {
            prg.value: {
                "seed": pair.hex(),
                "first_8_words": expand(prg, pair, 8, 32).tolist(),
                "first_8_words_of_16_bits": expand(prg, pair, 8, 16).tolist(),
                "sha256_of_a_million_words": crypto.sha256(expand(prg, pair, 10**6, 32).tobytes()).hex(),
            }
            for prg in Prg
        },
        "aes_256_gcm": {
            "key": u.hex(),
            "nonce": counting(0, 12).hex(),
            "associated": b"associated".hex(),
            "plaintext": v.hex(),
            "sealed": crypto.seal(u, counting(0, 12), v, b"associated").hex(),
        },
        "ecdsa_p256_rfc6979": {
            "scalar": 1,
            "message": message.hex(),
            "signature_der": crypto.ecdsa_sign(crypto.p256_private(1), message).hex(),
        },
        "ed25519": {
            "private": AGGREGATOR_PRIVATE.hex(),
            "public": crypto.ed25519_public(AGGREGATOR_PRIVATE).hex(),
            "message": message.hex(),
            "signature": aggregator_sign(message).hex(),
        },
        "labels": sorted(label.value for label in Label),
    }


def shamir_vectors() -> dict[str, Any]:
    """Section 10's polynomial, and one drawn from a chain key."""
    secret = counting(0)
    points = [1, 2, 7, 100]
    shares = shamir.split(secret, [3, 4, 5], points)
    rh = counting(50)
    drawn = keys.polynomial(counting(9), rh, 1, "mask", 6)
    many = list(range(1, 9))
    return {
        "prime": hex(shamir.PRIME),
        "small": {
            "secret": secret.hex(),
            "higher_coefficients": [3, 4, 5],
            "shares": {str(x): share.hex() for x, share in zip(points, shares, strict=True)},
            "lagrange_weights_at_zero": [hex(weight) for weight in shamir.weights(points)],
        },
        "drawn": {
            "chain_key": counting(9).hex(),
            "roster_hash": rh.hex(),
            "slot": 1,
            "secret_kind": "mask",
            "threshold": 6,
            "higher_coefficients": [hex(coefficient) for coefficient in drawn],
            "secret": secret.hex(),
            "shares": [share.hex() for share in shamir.split(secret, drawn, many)],
        },
    }


def ring_vectors() -> list[dict[str, Any]]:
    """Encodings of both widths: three clients each, and their decoded sum."""
    vectors = []
    for bits, l2 in ((32, 0.0), (16, 0.0), (32, 1.5)):
        encoding = plan(
            n=8, dimension=6, bits=bits, clip=1.0, max_examples=100, l2_clip=l2, extras=(Extra("loss", 10.0),)
        )
        clients = []
        total: Words | None = None
        for number, examples in ((1, 40), (2, 100), (3, 250)):
            update = np.array([0.5, -0.25, 1.5, -2.0, 1e-7, 0.0], dtype=np.float32)
            np.multiply(update, np.float32(number / 2), out=update)
            loss = 0.75 * number
            words = ring.encode(encoding, update.copy(), examples, {"loss": loss}, counting(number))
            clients.append(
                {
                    "update": [float(x) for x in update],
                    "examples": examples,
                    "extras": {"loss": loss},
                    "rounding_seed": counting(number),
                    "words": words,
                }
            )
            total = words if total is None else total + words
        assert total is not None
        decoded = ring.decode(encoding, total, 3)
        vectors.append(
            {
                "encoding": encoding,
                "encoding_hash": encoding.hash,
                "clients": clients,
                "sum": total,
                "mean": [float(x) for x in decoded.mean],
                "weight": decoded.weight,
                "extras": dict(decoded.extras),
            }
        )
    return vectors


# -- pairwise ----------------------------------------------------------------------------------


def update_words(index: int) -> Words:
    """What member `index` reports: its encoded update."""
    update = np.array([x / 16 for x in (index, -index, 3, 0, 8 - index, 1)], dtype=np.float32)
    return ring.encode(ENCODING, update, 10 * index, {"loss": index / 4}, counting(index))


def members_before_sharing() -> Fleet:
    """Eight members after M1 was made."""
    fleet = Fleet(8, slots=2)
    for index in fleet.everyone:
        fleet.offer(index)
    fleet.make_roster()
    return fleet


def secrets_of(fleet: Fleet, index: int) -> dict[str, Any]:
    """Everything that member `index` derives before M2."""
    ck = chain_key(index, fleet.epoch)
    rh, t = fleet.server.sealed_roster.hash, fleet.server.sealed_roster.threshold
    slots = []
    for slot in range(fleet.slots):
        chain = keys.advance(ck, slot)
        secret = keys.slot_secrets(chain, slot)
        slots.append(
            {
                "ck": chain,
                "s": secret.mask_private,
                "b": secret.self_seed,
                "polynomial_of_s": [hex(c) for c in keys.polynomial(ck, rh, slot, "mask", t)],
                "polynomial_of_b": [hex(c) for c in keys.polynomial(ck, rh, slot, "self", t)],
            }
        )
    return {"ck_0": ck, "c": keys.channel_private(ck), "slots": slots}


def box_keys(fleet: Fleet, index: int) -> list[dict[str, Any]]:
    """Key and associated data of each box that member `index` seals."""
    roster = fleet.server.sealed_roster
    c = keys.channel_private(chain_key(index, fleet.epoch))
    found = []
    for peer, entry in enumerate(roster.entries, start=1):
        if peer == index:
            continue
        shared = crypto.x25519_shared(c, entry.channel_key)
        found.append(
            {
                "peer": peer,
                "key": crypto.hkdf(shared, share_key_info(index, peer), salt=roster.hash),
                "associated": share_associated(
                    roster.hash, roster.epoch, index, peer, roster.threshold, roster.slots
                ),
            }
        )
    return found


def mask_seeds(fleet: Fleet, index: int, context: bytes, slot: int) -> dict[str, Any]:
    """m_i and z_iv of member `index`."""
    secret = keys.slot_secrets(keys.advance(chain_key(index, fleet.epoch), slot), slot)
    entries = fleet.server.sealed_roster.entries
    return {
        "m": keys.self_mask_seed(secret.self_seed, context, index),
        "z": {
            str(peer): keys.pair_seed(
                secret.mask_private, entries[peer - 1].mask_keys[slot], context, index, peer
            )
            for peer in fleet.server.members
            if peer != index
        },
    }


def pairwise() -> dict[str, Any]:
    """A key epoch with one dropout after M1, and a round with one dropout before M5."""
    fleet = members_before_sharing()
    out: dict[str, Any] = {
        "M0": [entry for entry in fleet.server.sealed_roster.entries],  # noqa: C416 - as sent
        "M1": fleet.server.sealed_roster,
        "roster_hash": fleet.server.sealed_roster.hash,
        "secrets": {str(i): secrets_of(fleet, i) for i in fleet.everyone},
    }
    for index in fleet.everyone:
        if index != ABSENT_FROM_SHARES:
            fleet.share(index)
    out["M2"] = [fleet.rows[i] for i in sorted(fleet.rows)]
    out["box_keys_of_member_1"] = box_keys(fleet, 1)
    fleet.activate()
    out["E"] = list(fleet.server.members)
    out["active_hash"] = fleet.server.active_hash
    out["active_signature"] = fleet.server.active_signature
    for index in fleet.server.members:
        fleet.collect(index)
    return out | {"round": one_round(fleet)}


def one_round(fleet: Fleet) -> dict[str, Any]:
    """M4 to M8."""
    round_ = fleet.open(ENCODING)
    out: dict[str, Any] = {"M4": round_.open, "encoding_hash": ENCODING.hash, "ctx": round_.context, "M5": []}
    for index in fleet.server.members:
        if index == ABSENT_FROM_REPORTS:
            continue
        words = update_words(index)
        round_ = fleet.report(round_, index, words)
        head, masked = fleet.spool[index]
        seeds = mask_seeds(fleet, index, round_.context, 0)
        out["M5"].append({"encoded": words, "seeds": seeds, "masked": masked, "head": head})
    round_ = fleet.close(round_)
    out["M6"] = round_.request
    for index in HOLDERS:
        round_ = fleet.respond(round_, index)
    out["M7"] = list(round_.responses)
    _, recovery = server.recover(fleet.server, round_)
    out["streams_to_add"] = list(recovery.plus)
    out["streams_to_subtract"] = list(recovery.minus)
    out["masked_sum"] = fleet.total(round_)
    ended, total, decoded = fleet.unmask(round_)
    out |= {"sum": total, "M8": ended.result, "mean": [float(x) for x in decoded.mean]}
    return out | {"weight": decoded.weight, "extras": dict(decoded.extras)}


# -- helper ------------------------------------------------------------------------------------


def helper_opening(encoding: RingEncoding = ENCODING) -> HelperOpen:
    """A round for at most seven clients."""
    return helper.open_helper_round(
        HelperOpen(
            round_id=5,
            model_version=2,
            model_digest=crypto.sha256(b"model"),
            task_digest=crypto.sha256(b"task"),
            encoding=encoding,
            prg=Prg.CHACHA,
            n_max=7,
            deadline_at_ms=END_MS,
            helper_certificate=certificate_of("helper-1", HELPER_SCALAR, "helper"),
            helper_key=crypto.x25519_public(HELPER_PRIVATE),
            signature=b"",
        ),
        sign=aggregator_sign,
    )


def kept_envelopes() -> dict[str, bytes]:
    """The envelopes of the committed file, if there is one."""
    path = HERE / "helper.json"
    if not path.exists():
        return {}
    reports = json.loads(path.read_text())["reports"]
    return {report["head"]["client_id"]: bytes.fromhex(report["head"]["envelope"]) for report in reports}


def helper_report(opened: HelperOpen, number: int, kept: bytes) -> tuple[HelperReport, Words]:
    """What client `number` reports; its envelope is the kept one where that still opens to the seed."""
    seed, client_id, words = counting(number), f"client-{number:03d}", update_words(number)
    certificate = certificate_of(client_id, number)
    head = helper.mask_for_helper(opened, client_id, certificate, words, seed=seed, sign=client_sign(number))
    try:
        opens = crypto.hpke_open(HELPER_PRIVATE, envelope_info(opened.context, client_id), kept) == seed
    except PeerError:
        opens = False
    if opens:
        head = dataclasses.replace(head, envelope=kept)
        head = dataclasses.replace(head, signature=client_sign(number)(head.signed))
    return head, words


def helper_vectors() -> dict[str, Any]:
    """Four of seven clients report."""
    opened, kept = helper_opening(), kept_envelopes()
    reports = []
    heads = []
    total = np.zeros(ENCODING.words, dtype=np.uint32)
    for number in (1, 2, 4, 6):
        head, masked = helper_report(opened, number, kept.get(f"client-{number:03d}", b""))
        seed = counting(number)
        reports.append(
            {
                "encoded": update_words(number),
                "seed": seed,
                "stream_seed": helper.stream_seed(seed, opened.context),
                "masked": masked,
                "head": head,
            }
        )
        heads.append(head)
        total += masked
    request = CloseRequest(opened, tuple(heads))
    masks = np.zeros_like(total)
    for number in (1, 2, 4, 6):
        masks += expand(opened.prg, helper.stream_seed(counting(number), opened.context), len(masks), 32)
    answer = MaskSum(opened.context, request.set_digest, crypto.sha256(masks.tobytes()), b"")
    answer = dataclasses.replace(answer, signature=client_sign(HELPER_SCALAR)(answer.signed))
    return {
        "hpke_private": HELPER_PRIVATE,
        "open": opened,
        "ctx": opened.context,
        "reports": reports,
        "set_digest": request.set_digest,
        "masked_sum": total,
        "mask_sum": masks,
        "mask_sum_head": answer,
        "sum": total - masks,
    }


# -- bad ones ----------------------------------------------------------------------------------


def changed(value: T, **changes: object) -> T:
    """A message with other fields."""
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def bad_rosters() -> Iterator[dict[str, Any]]:
    """M1 that member 1 must refuse."""
    roster = members_before_sharing().server.sealed_roster

    def sign(**changes: object) -> Any:
        unsigned = changed(roster, **changes)
        return changed(unsigned, signature=aggregator_sign(unsigned.signed))

    def entry(index: int, *, own_signature: bool = True, **changes: object) -> Any:
        other = changed(roster.entries[index - 1], **changes)
        if own_signature:
            other = changed(other, signature=client_sign(index)(other.signed))
        return sign(entries=(*roster.entries[: index - 1], other, *roster.entries[index:]))

    third = roster.entries[2]
    yield bad("duplicated id", "M1", 1, entry(8, client_id=third.client_id), "bad_roster")
    yield bad("duplicated key", "M1", 1, entry(8, channel_key=third.channel_key), "bad_roster")
    yield bad(
        "unsigned key", "M1", 1, entry(8, own_signature=False, channel_key=counting(9)), "bad_signature"
    )
    yield bad("own entry changed", "M1", 1, entry(1, channel_key=counting(9)), "bad_roster")
    yield bad("threshold below policy", "M1", 1, sign(threshold=5), "bad_threshold")
    yield bad("all-zero point", "M1", 1, entry(8, channel_key=bytes(32)), "bad_point")
    yield bad("sparse graph", "M1", 1, sign(neighbours=4), "bad_roster")
    yield bad("not signed", "M1", 1, changed(roster, at_ms=5), "bad_signature")


def bad_rounds() -> Iterator[dict[str, Any]]:
    """M3 to M8 that must be refused when they take the place of the good ones."""
    fleet = members_before_sharing()
    for index in fleet.everyone:
        if index != ABSENT_FROM_SHARES:
            fleet.share(index)
    fleet.activate()
    rh, members = fleet.server.sealed_roster.hash, fleet.server.members
    inbox = inbox_for(fleet.server, 1, fleet.rows)
    yield bad("members not signed", "M3", 1, changed(inbox, members=members[:-1]), "bad_signature")
    few = changed(inbox, members=members[:6], signature=aggregator_sign(active_signed(rh, members[:6])))
    yield bad("fewer than t + 1 members", "M3", 1, few, "too_few")
    yield bad("boxes withheld", "M3", 1, changed(inbox, boxes=inbox.boxes[:3]), "bad_box")
    for index in members:
        fleet.collect(index)
    epoch = fleet.states[1].epochs[0]
    opened = fleet.open(ENCODING).open

    def sign(**changes: object) -> RoundOpen:
        unsigned = changed(opened, **changes)
        return changed(unsigned, signature=aggregator_sign(unsigned.signed(context_of(epoch, unsigned))))

    yield bad("min_alive below t", "M4", 1, sign(min_alive=5), "bad_threshold")
    greedy = changed(ENCODING, scale=2 * ENCODING.scale)
    yield bad("overflow of the ring", "M4", 1, sign(encoding=greedy), "ring_overflow")
    yield bad("not signed", "M4", 1, changed(opened, deadline_at_ms=1), "bad_signature")
    yield bad("another key epoch", "M4", 1, sign(epoch=2), "epoch_stale")
    yield from bad_requests(opened, context_of(epoch, opened), members, sign)


def bad_requests(
    opened: RoundOpen, context: bytes, members: tuple[int, ...], sign: Callable[..., RoundOpen]
) -> Iterator[dict[str, Any]]:
    """M6 for member 1, which reported, and for member 7, which did not."""

    def request(opened: RoundOpen, context: bytes, alive: list[int]) -> UnmaskRequest:
        bits = bitmap(members, alive)
        return UnmaskRequest(opened, bits, aggregator_sign(alive_signed(context, bits)))

    yield bad("fewer than min_alive", "M6", 1, request(opened, context, [1, 2, 4]), "bad_bitmap")
    yield bad("own bit set", "M6", 7, request(opened, context, list(members)), "bad_bitmap")
    good = request(opened, context, [1, 2, 4, 5, 6, 8])
    yield bad("not signed", "M6", 1, changed(good, alive=b"\x3f"), "bad_signature")
    low = sign(min_alive=2)
    yield bad("min_alive below t", "M6", 7, request(low, context, [1, 2]), "bad_threshold")
    yield bad("unused bit set", "M6", 1, changed_bits(context, opened), "bad_bitmap")


def changed_bits(context: bytes, opened: RoundOpen) -> UnmaskRequest:
    """A bitmap with a bit beyond E."""
    return UnmaskRequest(opened, b"\xff", aggregator_sign(alive_signed(context, b"\xff")))


def bad(name: str, step: str, member: int, message: object, code: str) -> dict[str, Any]:
    """One bad vector."""
    return {"name": name, "step": step, "member": member, "message": message, "code": code}


def bad_helper() -> list[dict[str, Any]]:
    """Sets that the helper must refuse: whole (`code`) or by report (`reasons`)."""
    opened, kept = helper_opening(), kept_envelopes()
    heads = [helper_report(opened, i, kept.get(f"client-{i:03d}", b""))[0] for i in (1, 2, 4, 6)]

    def resigned(head: HelperReport, number: int, **changes: object) -> HelperReport:
        other = changed(head, **changes)
        return changed(other, signature=client_sign(number)(other.signed))

    copied = resigned(heads[1], 2, envelope=heads[0].envelope)
    foreign = resigned(heads[1], 2, client_id="client-009")
    unsigned = changed(heads[1], sha256=bytes(32))
    sets: list[tuple[str, tuple[HelperReport, ...], str, dict[str, str]]] = [
        ("below the helper's minimum", tuple(heads[:2]), "too_few", {}),
        ("a client twice", (*heads, heads[0]), "malformed", {}),
        ("envelope of another client", (heads[0], copied, *heads[2:]), "", {"client-002": "bad_box"}),
        ("another client's id", (heads[0], foreign, *heads[2:]), "", {"client-009": "not_in_cohort"}),
        ("not signed", (heads[0], unsigned, *heads[2:]), "", {"client-002": "bad_signature"}),
    ]
    return [
        {
            "name": name,
            "minimum": 3,
            "request": CloseRequest(opened, reports),
            "code": code,
            "reasons": reasons,
        }
        for name, reports, code, reasons in sets
    ]


# -- files -------------------------------------------------------------------------------------

FILES: dict[str, Callable[[], Any]] = {
    "primitives.json": primitives,
    "shamir.json": shamir_vectors,
    "ring.json": ring_vectors,
    "pairwise.json": pairwise,
    "helper.json": helper_vectors,
    "bad_pairwise.json": lambda: [*bad_rosters(), *bad_rounds()],
    "bad_helper.json": bad_helper,
}


def render(name: str) -> str:
    """The text of one file."""
    return json.dumps(to_json(FILES[name]()), indent=1) + "\n"


def main(directory: Path) -> None:
    """Write all files into `directory`."""
    for name in FILES:
        (directory / name).write_text(render(name))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
