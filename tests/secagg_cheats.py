"""A cheating aggregator, for the attacks on pairwise mode: it signs what an honest one never would."""

from __future__ import annotations

import dataclasses

import pytest

from fedless.protocol.errors import Code, PeerError
from fedless.protocol.secagg import client
from fedless.protocol.secagg.messages import RoundOpen, UnmaskRequest, alive_signed, bitmap
from fedless.protocol.secagg.ring import plan
from fedless.protocol.secagg.server import ServerRound
from tests.secagg_fleet import Fleet, aggregator_sign, unit_words, verify_aggregator

ENCODING = plan(n=8, dimension=8, clip=1.0, max_examples=10)


def signed(fleet: Fleet, opened: RoundOpen) -> RoundOpen:
    """M4 as a cheating aggregator signs it, whatever is in it."""
    context = client.context_of(fleet.states[1].epochs[0], opened)
    return dataclasses.replace(opened, signature=aggregator_sign(opened.signed(context)))


def request_for(fleet: Fleet, opened: RoundOpen, alive: list[int]) -> UnmaskRequest:
    """M6 as a cheating aggregator signs it."""
    context = client.context_of(fleet.states[1].epochs[0], opened)
    bits = bitmap(fleet.server.members, alive)
    return UnmaskRequest(opened, bits, aggregator_sign(alive_signed(context, bits)))


def refused_round(fleet: Fleet, opened: RoundOpen, index: int = 1) -> Code:
    with pytest.raises(PeerError) as refusal:
        fleet.accept_round(index, opened)
    return refusal.value.code


def refused_answer(fleet: Fleet, request: UnmaskRequest, index: int = 1) -> Code:
    with pytest.raises(PeerError) as refusal:
        client.answer_unmask(fleet.states[index], request, verify_aggregator=verify_aggregator)
    return refusal.value.code


def all_reported(fleet: Fleet, *absent: int) -> ServerRound:
    round_ = fleet.open(ENCODING)
    for index in fleet.server.members:
        if index not in absent:
            round_ = fleet.report(round_, index, unit_words(ENCODING, index - 1))
    return round_
