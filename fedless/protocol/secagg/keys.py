"""*Pure.* The client's key schedule: everything that is derived from one random chain key per key epoch.

ck_0 is 32 random bytes. c (the channel key) comes from ck_0; s_r (mask key) and b_r (self seed) of slot r
come from ck_r; ck_{r+1} = HKDF(ck_r, "next"), so that erasing ck_r erases slot r and all before it. What M2
needs beside them (polynomials, nonces) comes from ck_0 too: a repeat of M2 is byte-identical.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedless.protocol.crypto import NONCE_BYTES, Label, Prg, hkdf, info, stream_bytes
from fedless.protocol.secagg.shamir import COEFFICIENT_BYTES, coefficients

if TYPE_CHECKING:
    from fedless.protocol.crypto import Agreement


@dataclass(frozen=True)
class SlotSecrets:
    """s_r (X25519 private key) and b_r (self seed) of one slot, 32 bytes each."""

    mask_private: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)


def channel_private(chain_0: bytes) -> bytes:
    """The X25519 key c = HKDF(ck_0, "", I("chan-sk"))."""
    return hkdf(chain_0, info(Label.CHANNEL_KEY))


def slot_secrets(chain: bytes, slot: int) -> SlotSecrets:
    """s_r = HKDF(ck_r, "", I("mask-sk", r)) and b_r = HKDF(ck_r, "", I("self-sk", r))."""
    return SlotSecrets(hkdf(chain, info(Label.MASK_KEY, slot)), hkdf(chain, info(Label.SELF_SEED, slot)))


def advance(chain: bytes, steps: int) -> bytes:
    """ck_{r + steps} from ck_r; ck_{r+1} = HKDF(ck_r, "", I("next"))."""
    for _ in range(steps):
        chain = hkdf(chain, info(Label.NEXT))
    return chain


def polynomial(chain_0: bytes, roster_hash: bytes, slot: int, secret: str, t: int) -> list[int]:
    """The t - 1 higher coefficients that hide s_r (`secret` "mask") or b_r ("self").

    48 bytes each, big-endian, mod p, from AES-256-CTR under HKDF(ck_0, "", I("shamir-coefficients", rh, r,
    secret)). The roster's hash is in it so that no polynomial ever serves two thresholds.
    """
    seed = hkdf(chain_0, info(Label.COEFFICIENTS, roster_hash, slot, secret))
    return coefficients(stream_bytes(Prg.AES, seed, COEFFICIENT_BYTES * (t - 1)))


def box_nonce(chain_0: bytes, receiver: int) -> bytes:
    """The first 12 bytes of HKDF(ck_0, "", I("box-nonce", v)); box keys are fresh per roster and pair."""
    return hkdf(chain_0, info(Label.BOX_NONCE, receiver))[:NONCE_BYTES]


def pair_seed(agree: Agreement, public: bytes, context: bytes, one: int, other: int) -> bytes:
    """HKDF(X25519(s, S'), salt=ctx, I("pair-mask", min, max)): z, the same for both members of the pair.

    `agree`: the `x25519_agreement` of s, which a member has with all its peers.
    """
    pair = info(Label.PAIR_MASK, min(one, other), max(one, other))
    return hkdf(agree(public), pair, salt=context)


def self_mask_seed(self_seed: bytes, context: bytes, index: int) -> bytes:
    """m_i = HKDF(b_i, salt=ctx, I("self-mask", i))."""
    return hkdf(self_seed, info(Label.SELF_MASK, index), salt=context)
