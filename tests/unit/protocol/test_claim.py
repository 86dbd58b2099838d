"""The claim code: parsed from the right, typing errors found, the secret never repeated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedless.protocol.claim import Claim, authority_digest, parse_claim, secret_hash, secret_text
from fedless.protocol.errors import Code, PeerError

AUTHORITY = authority_digest(b"certificate")
SECRET = secret_text(bytes(range(16)))
ADDRESSES = st.sampled_from(["fl.example.org:8443", "10.0.0.7:443", "[::1]:9000", "pi:1"])


@given(ADDRESSES, st.binary(min_size=16, max_size=16), st.binary(max_size=80))
def test_a_claim_survives_printing_and_parsing(address: str, random: bytes, certificate: bytes) -> None:
    claim = Claim(address, authority_digest(certificate), secret_text(random))
    assert parse_claim(f"  {claim.text}\n") == claim
    assert parse_claim(claim.text).secret == secret_text(random)


@given(st.data())
def test_mistyped_claim_is_refused(data: st.DataObject) -> None:
    text = Claim("fl.example.org:8443", AUTHORITY, SECRET).text
    at = data.draw(st.integers(len("fedless1."), len(text) - 1))
    other = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567.").filter(lambda c: c != text[at]))
    with pytest.raises(PeerError) as refused:
        parse_claim(text[:at] + other + text[at + 1 :])
    assert refused.value.code is Code.CLAIM_MALFORMED
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("text", ["", "fedless1", "fedless2.a:1.b.c.d", "x" * 10_000, "fedless1.a:99999..."])
def test_what_is_not_a_claim_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(PeerError, match="Copy the whole line"):
        parse_claim(text)


def test_the_secret_is_in_no_repr_and_is_stored_hashed() -> None:
    claim = Claim("a:1", AUTHORITY, SECRET)
    assert SECRET not in repr(claim)
    assert SECRET.encode() not in secret_hash(SECRET)
    assert len(secret_hash(SECRET)) == 32
    assert secret_hash(SECRET) != secret_hash(SECRET[:-1] + "b")


def test_a_secret_of_another_size_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="16 random bytes"):
        secret_text(b"short")
