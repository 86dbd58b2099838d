"""Messages that must be refused: at a named step, by a named code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from fedless.protocol.secagg.assembly import inbox_for
from fedless.protocol.secagg.client import context_of
from fedless.protocol.secagg.helper_messages import (
    CloseRequest,
    HelperReport,
)
from fedless.protocol.secagg.messages import (
    RoundOpen,
    UnmaskRequest,
    active_signed,
    alive_signed,
    bitmap,
)
from tests.secagg_fleet import (
    aggregator_sign,
    client_sign,
    counting,
)
from tests.vectors.helper_mode import helper_opening, helper_report, kept_envelopes
from tests.vectors.pairwise import ABSENT_FROM_SHARES, ENCODING, members_before_sharing

T = TypeVar("T")


def changed(value: T, **changes: object) -> T:
    """A message with other fields."""
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def bad_rosters() -> Iterator[dict[str, Any]]:
    """M1 that member 1 must refuse."""
    roster = members_before_sharing().server.sealed_roster

    def sign(**changes: object) -> Any:
        unsigned = changed(roster, **changes)
        return changed(unsigned, signature=aggregator_sign(unsigned.signed))

    def entry(index: int, *, own_signature: bool = True, **changes: object) -> Any:
        other = changed(roster.entries[index - 1], **changes)
        if own_signature:
            other = changed(other, signature=client_sign(index)(other.signed))
        return sign(entries=(*roster.entries[: index - 1], other, *roster.entries[index:]))

    third = roster.entries[2]
    yield bad("duplicated id", "M1", 1, entry(8, client_id=third.client_id), "bad_roster")
    yield bad("duplicated key", "M1", 1, entry(8, channel_key=third.channel_key), "bad_roster")
    yield bad(
        "unsigned key", "M1", 1, entry(8, own_signature=False, channel_key=counting(9)), "bad_signature"
    )
    yield bad("own entry changed", "M1", 1, entry(1, channel_key=counting(9)), "bad_roster")
    yield bad("threshold below policy", "M1", 1, sign(threshold=5), "bad_threshold")
    yield bad("all-zero point", "M1", 1, entry(8, channel_key=bytes(32)), "bad_point")
    yield bad("sparse graph", "M1", 1, sign(neighbours=4), "bad_roster")
    yield bad("not signed", "M1", 1, changed(roster, at_ms=5), "bad_signature")


def bad_rounds() -> Iterator[dict[str, Any]]:
    """M3 to M8 that must be refused when they take the place of the good ones."""
    fleet = members_before_sharing()
    for index in fleet.everyone:
        if index != ABSENT_FROM_SHARES:
            fleet.share(index)
    fleet.activate()
    rh, members = fleet.server.sealed_roster.hash, fleet.server.members
    inbox = inbox_for(fleet.server, 1, fleet.rows)
    yield bad("members not signed", "M3", 1, changed(inbox, members=members[:-1]), "bad_signature")
    few = changed(inbox, members=members[:6], signature=aggregator_sign(active_signed(rh, members[:6])))
    yield bad("fewer than t + 1 members", "M3", 1, few, "too_few")
    yield bad("boxes withheld", "M3", 1, changed(inbox, boxes=inbox.boxes[:3]), "bad_box")
    for index in members:
        fleet.collect(index)
    epoch = fleet.states[1].epochs[0]
    opened = fleet.open(ENCODING).open

    def sign(**changes: object) -> RoundOpen:
        unsigned = changed(opened, **changes)
        return changed(unsigned, signature=aggregator_sign(unsigned.signed(context_of(epoch, unsigned))))

    yield bad("min_alive below t", "M4", 1, sign(min_alive=5), "bad_threshold")
    greedy = changed(ENCODING, scale=2 * ENCODING.scale)
    yield bad("overflow of the ring", "M4", 1, sign(encoding=greedy), "ring_overflow")
    yield bad("not signed", "M4", 1, changed(opened, deadline_at_ms=1), "bad_signature")
    yield bad("another key epoch", "M4", 1, sign(epoch=2), "epoch_stale")
    yield from bad_requests(opened, context_of(epoch, opened), members, sign)


def bad_requests(
    opened: RoundOpen, context: bytes, members: tuple[int, ...], sign: Callable[..., RoundOpen]
) -> Iterator[dict[str, Any]]:
    """M6 for member 1, which reported, and for member 7, which did not."""

    def request(opened: RoundOpen, context: bytes, alive: list[int]) -> UnmaskRequest:
        bits = bitmap(members, alive)
        return UnmaskRequest(opened, bits, aggregator_sign(alive_signed(context, bits)))

    yield bad("fewer than min_alive", "M6", 1, request(opened, context, [1, 2, 4]), "bad_bitmap")
    yield bad("own bit set", "M6", 7, request(opened, context, list(members)), "bad_bitmap")
    good = request(opened, context, [1, 2, 4, 5, 6, 8])
    yield bad("not signed", "M6", 1, changed(good, alive=b"\x3f"), "bad_signature")
    low = sign(min_alive=2)
    yield bad("min_alive below t", "M6", 7, request(low, context, [1, 2]), "bad_threshold")
    yield bad("unused bit set", "M6", 1, changed_bits(context, opened), "bad_bitmap")


def changed_bits(context: bytes, opened: RoundOpen) -> UnmaskRequest:
    """A bitmap with a bit beyond E."""
    return UnmaskRequest(opened, b"\xff", aggregator_sign(alive_signed(context, b"\xff")))


def bad(name: str, step: str, member: int, message: object, code: str) -> dict[str, Any]:
    """One bad vector."""
    return {"name": name, "step": step, "member": member, "message": message, "code": code}


def bad_helper() -> list[dict[str, Any]]:
    """Sets that the helper must refuse: whole (`code`) or by report (`reasons`)."""
    opened, kept = helper_opening(), kept_envelopes()
    heads = [helper_report(opened, i, kept.get(f"client-{i:03d}", b""))[0] for i in (1, 2, 4, 6)]

    def resigned(head: HelperReport, number: int, **changes: object) -> HelperReport:
        other = changed(head, **changes)
        return changed(other, signature=client_sign(number)(other.signed))

    copied = resigned(heads[1], 2, envelope=heads[0].envelope)
    foreign = resigned(heads[1], 2, client_id="client-009")
    unsigned = changed(heads[1], sha256=bytes(32))
    sets: list[tuple[str, tuple[HelperReport, ...], str, dict[str, str]]] = [
        ("below the helper's minimum", tuple(heads[:2]), "too_few", {}),
        ("a client twice", (*heads, heads[0]), "malformed", {}),
        ("envelope of another client", (heads[0], copied, *heads[2:]), "", {"client-002": "bad_box"}),
        ("another client's id", (heads[0], foreign, *heads[2:]), "", {"client-009": "not_in_cohort"}),
        ("not signed", (heads[0], unsigned, *heads[2:]), "", {"client-002": "bad_signature"}),
    ]
    return [
        {
            "name": name,
            "minimum": 3,
            "request": CloseRequest(opened, reports),
            "code": code,
            "reasons": reasons,
        }
        for name, reports, code, reasons in sets
    ]
