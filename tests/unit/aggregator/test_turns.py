"""Cohorts that are unmasked at once: each gets its turn, also after one that cannot be opened."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from aggregator.unmasking import Turns
from fedless.protocol.crypto import Prg
from fedless.protocol.errors import Code, PeerError
from fedless.protocol.prg import Words, apply_streams
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.recovery import Recovery
from fedless.protocol.secagg.server import ServerRound
from tests.secagg_fleet import Fleet

SEEDS = tuple(bytes([number]) * 32 for number in range(4))
MOST_S = 30.0


def closed(fleet: Fleet) -> ServerRound:
    """A round that did not ask for shares: nothing can be recovered."""
    encoding = ring.plan(n=fleet.n, dimension=8, clip=1.0, max_examples=10)
    return ServerRound(dataclasses.replace(fleet.opening(encoding), prg=Prg.AES), bytes(32))


def masked(word: int, seeds: Sequence[bytes]) -> Words:
    words: Words = np.full(1000, word, np.uint32)
    apply_streams(words, Prg.AES, plus=seeds)
    return words


async def test_whoever_cannot_be_opened_takes_no_turn_from_others() -> None:
    fleet, turns = Fleet(8).set_up(), Turns(cores=2)
    round_ = closed(fleet)
    refused = await asyncio.wait_for(
        asyncio.gather(*(turns.recover(fleet.server, round_) for _ in range(5)), return_exceptions=True),
        MOST_S,
    )
    assert [e.code for e in refused if isinstance(e, PeerError)] == [Code.WRONG_STATE] * 5


async def test_streams_of_more_cohorts_than_cores_are_all_taken_off() -> None:
    fleet, turns = Fleet(8).set_up(), Turns(cores=2)
    round_, recovery = closed(fleet), Recovery(plus=(), minus=SEEDS, suspects=())
    totals = [masked(number, SEEDS) for number in range(5)]
    works = [turns.remove_masks(round_, recovery, total) for total in totals]
    await asyncio.wait_for(asyncio.gather(*works), MOST_S)
    assert [set(total.tolist()) for total in totals] == [{number} for number in range(5)]


async def test_a_cohort_that_is_stopped_gives_its_turn_back() -> None:
    fleet, turns = Fleet(8).set_up(), Turns(cores=1)
    round_, recovery = closed(fleet), Recovery(plus=(), minus=SEEDS * 100, suspects=())
    long: Words = np.zeros(1_000_000, np.uint32)
    stopped = asyncio.create_task(turns.remove_masks(round_, recovery, long))
    await asyncio.sleep(0)
    stopped.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopped
    short = masked(0, SEEDS[:1])
    await asyncio.wait_for(turns.remove_masks(round_, Recovery((), SEEDS[:1], ()), short), MOST_S)
    assert not short.any()
