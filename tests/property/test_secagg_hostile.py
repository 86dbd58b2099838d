"""One client against an aggregator that signs anything, in any order: what it must never give away.

hypothesis draws M4, M6 and M8 for few slots, rounds and models, all validly signed, with crashes in between. Whatever
is refused is refused; over what was answered the invariants of protocol.md section 6 are checked.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from fedless.protocol import crypto
from fedless.protocol.errors import FedlessError
from fedless.protocol.secagg import client
from fedless.protocol.secagg.messages import (
    RoundOpen,
    RoundResult,
    UnmaskRequest,
    alive_signed,
    bitmap,
    chosen,
)
from fedless.protocol.secagg.ring import plan
from fedless.protocol.secagg.shamir import SHARE_BYTES
from fedless.protocol.secagg.state import ClientState
from tests.secagg_fleet import Fleet, aggregator_sign, client_sign, stored, unit_words, verify_aggregator

N, T, SLOTS = 8, 6, 2
ENCODING = plan(n=N, dimension=8, clip=1.0, max_examples=10)
# (slot, round, model, min_alive): few, so that sequences meet the same ones again
OPENED = st.sampled_from([(0, 1, 1, T), (0, 1, 1, 2), (1, 1, 1, T), (1, 2, 2, T)])
SURVIVORS = st.sampled_from([range(1, 8), range(2, 9), range(2, 6)]).map(frozenset)
HONEST = (("join", (0, 1, 1, T)), ("ask", (0, 1, 1, T), frozenset(range(1, 8))))
ANYTHING = st.lists(
    st.one_of(
        st.tuples(st.just("open"), OPENED),
        st.tuples(st.just("join"), OPENED),
        st.tuples(st.just("report"), OPENED),
        st.tuples(st.just("ask"), OPENED, SURVIVORS),
        st.tuples(st.just("end"), OPENED, SURVIVORS | st.just(frozenset())),
    ),
    max_size=16,
)
STEPS = st.builds(lambda begun, rest: [*HONEST[:begun], *rest], st.integers(0, 2), ANYTHING)
"""The first round may have gone well so far; then anything."""


@cache
def ready() -> Fleet:
    return Fleet(N, slots=SLOTS).set_up()


def opening(slot: int, round_id: int, model: int, least: int) -> RoundOpen:
    """M4, signed."""
    fleet = ready()
    opened = dataclasses.replace(
        fleet.opening(ENCODING),
        slot=slot,
        round_id=round_id,
        model_digest=crypto.sha256(b"model %d" % model),
        min_alive=least,
    )
    context = client.context_of(fleet.states[1].epochs[0], opened)
    return dataclasses.replace(opened, signature=aggregator_sign(opened.signed(context)))


class Victim:
    """Client 1, its journal, and everything that it ever sent."""

    def __init__(self) -> None:
        self.state: ClientState = ready().states[1]
        self.reports: dict[int, list[tuple[bytes, bytes]]] = defaultdict(
            list
        )  # slot -> (context, masked bytes)
        self.answers: dict[int, set[tuple[bytes, bytes, bytes]]] = defaultdict(
            set
        )  # slot -> (context, bits, shares)
        self.models: dict[int, bytes] = {}  # slot -> model reported on
        self.order: list[tuple[str, int]] = []

    def keep(self, state: ClientState) -> None:
        self.state = stored(state)

    def step(self, kind: str, opened: RoundOpen, survivors: frozenset[int]) -> None:
        context = client.context_of(ready().states[1].epochs[0], opened)
        bits = bitmap(range(1, N + 1), sorted(survivors))
        if kind == "open":
            self.keep(
                client.accept_round(
                    self.state,
                    opened,
                    model_digest=opened.model_digest,
                    task_digest=opened.task_digest,
                    verify_aggregator=verify_aggregator,
                )
            )
        elif kind == "report":
            words = unit_words(ENCODING, len(self.reports[opened.slot]))
            state, _ = client.mask_report(self.state, opened, words, sign=client_sign(1))
            self.keep(state)
            self.reports[opened.slot].append((context, words.tobytes()))
            self.models[opened.slot] = opened.model_digest
            self.order.append(("report", opened.slot))
        elif kind == "ask":
            request = UnmaskRequest(opened, bits, aggregator_sign(alive_signed(context, bits)))
            state, response = client.answer_unmask(self.state, request, verify_aggregator=verify_aggregator)
            self.keep(state)
            self.answers[opened.slot].add((context, bits, response.shares))
            self.order.append(("answer", opened.slot))
        else:
            unsigned = RoundResult(
                opened.round_id,
                1,
                opened.slot,
                context,
                bits if survivors else b"",
                len(survivors),
                b"",
                "",
                b"",
            )
            result = dataclasses.replace(unsigned, signature=aggregator_sign(unsigned.signed))
            self.keep(client.accept_result(self.state, result, verify_aggregator=verify_aggregator))


@settings(deadline=None, max_examples=400)
@given(steps=STEPS)
def test_client_gives_nothing_away_twice(steps: list[tuple[object, ...]]) -> None:
    victim = Victim()
    for step in steps:
        kind, fields = str(step[0]), step[1]
        assert isinstance(fields, tuple)
        survivors = step[2] if len(step) > 2 else frozenset()
        assert isinstance(survivors, frozenset)
        for part in ("open", "report") if kind == "join" else (kind,):
            before = victim.state
            try:
                victim.step(part, opening(*fields), survivors)
            except FedlessError:
                assert victim.state == before
    check(victim)


def check(victim: Victim) -> None:
    fresh = ready().states[1].epochs[0]
    for reports in victim.reports.values():
        assert len(reports) <= 1, "one report for a slot, ever"
    for slot, answers in victim.answers.items():
        assert len(answers) <= 1, "one list of survivors, one context, one set of shares for a slot, ever"
        for context, bits, shares in answers:
            alive = chosen(range(1, N + 1), bits)
            assert len(alive) >= T
            reported = victim.reports[slot]
            assert 1 not in alive or [known for known, _ in reported] == [context]
            for member in range(1, N + 1):
                at = (member - 1) * SHARE_BYTES
                row = fresh.slots[slot]
                kept = row.self_shares if member in alive else row.mask_shares
                assert shares[at : at + SHARE_BYTES] == kept[at : at + SHARE_BYTES]
    for at, (what, slot) in enumerate(victim.order):
        if what == "report":
            opened_before = [s for kind, s in victim.order[:at] if kind == "answer" and s in victim.models]
            later = [victim.models[s] for s in opened_before if ("report", s) in victim.order[:at]]
            assert victim.models[slot] not in later, (
                "no second report on a model whose sum may have been opened"
            )
            assert all(s <= slot for _, s in victim.order[:at]), "a later slot closes the earlier ones"


def test_hostile_steps_reach_answers_and_reports() -> None:
    """The property would hold of a client that refuses everything."""
    victim = Victim()
    victim.step("open", opening(0, 1, 1, T), frozenset())
    victim.step("report", opening(0, 1, 1, T), frozenset())
    victim.step("ask", opening(0, 1, 1, T), frozenset(range(1, 8)))
    victim.step("ask", opening(1, 2, 2, T), frozenset(range(2, 9)))
    check(victim)
    assert victim.order == [("report", 0), ("answer", 0), ("answer", 1)]
