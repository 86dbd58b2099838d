"""Known answers of protocol.md section 10, and every refusal of the primitives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from fedless.protocol import crypto
from fedless.protocol.crypto import Label, Prg
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.prg import apply_streams, expand

U, V = bytes(range(32)), bytes(range(32, 64))
SHARED = "9663aa1da97e848a914a436d04163dfbb89178f107f1b5b77ed3854203382854"
CTX = "cd93a6d6a5dea721ce6e2918861c99d166e91aa2c04100053a8b62f4b58bd8f1"
PAIR = "f8f98d2d53f3449388456565da05b0a26104c904a68dfc015bf7f953ee05a70b"


def test_known_answers_of_the_key_schedule() -> None:
    shared = crypto.x25519_shared(U, crypto.x25519_public(V))
    assert shared.hex() == SHARED
    assert crypto.x25519_shared(V, crypto.x25519_public(U)) == shared
    agree = crypto.x25519_agreement(U)
    assert [agree(crypto.x25519_public(V)) for _ in range(2)] == [shared, shared]
    assert U.hex() not in repr(agree)
    ctx = crypto.digest(
        Label.ROUND_CTX, bytes(32), 0, "round-7", crypto.sha256(b"model"), crypto.sha256(b"cfg")
    )
    assert ctx.hex() == CTX
    pair = crypto.info(Label.PAIR_MASK, 1, 2)
    assert pair.hex() == (
        "6665646c6573732d7361312f706169722d6d61736b00000000080000000000000001000000080000000000000002"
    )
    assert crypto.hkdf(shared, pair, salt=ctx).hex() == PAIR
    assert crypto.hkdf(b"\x07" * 32, crypto.info(Label.SELF_MASK, 1), salt=ctx).hex() == (
        "7661f67b329a1b4efe6e55b1dc1cf37d8cc9059758406b72d6614f87a6ee805f"
    )
    assert crypto.hkdf(shared, crypto.info(Label.SHARE_KEY, 1, 2), salt=bytes(32)).hex() == (
        "6f85fbc27b082896c4e272c04f172ab755e89f870368d521ee12aecb95a38eac"
    )
    commitment = crypto.digest(Label.SELF_COMMIT, "client-1", 1, 0, b"\x07" * 32)
    assert commitment.hex() == "2f1225e8b534d2eb5d7c00c4a86c8b11c15383be85257f6c36a22dc0bd34868b"


@pytest.mark.parametrize(
    ("prg", "first", "million"),
    [
        (
            Prg.AES,
            [3798753081, 23803855, 207771955, 2354767454, 4177553675, 2712933955, 223670636, 2282003246],
            "dd6833283c18eda8710d616c7d6e41b43b550c936ad129f0d8889499a017ec42",
        ),
        (
            Prg.CHACHA,
            [594772984, 2411050385, 3940306565, 409775822, 3914903307, 2049677622, 1986958916, 3973786755],
            "39ad3ee0989e6d6a328d8325c007872151176a89bece985115500b90603d76a6",
        ),
    ],
)
def test_known_answers_of_the_streams(prg: Prg, first: list[int], million: str) -> None:
    words = expand(prg, bytes.fromhex(PAIR), 1_000_000, 32)
    assert words[:8].tolist() == first
    assert crypto.sha256(words.tobytes()).hex() == million
    assert words[:8].tobytes() == crypto.stream_bytes(prg, bytes.fromhex(PAIR), 32)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("dimension", [0, 1, 65_537, 200_001])
def test_streams_added_and_subtracted_cancel(bits: int, dimension: int) -> None:
    words = expand(Prg.AES, U, dimension, bits)
    before = words.copy()
    apply_streams(words, Prg.CHACHA, plus=[U, V], minus=[SHARED.encode()[:32]])
    assert dimension == 0 or not np.array_equal(words, before)
    apply_streams(words, Prg.CHACHA, plus=[SHARED.encode()[:32]], minus=[V, U])
    assert np.array_equal(words, before)


def test_encodings_of_structures_and_lists() -> None:
    assert crypto.enc("ab", b"c") == bytes.fromhex("00000002616200000001") + b"c"
    assert crypto.enc(("a", 1)) == crypto.enc("a", 1)
    assert crypto.enc(["a", "b"]) == crypto.enc(2, "a", "b")
    assert crypto.enc([]) == crypto.enc(0)
    with pytest.raises(LocalError):
        crypto.enc(-1)
    with pytest.raises(LocalError):
        crypto.enc(1 << 64)


def test_labels_are_distinct_and_hold_no_separator() -> None:
    values = [label.value for label in Label]
    assert len(set(values)) == len(values)
    assert all("\x00" not in value and value.isascii() for value in values)


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"short"])
def test_all_zero_x25519_point_is_refused(point: bytes) -> None:
    agree = crypto.x25519_agreement(U)
    for call in (
        lambda: crypto.x25519_shared(U, point),
        lambda: crypto.check_point(point),
        lambda: agree(point),
    ):
        with pytest.raises(PeerError) as refusal:
            call()
        assert refusal.value.code is Code.BAD_POINT
    with pytest.raises(PeerError):
        crypto.hpke_seal(point, b"", b"seed")


def test_sealed_box_that_was_changed_is_refused() -> None:
    box = crypto.seal(U, bytes(12), b"shares", b"context")
    assert crypto.unseal(U, bytes(12), box, b"context") == b"shares"
    wrong = [
        (V, box, b"context"),
        (U, box[:-1] + bytes([box[-1] ^ 1]), b"context"),
        (U, box, b"other"),
        (U, b"", b""),
    ]
    for key, changed, associated in wrong:
        with pytest.raises(PeerError) as refusal:
            crypto.unseal(key, bytes(12), changed, associated)
        assert refusal.value.code is Code.BAD_BOX


def test_hpke_envelope_opens_only_with_its_key_and_context() -> None:
    envelope = crypto.hpke_seal(crypto.x25519_public(U), b"info", V)
    assert len(envelope) == len(V) + crypto.HPKE_OVERHEAD_BYTES
    assert crypto.hpke_open(U, b"info", envelope) == V
    for private, info in ((V, b"info"), (U, b"other")):
        with pytest.raises(PeerError) as refusal:
            crypto.hpke_open(private, info, envelope)
        assert refusal.value.code is Code.BAD_BOX


def test_ecdsa_is_deterministic_and_bound_to_message_and_key() -> None:
    key, other = crypto.p256_private(7), crypto.p256_private(8)
    signature = crypto.ecdsa_sign(key, b"message")
    assert signature == crypto.ecdsa_sign(key, b"message")
    assert crypto.ecdsa_verify(key.public_key(), signature, b"message")
    assert not crypto.ecdsa_verify(key.public_key(), signature, b"massage")
    assert not crypto.ecdsa_verify(other.public_key(), signature, b"message")
    assert not crypto.ecdsa_verify(key.public_key(), b"", b"message")
    der = crypto.p256_public_der(key.public_key())
    assert crypto.p256_public(der).public_numbers() == key.public_key().public_numbers()
    with pytest.raises(PeerError):
        crypto.p256_public(der[:-1])


def test_ed25519_known_answer_and_refusals() -> None:
    # RFC 8032 section 7.1, TEST 2
    private = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = crypto.ed25519_public(private)
    assert public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = crypto.ed25519_sign(private, b"\x72")
    assert signature.hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")
    assert crypto.ed25519_verify(public, signature, b"\x72")
    assert not crypto.ed25519_verify(public, signature, b"\x73")
    assert not crypto.ed25519_verify(b"short", signature, b"\x72")
    assert crypto.key_id(public) == crypto.sha256(public)[:16]


def test_importing_crypto_does_not_import_numpy() -> None:
    code = "import sys, fedless.protocol.crypto; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
