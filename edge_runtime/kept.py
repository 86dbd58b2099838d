"""What a participant works with and one that lingers keeps from wake-up to wake-up: journal, instances, link.

Opened by `participant` for one wake-up, by `linger` for many.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_runtime.functions import Functions
from edge_runtime.journal import FILE, Journal
from edge_runtime.links import Links
from edge_runtime.starts import Starts


@dataclass
class Kept:
    """Of one state directory; `close` at the end."""

    journal: Journal
    starts: Starts
    links: Links

    @classmethod
    def open(cls, state: Path, *, lingers: bool) -> Kept:
        """Raises `LocalError`: STATE_CORRUPT, DISK_FULL."""
        journal = Journal.open(state / FILE)
        try:
            return cls(journal, Starts(state, Functions(state)), Links(lingers))
        except BaseException:
            journal.close()
            raise

    def look(self) -> None:
        """Before another wake-up: a journal that its owner has moved away is not written on. Raises as `open`."""
        if not self.journal.present:
            self.journal.close()
            self.journal = Journal.open(self.journal.path)

    def close(self) -> None:
        """Close all of it; again is fine."""
        self.links.close()
        self.starts.close()
        self.journal.close()
