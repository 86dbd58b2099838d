"""When the agent starts a participant for a new certificate, because no wake-up has led to one.

Two thirds of the certificate's lifetime after it came, and up to a thirtieth later by chance, so that devices that
joined together do not renew together; then, as long as nothing has come of it, after ten minutes, twenty, and so on, at
most six hours. Nothing is sent before. Called by the agent, so it imports nothing but what the agent has anyway.
"""

from __future__ import annotations

import json
import os
import time

FIRST_PAUSE_S, LONGEST_PAUSE_S = 600.0, 21_600.0
NEVER_S = 86_400.0


class Lifetime:
    """Of the certificate in one state directory. Moments are Unix seconds: a certificate ends by the calendar."""

    def __init__(self, state: str) -> None:
        self._path = f"{state}/identity/fleet.json"
        self._issued = (0, 0)
        self._due: float | None = None
        self._tries = 0
        self.look()

    def look(self) -> None:
        """A participant has ended: there may be a new certificate."""
        try:
            with open(self._path, "rb") as file:  # noqa: PTH123 - pathlib costs memory
                values = json.load(file)
            issued = (int(values["issued_at_ms"]), int(values["not_after_ms"]))
        except (OSError, ValueError, KeyError, TypeError):
            return
        if issued != self._issued:
            self._issued, self._tries = issued, 0
            life_s = (issued[1] - issued[0]) / 1000
            self._due = issued[0] / 1000 + life_s * (2 / 3 + _chance() / 30)

    def due_s(self) -> float:
        """In how many seconds it is time; 0: now."""
        return NEVER_S if self._due is None else max(0.0, self._due - time.time())

    def tried(self) -> None:
        """A participant was started for it."""
        pause_s = min(FIRST_PAUSE_S * 2**self._tries, LONGEST_PAUSE_S)
        self._tries = min(self._tries + 1, 16)
        self._due = time.time() + pause_s * (0.5 + _chance() / 2)


def _chance() -> float:
    """From 0 to 1, from the operating system; `random` would cost memory."""
    return int.from_bytes(os.urandom(4), "big") / 2**32
