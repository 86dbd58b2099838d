"""*Pure.* What a round knows: its terms, its phase, and each member of its cohort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from aggregator.privacy import Noise
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
    LOST = "lost"


class Loss(StrEnum):
    """Ways to lose a client that are nobody's refusal; the others are named by their `Code`."""

    NEVER_CHECKED_IN = "never_checked_in"
    NEVER_REPORTED = "never_reported"
    SURPLUS = "surplus"  # the round had enough reports without it


@dataclass(frozen=True)
class Terms:
    """What is fixed when a round opens.

    `goal` reports close it; with at least `minimum` it closes `grace` times the median report time after
    the minimum was reached, or at the deadline; with fewer it is abandoned. `parameters` is P, 0 for an
    evaluation; `max_examples` bounds what one client counts; no coordinate of an update may exceed
    `update_limit` in magnitude. `extra_words` are the coordinates of a masked report beside the parameters.
    An update has `vectors` times P coordinates, and beside it `extras`: names, and the most that each may be of one
    client. `population` is how many clients could have been asked.
    `privacy` is the noise of a training round under differential privacy.
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
class Member:
    """One client of the cohort; 0 in a time and "" in `loss` mean "not (yet)"."""

    client_id: str
    nonce: bytes
    stage: Stage = Stage.SELECTED
    checked_in_at_ms: int = 0
    settled_at_ms: int = 0
    loss: str = ""
    header: ReportHeader | None = None

    @property
    def is_outstanding(self) -> bool:
        """Whether a report may still be hoped for."""
        return self.stage not in {Stage.REPORTED, Stage.LOST}


class State:
    """A round's state; changed by `round.py` only. Counts are kept, since cohorts may be large."""

    def __init__(
        self, terms: Terms, phase: Phase, reason: str, grace_until_ms: int, members: dict[str, Member]
    ) -> None:
        self.terms = terms
        self.phase = phase
        self.reason = reason
        self.grace_until_ms = grace_until_ms
        self._members = members
        self.reported = sum(member.stage is Stage.REPORTED for member in members.values())
        self.outstanding = sum(member.is_outstanding for member in members.values())

    @property
    def members(self) -> Mapping[str, Member]:
        """The cohort by client id."""
        return self._members

    @property
    def goal(self) -> int:
        """How many reports close the round."""
        return min(self.terms.goal, len(self._members))

    def put(self, member: Member) -> None:
        """Adds or replaces a member."""
        old = self._members.get(member.client_id)
        self.reported += (member.stage is Stage.REPORTED) - (old is not None and old.stage is Stage.REPORTED)
        self.outstanding += member.is_outstanding - (old is not None and old.is_outstanding)
        self._members[member.client_id] = member
