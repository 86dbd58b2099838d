"""Vectors of pairwise mode: a key epoch and a round, message by message."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedless.protocol import crypto
from fedless.protocol.prg import Words
from fedless.protocol.secagg import keys, ring, server
from fedless.protocol.secagg.messages import (
    share_associated,
    share_key_info,
)
from fedless.protocol.secagg.ring import Extra, plan
from tests.secagg_fleet import (
    Fleet,
    chain_key,
    counting,
)

ENCODING = plan(n=7, dimension=6, clip=1.0, max_examples=100, extras=(Extra("loss", 10.0),))
ABSENT_FROM_SHARES, ABSENT_FROM_REPORTS = 3, 7
HOLDERS = (1, 2, 4, 5, 7, 8)


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
    entries, agree = fleet.server.sealed_roster.entries, crypto.x25519_agreement(secret.mask_private)
    return {
        "m": keys.self_mask_seed(secret.self_seed, context, index),
        "z": {
            str(peer): keys.pair_seed(agree, entries[peer - 1].mask_keys[slot], context, index, peer)
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
