"""*Pure.* Which clients of a closed round go over to the next one, and as what; called when that one opens.

They keep their tickets: a late client says the id of its ticket's round as long as it lives, and is answered by the
round that has taken it over. So each of them is in exactly one round that can count it, at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aggregator.members import Loss, Member, Origin, Stage, State, Terms


def taken_over(closed: State, terms: Terms, now: int) -> dict[str, Member]:
    """The late members of a closed round as members of a new one, by id; the others are too late."""
    if terms.late is None:
        return {}
    found = {}
    for member in closed.members.values():
        origin = origin_of(closed.terms, member)
        behind = terms.model_version - origin.model_version
        if member.stage is Stage.LATE and behind <= terms.late.tolerance and origin.until_ms > now:
            found[member.client_id] = _as_it_was(member, origin)
    return found


def leave_behind(closed: State, over: Mapping[str, Member], now: int) -> list[Member]:
    """The late members of a closed round that no later one takes, as lost ones."""
    return [
        replace(member, stage=Stage.LOST, loss=Loss.TOO_LATE, settled_at_ms=now)
        for member in closed.members.values()
        if member.stage is Stage.LATE and member.client_id not in over
    ]


def origin_of(terms: Terms, member: Member) -> Origin:
    """Which round a member's ticket is of, which model it names, and until when it is good."""
    return member.origin or Origin(terms.round_id, terms.model_version, terms.until_ms)


def ticket_terms(terms: Terms, member: Member) -> Terms:
    """The terms that a member's ticket was made from, as far as a ticket or an offer tells them."""
    if member.origin is None:
        return terms
    origin = member.origin
    return replace(
        terms,
        round_id=origin.round_id,
        model_version=origin.model_version,
        deadline_at_ms=origin.until_ms,
        late=None,
    )


def _as_it_was(member: Member, origin: Origin) -> Member:
    stage = Stage.SELECTED
    if member.checked_in_at_ms:
        stage = Stage.CHECKED_IN if member.header is None else Stage.ANNOUNCED
    return replace(member, stage=stage, loss="", settled_at_ms=0, origin=origin)
