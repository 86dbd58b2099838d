"""*Pure.* Which coordinates of the parameter vector the fleet shares, and which are a client's own.

Partial model personalisation: Pillutla et al., Federated Learning with Partial Model Personalization, 2022; the head
of a network in Arivazhagan et al. 2019 (FedPer) and Collins et al. 2021 (FedRep). A task signs the personal ranges, so
all clients of a round have the same ones: an update has the shared coordinates only, in their order, and a report has
no place for a personal one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Range = tuple[int, int]
"""Offset and size, in elements."""
RANGES_MAX = 1024


@dataclass(frozen=True)
class Layout:
    """A vector of `parameters` elements; `personal` ranges rise, do not touch, and leave something to share."""

    parameters: int
    personal: tuple[Range, ...] = ()

    @property
    def own(self) -> int:
        """How many elements are personal."""
        return sum(size for _, size in self.personal)

    @property
    def common(self) -> int:
        """How many elements are shared: the length of an update's vector."""
        return self.parameters - self.own

    @property
    def shared(self) -> tuple[Range, ...]:
        """The ranges between the personal ones."""
        found, at = [], 0
        for offset, size in (*self.personal, (self.parameters, 0)):
            if offset > at:
                found.append((at, offset - at))
            at = offset + size
        return tuple(found)

    def pieces(self, start: int, count: int) -> Iterator[Range]:
        """Where the shared elements number `start` to `start + count` lie in the whole vector, in order."""
        before = 0
        for offset, size in self.shared:
            low, high = max(start, before), min(start + count, before + size)
            if low < high:
                yield offset + low - before, high - low
            before += size


def merged(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """The same elements in as few ranges as there can be."""
    found: list[Range] = []
    for offset, size in sorted(ranges):
        if found and offset <= sum(found[-1]):
            first = found[-1][0]
            found[-1] = (first, max(sum(found[-1]), offset + size) - first)
        else:
            found.append((offset, size))
    return tuple(found)


def complaint(layout: Layout) -> str:
    """What is wrong with a layout that somebody else made; empty: nothing."""
    if len(layout.personal) > RANGES_MAX:
        return f"expected at most {RANGES_MAX} personal ranges, found {len(layout.personal)}"
    end = -1
    for offset, size in layout.personal:
        if size < 1 or offset <= end or offset + size > layout.parameters:
            return f"the personal range of {size} elements at {offset} overlaps, or is not in the vector"
        end = offset + size
    return "" if layout.common else "nothing is left to share"
