"""The participant's lock: one at a time, a moment's patience, and no other error taken for it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edge_runtime.alone import alone
from fedless.protocol.errors import Code, LocalError


def test_a_second_participant_is_refused(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(LocalError) as caught, alone(tmp_path):
        pass
    assert caught.value.code is Code.BUSY


def test_one_that_is_just_leaving_is_waited_for(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with alone(tmp_path):
            entered.set()
            leave.wait(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(5)
    with alone(tmp_path):
        pass
    thread.join()


def test_errors_of_the_work_itself_go_through(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), alone(tmp_path):
        raise BlockingIOError
