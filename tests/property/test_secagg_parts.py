"""Shamir, ring and codec on anything that hypothesis can think of."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedless.protocol.crypto import Prg
from fedless.protocol.errors import LocalError, PeerError
from fedless.protocol.prg import Words, apply_streams, word_dtype
from fedless.protocol.secagg import codec, ring, shamir
from fedless.protocol.secagg.messages import EpochKeys, RoundOpen, bitmap, chosen
from fedless.protocol.secagg.state import ClientState

SECRETS = st.binary(min_size=32, max_size=32)


@given(
    secret=SECRETS,
    higher=st.lists(st.integers(0, shamir.PRIME - 1), max_size=40),
    points=st.sets(st.integers(1, 128), min_size=41, max_size=60),
    data=st.data(),
)
@settings(deadline=None)
def test_any_t_shares_rebuild_the_secret(
    secret: bytes, higher: list[int], points: set[int], data: st.DataObject
) -> None:
    order = sorted(points)
    shares = dict(zip(order, shamir.split(secret, higher, order), strict=True))
    t = len(higher) + 1
    some = data.draw(st.permutations(order))[:t]
    assert shamir.reconstruct({x: shares[x] for x in some}) == secret


@given(
    bits=st.sampled_from([16, 32]),
    clip=st.floats(1e-3, 1e3),
    max_examples=st.integers(1, 10_000),
    updates=st.lists(
        st.tuples(
            npst.arrays(np.float32, 7, elements=st.floats(-1e6, 1e6, width=32)),
            st.integers(1, 20_000),
            SECRETS,
        ),
        min_size=1,
        max_size=12,
    ),
)
@settings(deadline=None)
def test_sum_of_encodings_is_the_weighted_mean_within_its_resolution(
    bits: int, clip: float, max_examples: int, updates: list[tuple[np.ndarray, int, bytes]]
) -> None:
    n = len(updates)
    try:
        encoding = ring.plan(n=n, dimension=7, bits=bits, clip=clip, max_examples=max_examples)
    except LocalError:
        assume(False)
    total: Words = np.zeros(encoding.words, dtype=word_dtype(bits))
    exact = np.zeros(7)
    weight = 0.0
    for update, examples, seed in updates:
        omega = min(examples, max_examples) / max_examples
        exact += np.clip(update.astype(np.float64), -clip, clip) * omega
        weight += omega
        total += ring.encode(encoding, update.copy(), examples, {}, seed)
    summed = total[:7].view(f"<i{bits // 8}").astype(np.float64) / encoding.scale
    assert np.all(np.abs(summed - exact) <= n / encoding.scale * (1 + 1e-9))
    assert abs(int(total[7]) / encoding.weight_scale - weight) <= n / encoding.weight_scale


@given(members=st.sets(st.integers(1, 128), min_size=1), data=st.data())
def test_bitmaps_are_one_to_one(members: set[int], data: st.DataObject) -> None:
    order = sorted(members)
    some = data.draw(st.sets(st.sampled_from(order)))
    bits = bitmap(order, sorted(some))
    assert set(chosen(order, bits)) == some
    assert bitmap(order, chosen(order, bits)) == bits


@given(plus=st.lists(SECRETS, max_size=4), minus=st.lists(SECRETS, max_size=4), size=st.integers(0, 400))
def test_streams_commute(plus: list[bytes], minus: list[bytes], size: int) -> None:
    one: Words = np.zeros(size, dtype=np.uint32)
    apply_streams(one, Prg.AES, plus, minus)
    other: Words = np.zeros(size, dtype=np.uint32)
    for seed in reversed(minus):
        apply_streams(other, Prg.AES, minus=[seed])
    for seed in reversed(plus):
        apply_streams(other, Prg.AES, plus=[seed])
    assert np.array_equal(one, other)


@given(data=st.binary(max_size=300), kind=st.sampled_from([EpochKeys, RoundOpen, ClientState]))
def test_codec_refuses_or_reads_back_the_same_bytes(
    data: bytes, kind: type[EpochKeys | RoundOpen | ClientState]
) -> None:
    try:
        value = codec.loads(kind, data)
    except PeerError:
        return
    assert codec.dumps(value) == data
