"""*Pure.* What a round knows: its terms, its phase, and each member of its cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from aggregator.privacy import Noise
from aggregator.staleness import Late
from fedless.protocol.messages import Encoding, Kind, Mode, ReportHeader


class Phase(StrEnum):
    """Where a round is. Only masked rounds are ever unmasking."""

    OPENING = "opening"
    COLLECTING = "collecting"
    GRACE = "grace"
    UNMASKING = "unmasking"
    COMMITTING = "committing"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


OPEN = (Phase.COLLECTING, Phase.GRACE)
"""The phases in which reports are taken."""
ENDED = (Phase.COMMITTED, Phase.ABANDONED)


class Stage(StrEnum):
    """How far a client is in this round."""

    SELECTED = "selected"
    CHECKED_IN = "checked_in"
    ANNOUNCED = "announced"
    REPORTED = "reported"
    LATE = "late"  # still at work when the round closed; a later round may count it
    LOST = "lost"


class Loss(StrEnum):
    """Ways to lose a client that are nobody's refusal; the others are named by their `Code`."""

    NEVER_CHECKED_IN = "never_checked_in"
    NEVER_REPORTED = "never_reported"
    SURPLUS = "surplus"  # the round had enough reports without it
    TOO_LATE = "too_late"  # no later round takes it: its model is too old, or its ticket has ended
    COHORT_ABANDONED = "cohort_abandoned"  # it reported, but too few others of its cohort did


@dataclass(frozen=True)
class Cohort:
    """Clients whose masks cancel among themselves: key epoch `epoch`. Fewer than `minimum` reports give no sum."""

    epoch: int
    minimum: int
    clients: tuple[str, ...]


@dataclass(frozen=True)
class Terms:
    """What is fixed when a round opens.

    `goal` reports close it; with at least `minimum` it closes `grace` times the median report time after
    the minimum was reached, or at the deadline; with fewer it is abandoned. `parameters` is P, 0 for an
    evaluation; `max_examples` bounds what one client counts; no coordinate of an update may exceed
    `update_limit` in magnitude. `extra_words` are the coordinates of a masked report beside the parameters.
    An update has `vectors` times P coordinates, and beside it `extras`: names, and the most that each may be of one
    client. `population` is how many clients could have been asked. `privacy` is the noise of a training round under
    differential privacy. `late` says how reports on older models are taken; None: not at all.
    `cohorts` is how a round in pairwise mode is split, with a sum for each (empty: one sum for all); only reports of
    cohorts that can be opened count for `minimum`, and none if these are fewer than `least_cohorts`.
    """

    round_id: int
    run_id: str
    number: int
    kind: Kind
    model_version: int
    goal: int
    minimum: int
    opened_at_ms: int
    deadline_at_ms: int
    parameters: int
    max_examples: int
    grace: float = 1.5
    update_limit: float = 1e6
    mode: Mode = Mode.PLAIN
    encoding: Encoding = Encoding.FLOAT32
    extra_words: int = 0
    vectors: int = 1
    extras: tuple[tuple[str, float], ...] = ()
    population: int = 0
    privacy: Noise | None = None
    cohorts: tuple[Cohort, ...] = ()
    least_cohorts: int = 1
    late: Late | None = None

    @property
    def sums(self) -> int:
        """How many sums the round has."""
        return max(1, len(self.cohorts))

    @property
    def until_ms(self) -> int:
        """Until when its tickets are good (Unix ms): longer than the round, where late reports are added to others."""
        if self.late is None or self.late.counts:
            return self.deadline_at_ms
        return self.deadline_at_ms + self.late.tolerance * (self.deadline_at_ms - self.opened_at_ms)

    @property
    def report_bytes(self) -> int:
        """The exact length of a report's payload."""
        return self.words * self.encoding.word_bytes

    @property
    def words(self) -> int:
        """Coordinates of a report."""
        return self.vectors * self.parameters + self.extra_words

    @property
    def is_masked(self) -> bool:
        """Whether single updates stay hidden from the aggregator."""
        return self.mode is not Mode.PLAIN


@dataclass(frozen=True)
class Origin:
    """The ticket of a member that an earlier round had: that round, its model's version, and its end (Unix ms)."""

    round_id: int
    model_version: int
    until_ms: int


@dataclass(frozen=True)
class Member:
    """One client of the cohort; 0 in a time and "" in `loss` mean "not (yet)". `origin` is None in its own round."""

    client_id: str
    nonce: bytes
    stage: Stage = Stage.SELECTED
    checked_in_at_ms: int = 0
    settled_at_ms: int = 0
    loss: str = ""
    header: ReportHeader | None = None
    origin: Origin | None = None

    @property
    def is_outstanding(self) -> bool:
        """Whether a report may still be hoped for in this round."""
        return self.stage not in {Stage.REPORTED, Stage.LATE, Stage.LOST}


class State:
    """A round's state; changed by `round.py` only. Counts are kept, since cohorts may be large.

    `size`, `reported` and `outstanding` are of the members that count towards goal and minimum.
    """

    def __init__(
        self, terms: Terms, phase: Phase, reason: str, grace_until_ms: int, members: dict[str, Member]
    ) -> None:
        self.terms = terms
        self.phase = phase
        self.reason = reason
        self.grace_until_ms = grace_until_ms
        self._members: dict[str, Member] = {}
        self._cohort_of = {client: at for at, cohort in enumerate(terms.cohorts) for client in cohort.clients}
        self._reported = [0] * terms.sums
        self._outstanding = [0] * terms.sums
        self.size = 0
        for member in members.values():
            self.put(member)

    @property
    def members(self) -> Mapping[str, Member]:
        """The cohort by client id."""
        return self._members

    @property
    def reported(self) -> int:
        """Reports so far."""
        return sum(self._reported)

    @property
    def outstanding(self) -> int:
        """Reports that may still be hoped for."""
        return sum(self._outstanding)

    def cohort_of(self, client_id: str) -> int:
        """In which of the round's sums the client's report is, from 0."""
        return self._cohort_of.get(client_id, 0)

    def counting_with(self, client_id: str = "") -> int:
        """Reports of cohorts that can be opened; with one more of this client."""
        more = self.matters(self._members[client_id]) if client_id else 0
        return self._openable(self._with(self._reported, client_id, more))

    def reachable_without(self, client_id: str) -> int:
        """What `counting_with` can come to if this client gives up."""
        hoped = self._with(self._outstanding, client_id, -self.is_waited_for(self._members[client_id]))
        return self._openable([have + more for have, more in zip(self._reported, hoped, strict=True)])

    def has_enough(self, cohort: int) -> bool:
        """Whether the cohort's sum can be opened."""
        least = self.terms.cohorts[cohort].minimum if self.terms.cohorts else self.terms.minimum
        return self._reported[cohort] >= least

    def _with(self, counts: Sequence[int], client_id: str, more: int) -> list[int]:
        changed = list(counts)
        if client_id:
            changed[self.cohort_of(client_id)] += more
        return changed

    def _openable(self, counts: Sequence[int]) -> int:
        cohorts = self.terms.cohorts
        if not cohorts:
            return sum(counts)
        enough = [count for count, cohort in zip(counts, cohorts, strict=True) if count >= cohort.minimum]
        return sum(enough) if len(enough) >= self.terms.least_cohorts else 0

    @property
    def goal(self) -> int:
        """How many reports close the round."""
        return min(self.terms.goal, self.size)

    def is_waited_for(self, member: Member) -> bool:
        """Whether the round waits for this member's report: not for a late one's that is only added to the others."""
        return member.is_outstanding and self.matters(member)

    def put(self, member: Member) -> None:
        """Adds or replaces a member."""
        old = self._members.get(member.client_id)
        if old is not None:
            self._count(old, -1)
        self._count(member, 1)
        self._members[member.client_id] = member

    def _count(self, member: Member, step: int) -> None:
        if self.matters(member):
            at = self.cohort_of(member.client_id)
            self.size += step
            self._reported[at] += step * (member.stage is Stage.REPORTED)
            self._outstanding[at] += step * member.is_outstanding

    def matters(self, member: Member) -> bool:
        """Whether the member counts towards goal and minimum."""
        return member.origin is None or (self.terms.late is not None and self.terms.late.counts)
