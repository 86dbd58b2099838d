"""*Pure.* What happens to a round (events, past tense) and what it wants done (effects, imperative).

The coordinator makes the events and performs the effects; `round.py` decides. Every effect may be
performed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aggregator.members import Member
from fedless.protocol.errors import Code
from fedless.protocol.messages import ReportHeader


@dataclass(frozen=True)
class CohortSelected:
    """The clients of this round, each with the nonce (16 bytes) of its ticket; and who comes over from the last one."""

    nonces: Mapping[str, bytes]
    late: Mapping[str, Member] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientCheckedIn:
    """A client asked to take part; `nonce` is what its ticket said."""

    client_id: str
    nonce: bytes


@dataclass(frozen=True)
class ReportAnnounced:
    """A client said what its report is, before the report's bytes."""

    client_id: str
    header: ReportHeader


@dataclass(frozen=True)
class UploadBegan:
    """A client is about to send (more of) its report's bytes."""

    client_id: str


@dataclass(frozen=True)
class ReportArrived:
    """The report is here, whole, with its digest, in range and durable."""

    client_id: str


@dataclass(frozen=True)
class ReportSpoiled:
    """The bytes are not what was announced (WRONG_DIGEST) or no update (NOT_FINITE, OUT_OF_RANGE)."""

    client_id: str
    code: Code


@dataclass(frozen=True)
class HeadRefused:
    """The signed head of a masked report is not right for this round, for this reason."""

    client_id: str
    code: Code


@dataclass(frozen=True)
class ClientGaveUp:
    """A client's invocation ended without a report, for this reason (a `Code` value)."""

    client_id: str
    reason: str


@dataclass(frozen=True)
class GraceEnded:
    """The time after the minimum was reached is over."""


@dataclass(frozen=True)
class DeadlinePassed:
    """The round's deadline is over."""


@dataclass(frozen=True)
class ModelCommitted:
    """The new model is in the store (or an evaluation's figures are), in this same transaction."""


@dataclass(frozen=True)
class RoundStopped:
    """The round cannot or shall not go on: the operator's wish or a reason of our own."""

    reason: str


ClientEvent = (
    ClientCheckedIn
    | ReportAnnounced
    | HeadRefused
    | UploadBegan
    | ReportArrived
    | ReportSpoiled
    | ClientGaveUp
)
Event = ClientEvent | CohortSelected | GraceEnded | DeadlinePassed | ModelCommitted | RoundStopped


@dataclass(frozen=True)
class Wake:
    """Send the client its ticket."""

    client_id: str


@dataclass(frozen=True)
class SetTimer:
    """Bring this event at this moment (Unix ms)."""

    at_ms: int
    event: GraceEnded | DeadlinePassed


@dataclass(frozen=True)
class Admit:
    """Answer a check-in with the round's offer."""

    client_id: str


@dataclass(frozen=True)
class TakeUpload:
    """Take the report's bytes from where the spool file ends."""

    client_id: str
    header: ReportHeader


@dataclass(frozen=True)
class Confirm:
    """Answer that the report is counted."""

    client_id: str


@dataclass(frozen=True)
class Refuse:
    """Answer no, and count it for this client."""

    client_id: str
    code: Code
    detail: str


@dataclass(frozen=True)
class AddReport:
    """Add the client's spooled report to the running sum, times this weight; it counts as so much in the mean."""

    client_id: str
    weight: float
    counts: float


@dataclass(frozen=True)
class DropUpload:
    """Erase the client's spool file; it is in no sum."""

    client_id: str


@dataclass(frozen=True)
class OpenSum:
    """Take the masks off the sum of a masked round, with the clients' or the helper's help."""


@dataclass(frozen=True)
class CommitModel:
    """Make the new model (or an evaluation's figures) of the sum."""


@dataclass(frozen=True)
class Erase:
    """Erase the round's spool files and its sum."""


Effect = (
    Wake
    | SetTimer
    | Admit
    | TakeUpload
    | Confirm
    | Refuse
    | AddReport
    | DropUpload
    | OpenSum
    | CommitModel
    | Erase
)
