"""Vectors of the parts: primitives, Shamir's sharing, the ring."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedless.protocol import crypto
from fedless.protocol.crypto import Label, Prg
from fedless.protocol.prg import Words, expand
from fedless.protocol.secagg import keys, ring, shamir
from fedless.protocol.secagg.messages import (
    share_key_info,
)
from fedless.protocol.secagg.ring import Extra, plan
from tests.secagg_fleet import (
    AGGREGATOR_PRIVATE,
    aggregator_sign,
    counting,
)


def primitives() -> dict[str, Any]:
    """Section 10's known answers, and one of every other primitive."""
    u, v = counting(0), counting(32)
    shared = crypto.x25519_shared(u, crypto.x25519_public(v))
    ctx = crypto.digest(
        Label.ROUND_CTX, bytes(32), 0, "round-7", crypto.sha256(b"model"), crypto.sha256(b"cfg")
    )
    pair = keys.pair_seed(crypto.x25519_agreement(u), crypto.x25519_public(v), ctx, 1, 2)
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
