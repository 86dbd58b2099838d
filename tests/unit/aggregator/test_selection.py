"""Selection: who is drawn, and how often."""

from __future__ import annotations

from collections import Counter

from aggregator.interfaces import ClientRecord
from aggregator.selection import SELECTIONS

RECORDS = [ClientRecord(f"client-{number}") for number in range(10)]


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
