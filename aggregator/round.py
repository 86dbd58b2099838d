"""*Pure.* The round's automaton: state, event, time -> state, effects.

`Round.handle` first looks whether the event is refused (`REFUSALS`), then takes the first transition of
`TABLE` that fits. Guards are the named functions of `guards.py`, actions those below. A client that is
lost is an effect and a loss with a name, never an exception: one bad report does not stop a round.
docs/rounds.md shows all tables. Driven by `coordinator.py`; a masked round has a phase more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from aggregator import events as e
from aggregator import guards as g
from aggregator.members import OPEN, Loss, Member, Phase, Stage, State, Terms
from aggregator.staleness import factor
from fedless.protocol.errors import Code


@dataclass(frozen=True)
class Transition:
    """In one of `phases`, `event` with `guard` true: do `action`, go to `to` (None: stay)."""

    phases: tuple[Phase, ...]
    event: type
    guard: Callable[[State, Any], bool]
    action: Callable[[Round, Any, int], list[e.Effect]]
    to: Phase | None


class Round:
    """One round: its fixed `terms`, its members, its phase. `changed` names members to be saved."""

    def __init__(
        self,
        terms: Terms,
        phase: Phase = Phase.OPENING,
        members: Iterable[Member] = (),
        reason: str = "",
        grace_until_ms: int = 0,
    ) -> None:
        self.state = State(
            terms, phase, reason, grace_until_ms, {member.client_id: member for member in members}
        )
        self.changed: set[str] = set()

    @property
    def terms(self) -> Terms:
        """What was fixed when the round opened."""
        return self.state.terms

    @property
    def phase(self) -> Phase:
        """Where the round is."""
        return self.state.phase

    def handle(self, event: e.Event, now: int) -> list[e.Effect]:
        """Takes one event at the moment `now` (Unix ms); never raises for what a client did."""
        for guard, code in REFUSALS.get(type(event), ()):
            if guard(self.state, event):
                return [refuse(self.state, event, code)]
        for row in MASKED_TABLE if self.terms.is_masked else TABLE:
            if type(event) is row.event and self.state.phase in row.phases and row.guard(self.state, event):
                effects = row.action(self, event, now)
                return effects + (self._enter(row.to, event, now) if row.to else [])
        return []  # a timer that came late, a loss that changes nothing any more

    def again(self) -> list[e.Effect]:
        """After a restart: the effects that may not have been performed, to be performed (again)."""
        state = self.state
        if state.phase is Phase.COMMITTING:
            return [e.CommitModel()]
        if state.phase is Phase.UNMASKING:
            return [e.OpenSum()]
        if state.phase not in OPEN:
            return [e.Erase()]
        sleeping = [m.client_id for m in state.members.values() if m.stage is Stage.SELECTED]
        timers: list[e.Effect] = [e.SetTimer(state.terms.deadline_at_ms, e.DeadlinePassed())]
        if state.phase is Phase.GRACE:
            timers.append(e.SetTimer(state.grace_until_ms, e.GraceEnded()))
        return [*(e.Wake(client_id) for client_id in sleeping), *timers]

    def weight(self, member: Member) -> tuple[float, float]:
        """What a counted report's update is multiplied by, and what it adds to the sum of weights."""
        examples = 0 if member.header is None else member.header.examples
        late = self.terms.late
        if late is None or member.origin is None:
            return examples, examples
        weight = examples * factor(late, self.terms.model_version, member.origin.model_version)
        return weight, weight if late.renormalised else examples

    def put(self, member: Member) -> None:
        """Replaces a member's state."""
        self.state.put(member)
        self.changed.add(member.client_id)

    def _enter(self, phase: Phase, event: e.Event, now: int) -> list[e.Effect]:
        state = self.state
        state.phase = phase
        if phase in {Phase.COMMITTING, Phase.UNMASKING, Phase.ABANDONED}:
            self._lose_the_rest(now, may_come_later=not isinstance(event, e.RoundStopped))
        if phase is Phase.UNMASKING:
            return [e.OpenSum()]
        if phase is Phase.COMMITTING:
            return [e.CommitModel()]
        if phase is Phase.ABANDONED:
            state.reason = why_abandoned(state, event)
        if phase in {Phase.ABANDONED, Phase.COMMITTED}:
            return [e.Erase()]
        return []

    def _lose_the_rest(self, now: int, *, may_come_later: bool) -> None:
        enough = self.state.reported >= self.state.goal
        for member in list(self.state.members.values()):
            if member.is_outstanding and may_come_later and self.terms.late is not None:
                self.put(replace(member, stage=Stage.LATE, settled_at_ms=now))
            elif member.is_outstanding:
                slow = Loss.NEVER_CHECKED_IN if member.stage is Stage.SELECTED else Loss.NEVER_REPORTED
                loss = Loss.SURPLUS if enough else slow
                self.put(replace(member, stage=Stage.LOST, loss=loss, settled_at_ms=now))


# -- actions


def select(round_: Round, event: e.CohortSelected, _now: int) -> list[e.Effect]:
    """Writes down the cohort, and who comes over from the last round."""
    for client_id, nonce in event.nonces.items():
        round_.put(Member(client_id, nonce))
    for member in event.late.values():
        round_.put(member)
    return []


def select_and_wake(round_: Round, event: e.CohortSelected, now: int) -> list[e.Effect]:
    """Wakes everybody of the cohort (a late client again, if it did not come yet), and sets the deadline's timer."""
    select(round_, event, now)
    wakes = [e.Wake(m.client_id) for m in round_.state.members.values() if m.stage is Stage.SELECTED]
    return [*wakes, e.SetTimer(round_.terms.deadline_at_ms, e.DeadlinePassed())]


def admit(round_: Round, event: e.ClientCheckedIn, now: int) -> list[e.Effect]:
    """Admits the client; the same answer to a repeat."""
    member = round_.state.members[event.client_id]
    if member.stage in {Stage.SELECTED, Stage.LOST}:
        since = member.checked_in_at_ms or now
        round_.put(replace(member, stage=Stage.CHECKED_IN, checked_in_at_ms=since, loss="", settled_at_ms=0))
    return [e.Admit(event.client_id)]


def take(round_: Round, event: e.ReportAnnounced | e.UploadBegan, _now: int) -> list[e.Effect]:
    """Takes the upload from where it ended, whether it is new or goes on."""
    member = round_.state.members[event.client_id]
    header = event.header if isinstance(event, e.ReportAnnounced) else member.header
    if header is None:
        raise AssertionError  # `nothing_announced` refused it
    if member.stage is not Stage.ANNOUNCED or member.header != header:
        round_.put(replace(member, stage=Stage.ANNOUNCED, header=header, loss="", settled_at_ms=0))
    return [e.TakeUpload(event.client_id, header)]


def confirm(
    _round: Round, event: e.ReportAnnounced | e.UploadBegan | e.ReportArrived, _now: int
) -> list[e.Effect]:
    """Says again that the report is counted."""
    return [e.Confirm(event.client_id)]


def count(round_: Round, event: e.ReportArrived, now: int) -> list[e.Effect]:
    """Counts the report."""
    member = round_.state.members[event.client_id]
    round_.put(replace(member, stage=Stage.REPORTED, loss="", settled_at_ms=now))
    return [e.AddReport(event.client_id, *round_.weight(member)), e.Confirm(event.client_id)]


def count_and_wait(round_: Round, event: e.ReportArrived, now: int) -> list[e.Effect]:
    """Counts the report that reaches the minimum, and gives the others the grace time."""
    effects = count(round_, event, now)
    state = round_.state
    state.grace_until_ms = g.grace_end(state, now)
    return [*effects, e.SetTimer(state.grace_until_ms, e.GraceEnded())]


def drop(round_: Round, event: e.ReportSpoiled, _now: int) -> list[e.Effect]:
    """Drops bytes that are not the announced ones; those may still come."""
    return [e.DropUpload(event.client_id), refuse(round_.state, event, event.code)]


def spoil(round_: Round, event: e.ReportSpoiled, now: int) -> list[e.Effect]:
    """Drops the bytes; the client is lost, since the announced ones are no update."""
    member = round_.state.members[event.client_id]
    round_.put(replace(member, stage=Stage.LOST, loss=event.code.value, settled_at_ms=now))
    return [e.DropUpload(event.client_id), refuse(round_.state, event, event.code)]


def refuse_head(round_: Round, event: e.HeadRefused, _now: int) -> list[e.Effect]:
    """Says no; the client may still report with a right one."""
    return [refuse(round_.state, event, event.code)]


def lose(round_: Round, event: e.ClientGaveUp, now: int) -> list[e.Effect]:
    """Does not wait for this client any more; it may still report before the round closes."""
    member = round_.state.members[event.client_id]
    round_.put(replace(member, stage=Stage.LOST, loss=event.reason, settled_at_ms=now))
    return []


def nothing(_round: Round, _event: e.Event, _now: int) -> list[e.Effect]:
    """Changes the phase only."""
    return []


def refuse(state: State, event: Any, code: Code) -> e.Refuse:  # noqa: ANN401 - any client's event
    """The refusal, with what was expected and what was found."""
    explain = g.DETAILS.get(code)
    return e.Refuse(event.client_id, code, explain(state, event) if explain else "")


def why_abandoned(state: State, event: e.Event) -> str:
    """One line for people."""
    if isinstance(event, e.RoundStopped):
        return event.reason
    if isinstance(event, e.CohortSelected):
        found = state.size
        return f"{Code.TOO_FEW.value}: {found} clients selected, at least {state.terms.minimum} needed"
    when = "at the deadline" if isinstance(event, e.DeadlinePassed) else "and not enough others left"
    where, count = "", len(state.terms.cohorts)
    if count > 1:
        enough = sum(state.has_enough(at) for at in range(count))
        where = (
            f" in {count} cohorts, of which {enough} can be opened and {state.terms.least_cohorts} must be,"
        )
    return f"{Code.TOO_FEW.value}: {state.reported} reports of at least {state.terms.minimum}{where} {when}"


# -- the tables: first who is refused, then what happens

REFUSALS: Mapping[type, tuple[tuple[Callable[[State, Any], bool], Code], ...]] = {
    e.ClientCheckedIn: (
        (g.not_in_cohort, Code.NOT_IN_COHORT),
        (g.foreign_nonce, Code.TICKET_FOREIGN),
        (g.already_counted, Code.ALREADY_REPORTED),
        (g.between_rounds, Code.BUSY),
        (g.closed, Code.ROUND_CLOSED),
        (g.not_finite_before, Code.NOT_FINITE),
        (g.out_of_range_before, Code.OUT_OF_RANGE),
    ),
    e.ReportAnnounced: (
        (g.not_in_cohort, Code.NOT_IN_COHORT),
        (g.differs_from_announced, Code.CONFLICTING_REPEAT),
        (g.not_finite_before, Code.NOT_FINITE),
        (g.out_of_range_before, Code.OUT_OF_RANGE),
        (g.between_rounds, Code.BUSY),
        (g.closed_uncounted, Code.ROUND_CLOSED),
        (g.never_checked_in, Code.WRONG_STATE),
        (g.wrong_encoding, Code.WRONG_ENCODING),
        (g.wrong_length, Code.WRONG_LENGTH),
        (g.tells_too_much, Code.MALFORMED),
        (g.example_count_out_of_bounds, Code.EXAMPLE_COUNT),
        (g.impossible_sums, Code.OUT_OF_RANGE),
    ),
    e.UploadBegan: (
        (g.not_in_cohort, Code.NOT_IN_COHORT),
        (g.nothing_announced, Code.WRONG_STATE),
        (g.not_finite_before, Code.NOT_FINITE),
        (g.out_of_range_before, Code.OUT_OF_RANGE),
        (g.between_rounds, Code.BUSY),
        (g.closed_uncounted, Code.ROUND_CLOSED),
    ),
    e.ReportArrived: (
        (g.not_in_cohort, Code.NOT_IN_COHORT),
        (g.nothing_announced, Code.WRONG_STATE),
        (g.not_finite_before, Code.NOT_FINITE),
        (g.out_of_range_before, Code.OUT_OF_RANGE),
        (g.between_rounds, Code.BUSY),
        (g.closed_uncounted, Code.ROUND_CLOSED),
    ),
    e.HeadRefused: ((g.not_in_cohort, Code.NOT_IN_COHORT),),
    e.ReportSpoiled: ((g.not_in_cohort, Code.NOT_IN_COHORT),),
    e.ClientGaveUp: ((g.not_in_cohort, Code.NOT_IN_COHORT),),
}

_OPENING, _COLLECTING, _GRACE = (Phase.OPENING,), (Phase.COLLECTING,), (Phase.GRACE,)
_ANY = tuple(Phase)

TABLE: tuple[Transition, ...] = (
    # phases, event, guard, action, to
    Transition(_OPENING, e.CohortSelected, g.cohort_too_small, select, Phase.ABANDONED),
    Transition(_OPENING, e.CohortSelected, g.always, select_and_wake, Phase.COLLECTING),
    Transition(OPEN, e.ClientCheckedIn, g.always, admit, None),
    Transition(_ANY, e.ReportAnnounced, g.already_counted, confirm, None),
    Transition(OPEN, e.ReportAnnounced, g.always, take, None),
    Transition(_ANY, e.UploadBegan, g.already_counted, confirm, None),
    Transition(OPEN, e.UploadBegan, g.always, take, None),
    Transition(_ANY, e.ReportArrived, g.already_counted, confirm, None),
    Transition(OPEN, e.ReportArrived, g.completes, count, Phase.COMMITTING),
    Transition(_COLLECTING, e.ReportArrived, g.reaches_minimum, count_and_wait, Phase.GRACE),
    Transition(OPEN, e.ReportArrived, g.always, count, None),
    Transition(OPEN, e.ReportSpoiled, g.already_counted, nothing, None),
    Transition(OPEN, e.ReportSpoiled, g.only_damaged_on_the_way, drop, None),
    Transition(_COLLECTING, e.ReportSpoiled, g.leaves_too_few, spoil, Phase.ABANDONED),
    Transition(_GRACE, e.ReportSpoiled, g.leaves_nobody_outstanding, spoil, Phase.COMMITTING),
    Transition(OPEN, e.ReportSpoiled, g.always, spoil, None),
    Transition(OPEN, e.ClientGaveUp, g.already_settled, nothing, None),
    Transition(_COLLECTING, e.ClientGaveUp, g.leaves_too_few, lose, Phase.ABANDONED),
    Transition(_GRACE, e.ClientGaveUp, g.leaves_nobody_outstanding, lose, Phase.COMMITTING),
    Transition(OPEN, e.ClientGaveUp, g.always, lose, None),
    Transition(_GRACE, e.GraceEnded, g.always, nothing, Phase.COMMITTING),
    Transition(_GRACE, e.DeadlinePassed, g.always, nothing, Phase.COMMITTING),
    Transition(_COLLECTING, e.DeadlinePassed, g.always, nothing, Phase.ABANDONED),
    Transition((Phase.COMMITTING,), e.ModelCommitted, g.always, nothing, Phase.COMMITTED),
    Transition((*_OPENING, *OPEN, Phase.COMMITTING), e.RoundStopped, g.always, nothing, Phase.ABANDONED),
)

MASKED_TABLE: tuple[Transition, ...] = (
    # The same until reports are closed; then the sum must be opened before there is a model.
    *(replace(row, to=Phase.UNMASKING) if row.to is Phase.COMMITTING else row for row in TABLE[:-2]),
    Transition(_ANY, e.HeadRefused, g.always, refuse_head, None),
    Transition((Phase.UNMASKING,), e.ModelCommitted, g.always, nothing, Phase.COMMITTED),
    Transition((*_OPENING, *OPEN, Phase.UNMASKING), e.RoundStopped, g.always, nothing, Phase.ABANDONED),
)
"""The table of masked rounds."""
