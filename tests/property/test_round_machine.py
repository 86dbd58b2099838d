"""The round as a stateful machine: whatever comes in whatever order, nobody is counted twice or without reason."""

from __future__ import annotations

from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aggregator import events as e
from aggregator.members import ENDED, OPEN, Phase, Stage, Terms
from aggregator.round import Round
from fedless.protocol.errors import Code
from fedless.protocol.messages import Encoding, Kind, Mode, ReportHeader

CLIENTS = [f"c{number}" for number in range(5)]
OUTSIDERS = ["stranger"]
START = 1_000_000
client_ids = st.sampled_from(CLIENTS + OUTSIDERS)


def nonce(client_id: str) -> bytes:
    return client_id.encode().ljust(16, b"-")


class RoundMachine(RuleBasedStateMachine):
    """Keeps beside the round what an onlooker who believes nothing would write down."""

    mode: ClassVar[Mode] = Mode.PLAIN
    closed: ClassVar[Phase] = Phase.COMMITTING
    opens: ClassVar[type] = e.CommitModel

    @initialize(goal=st.integers(1, 5), minimum=st.integers(1, 5), grace=st.floats(0, 3))
    def open(self, goal: int, minimum: int, grace: float) -> None:
        self.now = START
        self.terms = Terms(
            1,
            "run",
            1,
            Kind.TRAIN,
            0,
            max(goal, minimum),
            minimum,
            START,
            START + 50_000,
            1,
            100,
            grace,
            mode=self.mode,
        )
        self.round = Round(self.terms)
        self.added: dict[str, float] = {}
        self.commits = 0
        self.phases = [self.round.phase]
        self.apply(e.CohortSelected({client_id: nonce(client_id) for client_id in CLIENTS}))

    def apply(self, event: e.Event) -> list[e.Effect]:
        effects = self.round.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, e.AddReport):
                assert effect.client_id not in self.added, "counted twice"
                self.added[effect.client_id] = effect.weight
            self.commits += isinstance(effect, self.opens)
        if self.round.phase is not self.phases[-1]:
            self.phases.append(self.round.phase)
        return effects

    def header(self, good: bool, variant: int) -> ReportHeader:
        examples = 10 if self.mode is Mode.PLAIN else 0
        return ReportHeader(1, Encoding.FLOAT32, 4 if good else 5, bytes([variant]) * 32, examples)

    @rule(client_id=client_ids, own_nonce=st.booleans())
    def check_in(self, client_id: str, own_nonce: bool) -> None:
        effects = self.apply(e.ClientCheckedIn(client_id, nonce(client_id if own_nonce else "other")))
        if client_id in OUTSIDERS or not own_nonce:
            assert isinstance(effects[0], e.Refuse)
        assert len(effects) == 1, "every question has exactly one answer"

    @rule(client_id=client_ids, good=st.booleans(), variant=st.integers(0, 1))
    def announce(self, client_id: str, good: bool, variant: int) -> None:
        effects = self.apply(e.ReportAnnounced(client_id, self.header(good, variant)))
        assert len(effects) == 1
        if not good:
            assert isinstance(effects[0], e.Refuse)

    @rule(client_id=client_ids)
    def arrive(self, client_id: str) -> None:
        before = set(self.added)
        effects = self.apply(e.ReportArrived(client_id))
        confirmed = any(isinstance(effect, e.Confirm) for effect in effects)
        refused = any(isinstance(effect, e.Refuse) for effect in effects)
        assert confirmed != refused
        assert confirmed == (client_id in self.added)
        assert set(self.added) - before <= {client_id}

    @rule(client_id=client_ids, code=st.sampled_from([Code.NOT_FINITE, Code.OUT_OF_RANGE, Code.WRONG_DIGEST]))
    def spoil(self, client_id: str, code: Code) -> None:
        self.apply(e.ReportSpoiled(client_id, code))

    @rule(client_id=client_ids)
    def give_up(self, client_id: str) -> None:
        self.apply(e.ClientGaveUp(client_id, "data_missing"))

    @rule(ms=st.integers(0, 20_000))
    def advance(self, ms: int) -> None:
        self.now += ms

    @rule(event=st.sampled_from([e.GraceEnded(), e.DeadlinePassed()]))
    def timer(self, event: e.Event) -> None:
        self.apply(event)

    @precondition(lambda self: self.round.phase is self.closed)
    @rule()
    def commit(self) -> None:
        assert self.apply(e.ModelCommitted()) == [e.Erase()]

    @rule(chance=st.integers(0, 20))
    def stop(self, chance: int) -> None:
        if chance == 0:
            self.apply(e.RoundStopped("stopped"))

    @rule()
    def crash_and_reload(self) -> None:
        """What the store keeps is all that there is."""
        state = self.round.state
        self.round = Round(
            self.terms, state.phase, list(state.members.values()), state.reason, state.grace_until_ms
        )

    @invariant()
    def the_sum_holds_the_reported_members_exactly(self) -> None:
        if hasattr(self, "round"):
            members = self.round.state.members.values()
            assert {m.client_id for m in members if m.stage is Stage.REPORTED} == set(self.added)
            assert self.round.state.reported == len(self.added)
            assert self.round.state.outstanding == sum(member.is_outstanding for member in members)

    @invariant()
    def a_model_needs_the_minimum(self) -> None:
        if hasattr(self, "round") and self.round.phase in {self.closed, Phase.COMMITTED}:
            assert len(self.added) >= self.terms.minimum
            assert self.commits == 1

    @invariant()
    def phases_only_go_forward(self) -> None:
        if hasattr(self, "phases"):
            order = list(Phase)
            assert [order.index(phase) for phase in self.phases] == sorted(map(order.index, self.phases))

    @invariant()
    def nobody_is_outstanding_once_it_is_closed(self) -> None:
        if hasattr(self, "round") and self.round.phase not in {Phase.OPENING, *OPEN}:
            assert self.round.state.outstanding == 0
            assert all(m.loss or m.stage is Stage.REPORTED for m in self.round.state.members.values())

    @invariant()
    def an_abandoned_round_has_a_reason(self) -> None:
        if hasattr(self, "round") and self.round.phase in ENDED:
            assert bool(self.round.state.reason) == (self.round.phase is Phase.ABANDONED)


class MaskedRoundMachine(RoundMachine):
    """The same with the masked table: nothing is told in the clear, and the sum is opened before there is a model."""

    mode, closed, opens = Mode.PAIRWISE, Phase.UNMASKING, e.OpenSum

    @rule(client_id=client_ids, code=st.sampled_from([Code.BAD_SIGNATURE, Code.BAD_CONTEXT]))
    def refuse_head(self, client_id: str, code: Code) -> None:
        before = self.round.state.reported, self.round.state.outstanding, self.round.phase
        [effect] = self.apply(e.HeadRefused(client_id, code))
        assert isinstance(effect, e.Refuse)
        assert (self.round.state.reported, self.round.state.outstanding, self.round.phase) == before

    @rule(client_id=client_ids)
    def tell_a_count(self, client_id: str) -> None:
        known = self.round.state.members.get(client_id)
        telling = ReportHeader(1, Encoding.FLOAT32, 4, bytes([7]) * 32, 10)
        [effect] = self.apply(e.ReportAnnounced(client_id, telling))
        assert isinstance(effect, e.Refuse)
        assert self.round.state.members.get(client_id) == known

    @invariant()
    def nothing_is_committed_unopened(self) -> None:
        if hasattr(self, "round"):
            assert self.round.phase is not Phase.COMMITTING


TestRound: Any = RoundMachine.TestCase
TestMaskedRound: Any = MaskedRoundMachine.TestCase
