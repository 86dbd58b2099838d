"""Who could take part in a run's next round: eligible, within its privacy budget, not at work, not resting.

Called by the run's driver before each round. Who said "not before T" is no candidate until then; who missed rounds in
a row rests (`selection.back_off`). The task's selection draws among those who are left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from aggregator.interfaces import ClientRecord
from aggregator.ledger import Ledger
from aggregator.masked import Choose
from aggregator.means import Means
from aggregator.members import Terms
from aggregator.selection import SELECTIONS, WITHOUT_A_PAST, back_off
from aggregator.selection.draw import Draw, History
from aggregator.store import late, participation, rounds
from aggregator.strategies.base import Strategy
from aggregator.tasks import TaskSettings
from aggregator.wanted import Wanted, wanted

RESTING_TOLD = 200
"""Clients whose rest is written down for each round, at most."""


@dataclass(frozen=True)
class AtHand:
    """Whom a round may draw, in the order of their ids, and what it wants; how many are `busy` on older models.

    `back_off`: for how many rounds more each of those rests who missed some. `spent`: the privacy budget keeps too many
    away, in words.
    """

    records: list[ClientRecord]
    want: Wanted
    busy: int
    back_off: Mapping[str, int]
    spent: str

    @property
    def enough(self) -> bool:
        """Whether a round may begin."""
        return len(self.records) >= self.want.at_hand

    def told(self, resting: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
        """What is written down of it. `resting`: who said "not before T (Unix ms), because R"."""
        return {
            "eligible": len(self.records),
            "resting": len(resting) + len(self.back_off),
            "who_rests": dict(sorted(resting.items())[:RESTING_TOLD]),
            "who_backs_off": dict(sorted(self.back_off.items())[:RESTING_TOLD]),
        }


class Candidates:
    """Of one run."""

    def __init__(
        self,
        means: Means,
        run_id: str,
        settings: TaskSettings,
        strategy: Strategy,
        ledger: Ledger | None,
        least: int,
    ) -> None:
        """`least`: a round does not begin with fewer clients, as its mode has it."""
        self._means = means
        self._run_id = run_id
        self._settings = settings
        self._strategy = strategy
        self._ledger = ledger
        self._least = least

    async def at_hand(self) -> AtHand:
        """For the next training round. Who is still at work on an older model is not among them, but counted."""
        late_rule, run_id = self._strategy.late, self._run_id
        busy, rests = await self._means.database.run(
            lambda c: (late.at_work(c, run_id, late_rule), self._rests(c))
        )
        everybody = [record for record in await self._eligible() if record.client_id not in busy]
        allowed, spent = await self._affordable(everybody)

        def needed(eligible: int) -> int:
            want = self._wanted(eligible, len(busy))
            return max(want.at_hand, min(want.goal, want.wake) if self._settings.cohort.size else 0)

        records, resting = back_off.apart(allowed, rests, needed)
        if spent and len(everybody) < self._wanted(len(everybody), len(busy)).at_hand:
            spent = ""  # they would be too few anyway
        return AtHand(records, self._wanted(len(records), len(busy)), len(busy), resting, spent)

    async def judges(self) -> list[ClientRecord]:
        """For an evaluation on devices."""
        rests = await self._means.database.run(self._rests)
        devices = self._settings.evaluation.devices
        return back_off.apart(await self._eligible(), rests, lambda _: devices)[0]

    async def choice(self, terms: Terms, records: Sequence[ClientRecord]) -> Choose:
        """How the task draws among these for this round."""
        name, run_id = self._settings.cohort.selection, terms.run_id
        histories: Mapping[str, History] = {}
        gains: Sequence[float] = ()
        if name not in WITHOUT_A_PAST:
            histories, gains = await self._means.database.run(
                lambda c: (participation.histories(c, run_id), participation.gains(c, run_id))
            )
        progress = terms.model_version / self._settings.rounds

        def choose(count: int, randomness: bytes) -> list[str]:
            draw = Draw(count, randomness, terms.number, progress, histories, gains)
            return SELECTIONS[name](records, draw)

        return choose

    async def _eligible(self) -> list[ClientRecord]:
        now, admits = self._means.clock(), self._settings.cohort.admits
        clients = await self._means.fleet.eligible()
        return [record for record in clients if record.not_before_ms <= now and admits(record.labels)]

    def _rests(self, connection: Connection) -> dict[str, int]:
        number = rounds.next_number(connection, self._run_id)
        missed = participation.missed(connection, self._run_id)
        return {client_id: back_off.rests(each, number) for client_id, each in missed.items()}

    async def _affordable(self, records: list[ClientRecord]) -> tuple[list[ClientRecord], str]:
        """Who may take part in one more round as far as privacy goes, and why not all."""
        if self._ledger is None:
            return records, ""
        allowed = await self._ledger.allowed(records)
        return list(allowed.records), allowed.why

    def _wanted(self, eligible: int, busy: int) -> Wanted:
        return wanted(self._settings.cohort, self._strategy, eligible, busy, self._least)
