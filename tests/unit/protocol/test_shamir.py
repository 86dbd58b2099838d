"""Shamir's sharing: known answers of protocol.md section 10, and what must be refused."""

from __future__ import annotations

import pytest

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg import shamir

SECRET = bytes(range(32))


def test_known_answers() -> None:
    shares = shamir.split(SECRET, [3, 4, 5], [1, 2, 7, 100])
    assert [share.hex()[-6:] for share in shares] == ["1d1e2b", "1d1e5d", "1d25ab", "6a06cb"]
    assert shares[0].hex() == "00" + SECRET.hex()[:-4] + "1e2b"
    assert all(len(share) == shamir.SHARE_BYTES for share in shares)
    assert shamir.reconstruct(dict(zip([1, 2, 7, 100], shares, strict=True))) == SECRET


def test_prime_is_the_smallest_above_two_to_256() -> None:
    def probably_prime(n: int) -> bool:
        d, s = n - 1, 0
        while d % 2 == 0:
            d, s = d // 2, s + 1
        for a in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
            x = pow(a, d, n)
            if x in {1, n - 1}:
                continue
            for _ in range(s - 1):
                x = x * x % n
                if x == n - 1:
                    break
            else:
                return False
        return True

    assert probably_prime(shamir.PRIME)
    assert not any(probably_prime(2**256 + k) for k in range(1, 297))


def test_fewer_than_the_threshold_fit_every_secret() -> None:
    """Two of three shares are consistent with any secret: a third point at zero always interpolates."""
    shares = dict(zip([1, 2, 3], shamir.split(SECRET, [11, 12], [1, 2, 3]), strict=True))
    other = (int.from_bytes(SECRET, "big") + 12345).to_bytes(32, "big")
    weights = shamir.weights([1, 2, 3])
    known = sum(int.from_bytes(shares[x], "big") * w for x, w in zip([1, 2], weights[:2], strict=True))
    third = (int.from_bytes(other, "big") - known) * pow(weights[2], -1, shamir.PRIME) % shamir.PRIME
    forged = {1: shares[1], 2: shares[2], 3: third.to_bytes(shamir.SHARE_BYTES, "big")}
    assert shamir.reconstruct(forged) == other


def test_coefficients_are_48_bytes_each_below_the_prime() -> None:
    drawn = shamir.coefficients(b"\xff" * 96)
    assert drawn == [(2**384 - 1) % shamir.PRIME] * 2


@pytest.mark.parametrize("share", [b"\xff" * 33, shamir.PRIME.to_bytes(33, "big"), bytes(32), b""])
def test_share_outside_the_field_is_refused(share: bytes) -> None:
    good = shamir.split(SECRET, [3], [1, 2])
    with pytest.raises(PeerError) as refusal:
        shamir.rebuild([good[0], share], shamir.weights([1, 2]))
    assert refusal.value.code is Code.BAD_SHARE


def test_result_longer_than_a_secret_is_refused() -> None:
    high = (2**256 + 5).to_bytes(33, "big")
    with pytest.raises(PeerError) as refusal:
        shamir.rebuild([high], shamir.weights([1]))
    assert refusal.value.code is Code.BAD_SHARE
