"""*Pure.* The conditions in the tables of `round.py`, and what a refusal says. No guard changes anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from aggregator import events as e
from aggregator.members import OPEN, Stage, State
from fedless.protocol.errors import Code

GRACE_MS_MIN = 1_000
"""Where rounds are short, a busy machine needs longer than the median says."""

ROUNDING = 1 + 1e-6
"""Sums are means times example counts, in floating point."""

# -- about the round


def always(_state: State, _event: e.Event) -> bool:
    """No condition."""
    return True


def cohort_too_small(state: State, event: e.CohortSelected) -> bool:
    """Fewer clients than the minimum of reports."""
    late = len(event.late) if state.terms.late is not None and state.terms.late.counts else 0
    return len(event.nonces) + late < state.terms.minimum


def completes(state: State, event: e.ReportArrived) -> bool:
    """With this report the goal is reached, or the minimum while nobody else is outstanding."""
    return state.reported + state.matters(state.members[event.client_id]) >= state.goal or (
        state.counting_with(event.client_id) >= state.terms.minimum
        and _others_outstanding(state, event.client_id) == 0
    )


def reaches_minimum(state: State, event: e.ReportArrived) -> bool:
    """With this report there are as many as the minimum, of cohorts that can be opened."""
    return state.counting_with(event.client_id) >= state.terms.minimum


def leaves_too_few(state: State, event: e.ReportSpoiled | e.ClientGaveUp) -> bool:
    """Without this client the minimum cannot be reached any more."""
    return state.reachable_without(event.client_id) < state.terms.minimum


def leaves_nobody_outstanding(state: State, event: e.ReportSpoiled | e.ClientGaveUp) -> bool:
    """Without this client there is nobody left to wait for."""
    return _others_outstanding(state, event.client_id) == 0


def grace_end(state: State, now: int) -> int:
    """When the grace time ends: `grace` times the median time to a report, at most the deadline."""
    opened = state.terms.opened_at_ms
    times = [
        member.settled_at_ms - opened
        for member in state.members.values()
        if member.stage is Stage.REPORTED and state.matters(member)
    ]
    grace_ms = max(math.ceil(state.terms.grace * median(times)), GRACE_MS_MIN)
    return min(now + grace_ms, state.terms.deadline_at_ms)


def _others_outstanding(state: State, client_id: str) -> int:
    return state.outstanding - state.is_waited_for(state.members[client_id])


# -- about the client


def not_in_cohort(state: State, event: e.ClientEvent) -> bool:
    """The client was not selected for this round."""
    return event.client_id not in state.members


def foreign_nonce(state: State, event: e.ClientCheckedIn) -> bool:
    """The nonce is not that of the ticket that was sent to this client."""
    return state.members[event.client_id].nonce != event.nonce


def closed(state: State, _event: e.ClientEvent) -> bool:
    """The round takes no more reports."""
    return state.phase not in OPEN


def already_counted(state: State, event: e.ClientEvent) -> bool:
    """This client's report is in the sum."""
    return state.members[event.client_id].stage is Stage.REPORTED


def already_settled(state: State, event: e.ClientEvent) -> bool:
    """The client has reported or is lost."""
    return not state.members[event.client_id].is_outstanding


def between_rounds(state: State, event: e.ClientEvent) -> bool:
    """The round is over, and the next one, which may count this client, is not open yet."""
    return state.members[event.client_id].stage is Stage.LATE


def closed_uncounted(state: State, event: e.ClientEvent) -> bool:
    """The round takes no more reports, and this one was not counted."""
    return closed(state, event) and not already_counted(state, event)


def never_checked_in(state: State, event: e.ClientEvent) -> bool:
    """The client reports without having asked to take part."""
    return not state.members[event.client_id].checked_in_at_ms


def nothing_announced(state: State, event: e.ClientEvent) -> bool:
    """There is no header to hold the bytes against."""
    return state.members[event.client_id].header is None


def only_damaged_on_the_way(_state: State, event: e.ReportSpoiled) -> bool:
    """The bytes are not those that were announced, which may be as good as any."""
    return event.code is Code.WRONG_DIGEST


def not_finite_before(state: State, event: e.ClientEvent) -> bool:
    """The announced bytes came before and held NaN or infinite numbers."""
    return state.members[event.client_id].loss == Code.NOT_FINITE.value


def out_of_range_before(state: State, event: e.ClientEvent) -> bool:
    """The announced bytes came before and held absurd numbers."""
    return state.members[event.client_id].loss == Code.OUT_OF_RANGE.value


def differs_from_announced(state: State, event: e.ReportAnnounced) -> bool:
    """The client announced another report before: the first one wins."""
    announced = state.members[event.client_id].header
    return announced is not None and announced != event.header


# -- about the report


def wrong_encoding(state: State, event: e.ReportAnnounced) -> bool:
    """Not the encoding that was offered."""
    return event.header.encoding is not state.terms.encoding


def wrong_length(state: State, event: e.ReportAnnounced) -> bool:
    """Not exactly as long as a report of this round."""
    return event.header.length_bytes != state.terms.report_bytes


def tells_too_much(state: State, event: e.ReportAnnounced) -> bool:
    """A masked report with a count or a sum in the clear."""
    return state.terms.is_masked and bool(event.header.examples or event.header.sums)


def example_count_out_of_bounds(state: State, event: e.ReportAnnounced) -> bool:
    """No example at all, or more than one client may count."""
    return not state.terms.is_masked and not 1 <= event.header.examples <= state.terms.max_examples


def impossible_sums(state: State, event: e.ReportAnnounced) -> bool:
    """More correct examples than examples, or fewer than none; a further coordinate that is missing or too large."""
    sums, examples = event.header.sums, event.header.examples
    most = {} if state.terms.is_masked else dict(state.terms.extras)
    return (
        not 0 <= sums.get("correct", 0.0) <= examples
        or not all(map(math.isfinite, sums.values()))
        or any(not 0 <= sums.get(name, -1.0) <= bound * examples * ROUNDING for name, bound in most.items())
    )


# -- what a refusal says: expected, found

DETAILS: Mapping[Code, Callable[[State, Any], str]] = {
    Code.NOT_IN_COHORT: lambda s, _: f"Round {s.terms.round_id} has {len(s.members)} clients.",
    Code.TICKET_FOREIGN: lambda s, _: (
        f"The nonce is not that of this client's ticket for round {s.terms.round_id}."
    ),
    Code.BUSY: lambda s, _: f"Round {s.terms.round_id} is {s.phase}; the next one will be open in a moment.",
    Code.ROUND_CLOSED: lambda s, _: f"Round {s.terms.round_id} is {s.phase}.",
    Code.CONFLICTING_REPEAT: lambda _s, _e: "The first report that was announced in a round is the only one.",
    Code.WRONG_ENCODING: lambda s, ev: f"Expected {s.terms.encoding.name}, found {ev.header.encoding.name}.",
    Code.WRONG_LENGTH: lambda s, ev: (
        f"Expected {s.terms.report_bytes} bytes, found {ev.header.length_bytes}."
    ),
    Code.MALFORMED: lambda _s, _e: "A masked report tells no count and no sum in the clear.",
    Code.EXAMPLE_COUNT: lambda s, ev: f"Expected 1 to {s.terms.max_examples}, found {ev.header.examples}.",
    Code.WRONG_STATE: lambda _s, ev: (
        "Expected a check-in first."
        if isinstance(ev, e.ReportAnnounced)
        else "Expected the report's header first."
    ),
    Code.OUT_OF_RANGE: lambda s, ev: (
        f"Expected 0 to {ev.header.examples} correct examples, found {ev.header.sums.get('correct', 0.0):g}"
        + "".join(f"; {name} from 0 to {bound:g} for each example" for name, bound in s.terms.extras)
        + "."
        if isinstance(ev, e.ReportAnnounced)
        else f"Expected numbers of at most {s.terms.update_limit:g} in magnitude."
    ),
}
