"""*Pure.* Back-off after failures: who missed rounds in a row rests, whichever selection draws.

One missed round costs nothing: a device may have been asleep. After the second in a row it rests for 1 round, after
each further one for twice as long, at most `LONGEST`. Who rests is no candidate, unless the others are too few. Rules
that let clients rest of their own (fedlesscan, apodotiko, oort) draw from who is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aggregator.interfaces import ClientRecord

FREE = 1
LONGEST = 16


@dataclass(frozen=True)
class Missed:
    """So many rounds a client missed one after another, and the number of the last of them."""

    times: int
    last: int


def rests(missed: Missed, number: int) -> int:
    """For how many rounds from round `number` on a client rests; 0: it may be drawn."""
    if missed.times <= FREE:
        return 0
    return max(0, missed.last + min(1 << (missed.times - FREE - 1), LONGEST) - number + 1)


def apart(
    records: Sequence[ClientRecord], resting: Mapping[str, int], needed: Callable[[int], int]
) -> tuple[list[ClientRecord], dict[str, int]]:
    """Who may be drawn, in the order of their ids, and for how many rounds more each of the others rests.

    `needed`: how many a round needs that so many could be drawn for. Who has rested most is taken where they are fewer.
    """
    ready = [record for record in records if not resting.get(record.client_id)]
    waiting = sorted(
        (record for record in records if resting.get(record.client_id)),
        key=lambda record: (-resting[record.client_id], record.client_id),
    )
    while waiting and len(ready) < needed(len(ready)):
        ready.append(waiting.pop())
    left = {record.client_id: resting[record.client_id] for record in waiting}
    return sorted(ready, key=lambda record: record.client_id), left
