"""Strategies and selection against hand-computed results."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from aggregator import commit
from aggregator.blobs import Blobs
from aggregator.interfaces import ClientRecord
from aggregator.selection import SELECTIONS
from aggregator.strategies import STRATEGIES
from aggregator.uploads import BLOCK, FloatSum
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import ClientRule

RECORDS = [ClientRecord(f"client-{number}") for number in range(10)]


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_next_model_is_the_weighted_mean_of_the_clients_weights(name: str) -> None:
    """McMahan et al. 2017, algorithm 1: w = sum n_k/n w_k, with n = 10, 30 and weights 1 and 2."""
    start = np.array([0.5, 0.0], np.float32)
    first, second = np.array([1.0, 4.0]), np.array([2.0, 8.0])
    total = (10 * (first - start) + 30 * (second - start)).astype(np.float64)
    model = STRATEGIES[name].next_block(start, total, 40)
    assert model.tolist() == [1.75, 7.0]
    assert model.dtype == np.float32


def test_fedprox_needs_its_mu_and_fedavg_must_not_have_one() -> None:
    assert STRATEGIES["fedavg"].complaints(ClientRule()) == []
    assert STRATEGIES["fedprox"].complaints(ClientRule(proximal_mu=0.1)) == []
    assert "found 0" in STRATEGIES["fedprox"].complaints(ClientRule())[0]
    assert "found 0.1" in STRATEGIES["fedavg"].complaints(ClientRule(proximal_mu=0.1))[0]


async def test_a_model_of_several_blocks_is_made_block_by_block(tmp_path: Path) -> None:
    size = 2 * BLOCK + 7
    blobs = Blobs(tmp_path)
    old = np.arange(size, dtype=np.float32)
    digest, _ = await blobs.put_bytes(old.tobytes())
    sum_ = FloatSum(size)
    sum_.total[:] = 4.0
    sum_.weight = 2
    new = commit.next_model(blobs, digest, sum_, STRATEGIES["fedavg"])
    assert np.array_equal(np.fromfile(blobs.path(new), "<f4"), old + 2)
    assert commit.next_model(blobs, digest, sum_, STRATEGIES["fedavg"]) == new, "the same again after a crash"


async def test_initial_weights_are_checked(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    good, _ = await blobs.put_bytes(np.zeros(4, "<f4").tobytes())
    bad, _ = await blobs.put_bytes(np.full(4, np.nan, "<f4").tobytes())
    commit.check_model(blobs, good, 4)
    for digest, parameters, code in ((good, 5, Code.WRONG_LENGTH), (bad, 4, Code.NOT_FINITE)):
        with pytest.raises(PeerError) as refusal:
            commit.check_model(blobs, digest, parameters)
        assert refusal.value.code is code


def test_uniform_selection_draws_without_repetition() -> None:
    chosen = SELECTIONS["uniform"](RECORDS, 4, bytes(32))
    assert len(set(chosen)) == 4
    assert chosen == SELECTIONS["uniform"](RECORDS, 4, bytes(32)), "the same bytes, the same choice"
    assert len(SELECTIONS["uniform"](RECORDS, 99, bytes(32))) == 10
    assert SELECTIONS["uniform"]([], 3, bytes(32)) == []


def test_uniform_selection_is_fair() -> None:
    counts: Counter[str] = Counter()
    for number in range(2000):
        counts.update(SELECTIONS["uniform"](RECORDS, 3, number.to_bytes(32)))
    assert all(abs(count - 600) < 100 for count in counts.values())  # 5 standard deviations
