"""Asking to take part: "not now" is waited for, but not for ever, and what was waited for is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from edge_runtime import checkin
from edge_runtime.clock import unix_ms
from edge_runtime.link import Link
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.messages import CheckIn, Encoding, Kind, NotNow, Offer, Ticket

OFFER = Offer(b"{}", 1, Encoding.FLOAT32, 4, 1)


class FakeLink:
    """Gives one answer after another, the last one for ever."""

    def __init__(self, answers: Sequence[Offer | NotNow]) -> None:
        self.answers = list(answers)
        self.asked: list[CheckIn] = []

    def check_in(self, request: CheckIn) -> Offer | NotNow:
        self.asked.append(request)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def ticket(left_ms: int = 60_000) -> Ticket:
    return Ticket(
        "f", "c", bytes(32), "run", 7, Kind.TRAIN, bytes(32), 1, bytes(32), (), unix_ms() + left_ms, bytes(16)
    )


def ask(link: FakeLink, left_ms: int = 60_000, **options: Any) -> Offer:
    return checkin.ask(cast("Link", link), ticket(left_ms), b"mark", **options)


def test_an_offer_after_a_few_refusals_is_taken() -> None:
    link = FakeLink([NotNow("busy", 1), NotNow("busy", 1), OFFER])
    assert ask(link) is OFFER
    assert link.asked == [CheckIn(7, bytes(16), b"mark")] * 3


@pytest.mark.parametrize(("holds_s", "rests"), [(0.0, 2), (60.0, 0)])
def test_nothing_is_held_for_a_job_that_does_not_come(holds_s: float, rests: int) -> None:
    rested: list[int] = []
    link = FakeLink([NotNow("busy", 1), NotNow("busy", 1), OFFER])
    assert ask(link, rest=lambda: rested.append(1), holds_s=holds_s) is OFFER
    assert len(rested) == rests


@pytest.mark.parametrize("left_ms", [60_000, 30])
def test_an_aggregator_that_always_says_not_now_is_left_and_what_it_said_is_told(left_ms: int) -> None:
    """By the process's patience, or by the ticket's end, whichever comes first."""
    link = FakeLink([NotNow("busy", 5)])
    with pytest.raises(PeerError) as caught:
        ask(link, left_ms, patience_ms=30 if left_ms > 1000 else 60_000)
    assert caught.value.code is Code.BUSY
    assert caught.value.retry_after_ms == 5
    assert f"said busy, {len(link.asked)} times in 0 s" in caught.value.detail
    assert len(link.asked) > 1


def test_a_ticket_that_has_ended_is_asked_for_once() -> None:
    link = FakeLink([NotNow("busy", 5)])
    with pytest.raises(PeerError):
        ask(link, -1)
    assert len(link.asked) == 1


def test_a_long_pause_is_not_slept_through() -> None:
    link = FakeLink([NotNow("not_now", 3_600_000)])
    with pytest.raises(PeerError) as caught:
        ask(link)
    assert (caught.value.code, caught.value.retry_after_ms) == (Code.NOT_NOW, 3_600_000)
    assert len(link.asked) == 1


def test_a_round_without_this_client_is_no_pause() -> None:
    with pytest.raises(PeerError) as caught:
        ask(FakeLink([NotNow("round_closed", 0)]))
    assert (caught.value.code, caught.value.retry_after_ms) == (Code.ROUND_CLOSED, None)
