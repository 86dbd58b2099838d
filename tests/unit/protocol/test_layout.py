"""Which elements are shared: the same on all clients, and never a personal one among them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedless.protocol import wire
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.layout import Layout, complaint, merged
from fedless.protocol.messages import ClientRule, Task

SIZE = 40
Cells = st.sets(st.integers(0, SIZE - 1), max_size=SIZE - 1)


def layout_of(cells: set[int]) -> Layout:
    return Layout(SIZE, merged([(cell, 1) for cell in cells]))


@given(Cells, st.integers(0, SIZE), st.integers(1, SIZE))
def test_pieces_are_the_shared_elements_in_their_order(cells: set[int], start: int, count: int) -> None:
    layout = layout_of(cells)
    assert complaint(layout) == ""
    shared = [at for at in range(SIZE) if at not in cells]
    assert (layout.own, layout.common) == (len(cells), len(shared))
    found = [at for low, size in layout.pieces(start, count) for at in range(low, low + size)]
    assert found == shared[start : start + count]
    assert [at for low, size in layout.shared for at in range(low, low + size)] == shared


def test_ranges_that_touch_or_overlap_become_one() -> None:
    assert merged([(10, 5), (0, 3), (3, 2), (12, 1), (20, 1)]) == ((0, 5), (10, 5), (20, 1))


@pytest.mark.parametrize(
    "personal",
    [((0, 0),), ((5, 3), (0, 2)), ((0, 3), (2, 2)), ((0, 3), (3, 2)), ((38, 3),), ((-1, 2),), ((0, SIZE),)],
)
def test_a_layout_that_cannot_be_is_refused(personal: tuple[tuple[int, int], ...]) -> None:
    assert complaint(Layout(SIZE, personal))
    task = Task("t", bytes(32), SIZE, personal=personal)
    with pytest.raises(PeerError) as caught:
        wire.task_from_bytes(wire.task_to_bytes(task))
    assert caught.value.code is Code.MALFORMED


def test_a_task_keeps_its_layout_on_the_wire_and_one_without_is_as_it_was() -> None:
    task = Task("t", bytes(32), SIZE, rule=ClientRule(personal_epochs=2), personal=((0, 3), (30, 10)))
    assert wire.task_from_bytes(wire.task_to_bytes(task)) == task
    plain = replace(task, personal=(), rule=ClientRule())
    said: dict[str, Any] = json.loads(wire.task_to_bytes(plain))
    assert "personal" not in said
    assert "personal_epochs" not in said["rule"]
    assert wire.task_from_bytes(wire.task_to_bytes(plain)) == plain


def test_epochs_of_a_personal_part_that_does_not_exist_are_refused() -> None:
    with pytest.raises(PeerError, match="without personal"):
        wire.task_from_bytes(
            wire.task_to_bytes(Task("t", bytes(32), SIZE, rule=ClientRule(personal_epochs=2)))
        )
