"""*Pure.* Which version of the agent runs: the one that came with the system (0), or an update on trial or proved.

An update is on trial until its agent has reached the broker. It may start `TRIES` times, each bounded in time; after
that the one before it comes back, and the update is never taken again.

            staged                starting, tries left
  proved ------------> on trial ----------------------> on trial
    ^                   |      |  starting, none left
    |      proved       |      +----------------------> proved (the one before)
    +-------------------+
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

TRIES = 3


@dataclass(frozen=True)
class Standing:
    """Sequence numbers. `trial`: `current` has yet to prove itself, and was started `tries` times."""

    current: int = 0
    before: int = 0
    trial: bool = False
    tries: int = 0
    newest_seen: int = 0
    given_up: int = 0


def staged(standing: Standing, sequence: int) -> Standing:
    """A newer version is complete on the disk. What comes back if it fails is the last that was proved."""
    before = standing.before if standing.trial else standing.current
    return replace(standing, current=sequence, before=before, trial=True, tries=0, newest_seen=sequence)


def starting(standing: Standing) -> Standing:
    """The agent is about to start: a try is counted, or the version before comes back."""
    if not standing.trial:
        return standing
    return back(standing) if standing.tries >= TRIES else replace(standing, tries=standing.tries + 1)


def back(standing: Standing) -> Standing:
    """The current version is given up."""
    lost = standing.current or standing.given_up
    return replace(standing, current=standing.before, before=0, trial=False, tries=0, given_up=lost)


def proved(standing: Standing) -> Standing:
    """The current version has reached the broker."""
    return replace(standing, trial=False, tries=0)


def to_values(standing: Standing) -> dict[str, object]:
    """For JSON."""
    return asdict(standing)


def from_values(values: Mapping[str, object]) -> Standing:
    """Back from JSON. Raises TypeError or ValueError."""
    known = Standing(**values)  # type: ignore[arg-type]
    for name, value in asdict(known).items():
        if type(value) is not type(getattr(Standing(), name)):
            message = f"{name} is {value!r}"
            raise TypeError(message)
    return known
