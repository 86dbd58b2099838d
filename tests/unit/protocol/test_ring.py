"""The ring: budgets, exactness, bytes on the wire, and every refusal."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.prg import Words, word_dtype
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.ring import Extra, RingEncoding, plan

SEED = bytes(range(32))


def encoded(encoding: RingEncoding, update: list[float], examples: int = 100, **extras: float) -> Words:
    return ring.encode(encoding, np.array(update, dtype=np.float32), examples, extras, SEED)


@pytest.mark.parametrize(
    ("n", "bits", "clip", "scale", "weight_scale"),
    [
        (100, 32, 1.0, 21_474_835, 42_949_672),
        (1000, 32, 1.0, 2_147_482, 4_294_967),
        (100, 16, 1.0, 326, 655),
        (100, 16, 0.01, 32_600, 655),
        (8, 32, 4.0, 67_108_863, 536_870_911),
    ],
)
def test_budget_follows_from_clients_and_bits(
    n: int, bits: int, clip: float, scale: int, weight_scale: int
) -> None:
    found = plan(n=n, dimension=1, bits=bits, clip=clip, max_examples=10)
    assert (found.scale, found.weight_scale) == (scale, weight_scale)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("n", [1, 8, 100, 129])
def test_extreme_updates_of_all_clients_do_not_overflow(n: int, bits: int) -> None:
    encoding = plan(n=n, dimension=2, bits=bits, clip=0.75, max_examples=10, extras=(Extra("loss", 3.0),))
    total: Words = np.zeros(encoding.words, dtype=word_dtype(bits))
    for _ in range(n):
        total += encoded(encoding, [0.75, -0.75], examples=10, loss=3.0)
    decoded = ring.decode(encoding, total, n)
    assert np.allclose(decoded.mean, [0.75, -0.75], atol=2 / encoding.scale)
    assert decoded.weight == pytest.approx(n, rel=1e-6)
    assert decoded.extras["loss"] == pytest.approx(3.0, rel=1e-6)


def test_weights_are_capped_example_counts() -> None:
    encoding = plan(n=2, dimension=1, clip=1.0, max_examples=100)
    total = encoded(encoding, [1.0], examples=25) + encoded(encoding, [0.0], examples=10_000)
    decoded = ring.decode(encoding, total, 2)
    assert decoded.weight == pytest.approx(1.25, rel=1e-6)
    assert decoded.mean[0] == pytest.approx(0.2, rel=1e-6)


def test_rounding_is_stochastic_and_unbiased() -> None:
    encoding = RingEncoding(20_000, 16, clip=1.0, scale=10, weight_scale=100, max_examples=1)
    words = ring.encode(encoding, np.full(20_000, 0.123, dtype=np.float32), 1, {}, SEED)[:-1]
    assert set(words.tolist()) == {1, 2}
    assert float(words.astype(float).mean()) == pytest.approx(1.23, abs=0.015)
    assert np.array_equal(words, ring.encode(encoding, np.full(20_000, 0.123, np.float32), 1, {}, SEED)[:-1])


@pytest.mark.parametrize(
    ("bits", "n", "expected"), [(32, 100, 3.4e-9), (16, 100, 2.4e-4), (16, 1000, 7.8e-4)]
)
def test_error_of_the_mean_is_the_measured_one(bits: int, n: int, expected: float) -> None:
    """RMS error of the mean of n updates, C = 1, weights 0.1 to 1, as stated in protocol.md section 5."""
    encoding = plan(n=n, dimension=500, bits=bits, clip=1.0, max_examples=100)
    generator = np.random.default_rng(1)
    total: Words = np.zeros(encoding.words, dtype=word_dtype(bits))
    exact = np.zeros(500)
    weight = 0.0
    for client in range(n):
        update = generator.uniform(-1, 1, 500).astype(np.float32)
        examples = int(generator.integers(10, 101))
        exact += update.astype(np.float64) * examples / 100
        weight += examples / 100
        total += ring.encode(encoding, update, examples, {}, client.to_bytes(32, "big"))
    signed = total[:500].view(f"<i{bits // 8}").astype(np.float64) / encoding.scale / weight
    error = float(np.sqrt(np.mean((signed - exact / weight) ** 2)))
    assert 0.8 * expected < error < 1.2 * expected


@pytest.mark.parametrize(("bits", "limit"), [(32, 4.05), (16, 2.05)])
def test_bytes_on_the_wire_per_parameter(bits: int, limit: float) -> None:
    parameters = 582_026
    encoding = plan(
        n=100, dimension=parameters, bits=bits, clip=1.0, max_examples=10, extras=(Extra("loss", 1.0),)
    )
    assert encoding.report_bytes / parameters <= limit


def test_ring_overflow_is_refused_with_an_explanation() -> None:
    with pytest.raises(LocalError) as refusal:
        plan(n=40_000, dimension=1, bits=16, clip=1.0, max_examples=1)
    assert refusal.value.code is Code.RING_OVERFLOW
    assert "40000 clients" in str(refusal.value)
    assert "32 bits" in str(refusal.value)
    good = plan(n=100, dimension=1, bits=16, clip=1.0, max_examples=1)
    ring.check(good, 100)
    wrong = dataclasses.replace(good, scale=good.scale + 1)
    for encoding, n in (
        (wrong, 100),
        (good, 101),
        (dataclasses.replace(good, sum_sigma=9.0, uniform=True), 100),
    ):
        with pytest.raises(PeerError) as told:
            ring.check(encoding, n)
        assert told.value.code is Code.RING_OVERFLOW
    with pytest.raises(PeerError) as told:
        ring.check(dataclasses.replace(good, weight_scale=656), 100)
    assert "weights" in str(told.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 24},
        {"scale": 0},
        {"clip": float("nan")},
        {"clip": float("inf")},
        {"clip": 0.0},
        {"l2_clip": -1.0},
        {"sum_sigma": 1.0},
        {"member_sigma": 1.0, "uniform": True},
        {"sum_sigma": 1.0, "uniform": True, "extras": (Extra("loss", 1.0),)},
        {"extras": (Extra("loss", float("nan")),)},
    ],
)
def test_encoding_with_an_unsafe_field_is_refused(changes: dict[str, object]) -> None:
    good = plan(n=10, dimension=1, clip=100.0, max_examples=1)
    with pytest.raises(PeerError) as refusal:
        ring.check(dataclasses.replace(good, **changes), 3)  # type: ignore[arg-type]
    assert refusal.value.code is Code.RING_OVERFLOW


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("l2_clip", [0.0, 1.0])
def test_nan_and_inf_are_refused(bad: float, l2_clip: float) -> None:
    encoding = plan(n=2, dimension=2, clip=1.0, max_examples=1, l2_clip=l2_clip)
    with pytest.raises(LocalError) as refusal:
        encoded(encoding, [0.0, bad])
    assert refusal.value.code is Code.NOT_FINITE


def test_example_count_out_of_range_wrong_length_and_missing_extra_are_refused() -> None:
    encoding = plan(n=2, dimension=2, clip=1.0, max_examples=1, extras=(Extra("loss", 1.0),))
    cases = [([0.0, 0.0], 0, 0.5, Code.EXAMPLE_COUNT), ([0.0], 1, 0.5, Code.WRONG_LENGTH)]
    for update, examples, loss, code in [*cases, ([0.0, 0.0], 1, float("nan"), Code.NOT_FINITE)]:
        with pytest.raises(LocalError) as refusal:
            encoded(encoding, update, examples, loss=loss)
        assert refusal.value.code is code
    with pytest.raises(LocalError):
        encoded(encoding, [0.0, 0.0], 1)


def test_sum_beyond_what_the_survivors_can_make_is_rejected() -> None:
    encoding = plan(n=10, dimension=1, clip=1.0, max_examples=1)
    total = encoded(encoding, [1.0]) + encoded(encoding, [1.0])
    assert ring.decode(encoding, total, 2).mean[0] == pytest.approx(1.0, rel=1e-6)
    for changed in ([total[0] * 2, total[1]], [total[0], total[1] * 2], [total[0], 0]):
        with pytest.raises(PeerError) as refusal:
            ring.decode(encoding, np.array(changed, dtype=np.uint32), 2)
        assert refusal.value.code is Code.OUT_OF_RANGE


def test_noise_is_planned_for_and_added_by_members() -> None:
    encoding = plan(
        n=10, dimension=4000, clip=1.0, max_examples=1, l2_clip=1.0, sum_noise=5.0, member_noise=5.0 / 10**0.5
    )
    assert encoding.uniform
    assert encoding.words == 4000
    ring.check(encoding, 10)
    words = ring.encode(encoding, np.zeros(4000, dtype=np.float32), 1, {}, SEED)
    noise = words.view("<i4").astype(np.float64) / encoding.scale
    assert float(noise.std()) == pytest.approx(5.0 / 10**0.5, rel=0.05)


def test_l2_clip_scales_a_long_update() -> None:
    encoding = plan(n=2, dimension=2, clip=10.0, max_examples=1, l2_clip=1.0)
    decoded = ring.decode(encoding, encoded(encoding, [3.0, 4.0]), 1)
    assert np.allclose(decoded.mean, [0.6, 0.8], atol=1e-6)


def test_evaluation_without_coordinates_decodes_its_extras() -> None:
    encoding = plan(
        n=3, dimension=0, clip=1.0, max_examples=10, extras=(Extra("loss", 8.0), Extra("accuracy", 1.0))
    )
    total = sum(
        (encoded(encoding, [], examples=10, loss=2.0, accuracy=a) for a in (0.25, 0.75)),
        start=np.zeros(3, dtype=np.uint32),
    )
    decoded = ring.decode(encoding, total, 2)
    assert decoded.mean.shape == (0,)
    assert decoded.extras == {"loss": pytest.approx(2.0), "accuracy": pytest.approx(0.5)}


def test_encoding_hash_depends_on_every_field() -> None:
    base = RingEncoding(10, 32, 1.0, 5, 6, 7)
    changes: list[dict[str, object]] = [
        {"dimension": 11},
        {"bits": 16},
        {"clip": 2.0},
        {"scale": 6},
        {"weight_scale": 7},
        {"max_examples": 8},
        {"l2_clip": 1.0},
        {"uniform": True},
        {"member_sigma": 1.0},
        {"helper_sigma": 1.0},
        {"sum_sigma": 1.0},
        {"extras": (Extra("loss", 1.0),)},
        {"extras": (Extra("loss", 2.0),)},
    ]
    assert {next(iter(c)) for c in changes} == {f.name for f in dataclasses.fields(RingEncoding)}
    hashes = {dataclasses.replace(base, **c).hash for c in changes} | {base.hash}  # type: ignore[arg-type]
    assert len(hashes) == len(changes) + 1
