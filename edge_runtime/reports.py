"""*Pure.* What an instance's outcome becomes: the header of a plain report, and what of the payload stays here.

Called by the invocation.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Encoding, Kind, Offer, ReportHeader, Task, Ticket

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.jobs import Outcome


def report(ticket: Ticket, task: Task, offer: Offer, outcome: Outcome) -> ReportHeader:
    """The header; more examples than the task counts are counted as that many, their sums in proportion."""
    check_outcome(outcome, offer.report_bytes)
    counted = min(outcome.examples, task.max_examples)
    share = counted / outcome.examples
    return ReportHeader(
        round_id=ticket.round_id,
        encoding=Encoding.FLOAT32,
        length_bytes=len(outcome.payload),
        sha256=hashlib.sha256(outcome.payload).digest(),
        examples=counted,
        sums={name: value * share for name, value in outcome.sums.items()},
    )


def check_outcome(outcome: Outcome, size: int) -> None:
    """Raises `PeerError(INSTANCE_BAD_RESULT)` for an update that has not `size` bytes, `LocalError(DATA_EMPTY)`."""
    if len(outcome.payload) != size:
        detail = f"Expected an update of {size} bytes, found {len(outcome.payload)}."
        raise PeerError(Code.INSTANCE_BAD_RESULT, detail)
    if outcome.examples < 1:
        raise LocalError(Code.DATA_EMPTY, "No example is left to train on or to evaluate.")


def dimension(ticket: Ticket, task: Task) -> int:
    """Length of the update: an evaluation has none."""
    return task.rule.vectors * task.layout.common if ticket.kind is Kind.TRAIN else 0


def split(payload: bytes | bytearray, size: int) -> tuple[bytes | bytearray, NDArray[np.float32]]:
    """The first `size` bytes, and the float32 numbers behind them."""
    import numpy as np  # noqa: PLC0415  (here and below: a plain round of one vector does without)

    return payload[:size], np.frombuffer(payload, "<f4", offset=size)


def control_change(ticket: Ticket, task: Task, outcome: Outcome) -> NDArray[np.float32] | None:
    """The second half of a SCAFFOLD update, which is masked in a copy only."""
    if ticket.kind is not Kind.TRAIN or not task.rule.control:
        return None
    import numpy as np  # noqa: PLC0415

    check_outcome(outcome, 4 * dimension(ticket, task))
    return np.frombuffer(outcome.payload, "<f4")[task.layout.common :]
