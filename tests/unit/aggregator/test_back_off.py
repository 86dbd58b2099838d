"""Back-off: rests that double, and who is taken before a round would have too few."""

from __future__ import annotations

import pytest

from aggregator.interfaces import ClientRecord
from aggregator.selection.back_off import LONGEST, Missed, apart, rests

RECORDS = [ClientRecord(name) for name in ("a", "b", "c", "d")]


@pytest.mark.parametrize(
    ("times", "rested"), [(1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (6, LONGEST), (7, LONGEST), (40, LONGEST)]
)
def test_each_further_missed_round_doubles_the_rest(times: int, rested: int) -> None:
    last = 50
    found = [number for number in range(last + 1, last + 100) if rests(Missed(times, last), number)]
    assert found == list(range(last + 1, last + 1 + rested))
    assert [rests(Missed(times, last), number) for number in found] == list(range(rested, 0, -1))


def test_who_rests_is_no_candidate_while_the_others_are_enough() -> None:
    records, left = apart(RECORDS, {"b": 3, "d": 1}, lambda _: 2)
    assert [record.client_id for record in records] == ["a", "c"]
    assert left == {"b": 3, "d": 1}


def test_who_has_rested_most_is_asked_before_a_round_has_too_few() -> None:
    records, left = apart(RECORDS, {"a": 2, "b": 3, "d": 1}, lambda _: 3)
    assert [record.client_id for record in records] == ["a", "c", "d"]
    assert left == {"b": 3}
    everybody, none = apart(RECORDS, {"a": 1, "b": 1}, lambda _: 9)
    assert (everybody, none) == (RECORDS, {})


def test_a_share_is_of_those_who_are_ready() -> None:
    """What is needed may grow with who could be drawn; it ends with everybody."""
    assert apart(RECORDS, {"a": 1}, lambda ready: ready)[1] == {"a": 1}
    assert apart(RECORDS, {"a": 1, "b": 1}, lambda ready: ready + 1)[1] == {}
