"""Partitions: nobody is left out, nobody counted twice, and FedLess's shards are as non-IID as said."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedless.experiments.partition import (
    KINDS,
    Partition,
    dirichlet,
    divide,
    divide_groups,
    iid,
    natural,
    shards,
)
from fedless.protocol.errors import Code, LocalError

LABELS = np.random.default_rng(0).integers(0, 10, 5000)


@pytest.mark.parametrize("kind", KINDS)
@given(clients=st.integers(1, 10), count=st.integers(300, 700), seed=st.integers(0, 2**32 - 1))
def test_no_example_twice_and_no_client_empty(kind: str, clients: int, count: int, seed: int) -> None:
    parts = divide(Partition(kind, shards_per_client=3, alpha=5.0), LABELS[:count], clients, seed)
    together = np.concatenate(parts)
    assert len(parts) == clients
    assert all(part.size for part in parts)
    assert together.size == np.unique(together).size
    assert 0 <= together.min() <= together.max() < count


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_partition_and_another_seed_another(kind: str) -> None:
    def of(seed: int) -> list[bytes]:
        return [part.tobytes() for part in divide(Partition(kind), LABELS, 10, seed)]

    assert of(1) == of(1)
    assert of(1) != of(2)


def test_shards_are_equal_and_hold_few_labels() -> None:
    parts = shards(LABELS, 10, 5, seed=1)
    assert [part.size for part in parts] == [500] * 10
    # A shard of sorted examples holds at most 2 labels unless a label is rarer than a shard.
    labels = [np.unique(LABELS[part]).size for part in parts]
    assert max(labels) <= 10
    assert np.mean(labels) < 7


def test_one_shard_each_of_equally_many_labels_holds_one_label() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10), 500))
    assert [np.unique(labels[part]).size for part in shards(labels, 10, 1, seed=3)] == [1] * 10


def test_partition_is_the_same_on_every_machine() -> None:
    digest = hashlib.sha256(b"".join(part.astype("<i8").tobytes() for part in shards(LABELS, 10, 5, 1)))
    assert digest.hexdigest()[:16] == "e9035108df824c06"


def test_shards_leave_out_what_fills_no_shard() -> None:
    parts = shards(LABELS[:1003], 10, 5, seed=1)
    assert sum(part.size for part in parts) == 1000


def test_iid_parts_differ_by_one_at_most() -> None:
    sizes = [part.size for part in iid(LABELS[:1003], 10, seed=1)]
    assert sum(sizes) == 1003
    assert max(sizes) - min(sizes) == 1


def test_dirichlet_with_small_alpha_is_less_even_than_with_large() -> None:
    def spread(alpha: float) -> float:
        parts = dirichlet(LABELS, 10, alpha, seed=1)
        return float(np.mean([np.bincount(LABELS[part], minlength=10).max() / part.size for part in parts]))

    assert spread(0.1) > 2 * spread(100.0)


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(LocalError) as caught:
        shards(LABELS[:40], 10, 5, seed=1)
    assert caught.value.code is Code.DATA_EMPTY
    assert "50 examples" in caught.value.detail
    with pytest.raises(LocalError, match="at least 10"):
        divide(Partition(), LABELS[:9], 10, seed=1)


def test_dirichlet_that_cannot_serve_everybody_says_so() -> None:
    with pytest.raises(LocalError, match="larger alpha"):
        dirichlet(LABELS[:12], 12, 0.001, seed=1)


def test_natural_partition_divides_nobodys_examples() -> None:
    parts = natural(LABELS, 4, seed=1)
    owners = [set(np.unique(LABELS[part]).tolist()) for part in parts]
    assert sorted(len(each) for each in owners) == [2, 2, 3, 3]
    assert set().union(*owners) == set(range(10))
    assert sum(part.size for part in parts) == LABELS.size


def test_natural_partition_needs_an_owner_for_each_client() -> None:
    with pytest.raises(LocalError, match="11 owners, found 10") as caught:
        divide_groups(Partition("natural"), LABELS, [6, 5], seed=1)
    assert caught.value.code is Code.DATA_EMPTY
