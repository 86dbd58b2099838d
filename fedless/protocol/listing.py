"""*Pure.* Signed lists of whom to trust as JSON values, as their makers keep them in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedless.protocol.trust import TrustKind, TrustList

LISTS_KEPT = 20
"""Of each kind. Who missed more than so many joins again with a claim."""


def lists_of(values: Sequence[Mapping[str, Any]]) -> tuple[TrustList, ...]:
    """Signed lists from JSON values; ValueError, TypeError or KeyError for values that are none."""
    return tuple(
        TrustList(
            TrustKind(each["kind"]),
            int(each["number"]),
            tuple(bytes.fromhex(member) for member in each["members"]),
            bytes.fromhex(each["signed_by"]),
            bytes.fromhex(each["signature"]),
        )
        for each in values
    )


def values_of(lists: Sequence[TrustList]) -> list[dict[str, object]]:
    """The newest of some signed lists, those that are kept, as JSON values."""
    return [
        {
            "kind": each.kind.value,
            "number": each.number,
            "members": [member.hex() for member in each.members],
            "signed_by": each.signed_by.hex(),
            "signature": each.signature.hex(),
        }
        for each in lists[-LISTS_KEPT:]
    ]
