"""From a closed round to what it gave: the sum is opened, then the next model (or an evaluation's figures) committed.

Called by the run's driver, again after a restart. In masked rounds the sum is opened first, with the help of enough
clients or of the helper; a sum that cannot be opened abandons the round, with the reason. Model n+1, "round
committed" and the end of the masked round are one transaction.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from aggregator import commit
from aggregator import events as e
from aggregator.commit import MeanSum, SingleReports
from aggregator.evaluation import reason
from aggregator.ledger import Ledger, figures, load_seed
from aggregator.masked import MaskedMode
from aggregator.means import Means
from aggregator.members import Phase, Terms
from aggregator.pairwise import Change
from aggregator.privacy import Noise, noised_mean
from aggregator.round import Round
from aggregator.store import privacy as privacy_store
from aggregator.store import rounds, runs
from aggregator.strategies.base import Strategy
from aggregator.strategies.robust import Robust
from aggregator.uploads import ClippedSum, FloatSum, RingSum
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.layout import Layout
from fedless.protocol.messages import Kind
from fedless.protocol.prg import Words

Record = Callable[[Connection], None]


def _nothing_more(_connection: Connection, _terms: Terms) -> None:
    return


PLAIN = Change(_nothing_more, lambda: None)


@dataclass(frozen=True)
class Opened:
    """A round's sum in the clear, its figures, what to record beside the commit, and its further coordinates' means."""

    sum: FloatSum | MeanSum
    figures: Mapping[str, float]
    change: Change
    phases_ms: Mapping[str, float]
    extras: Mapping[str, float]
    reports: int


class Completion:
    """Completes the rounds of one run."""

    def __init__(
        self,
        means: Means,
        strategy: Strategy,
        masked: MaskedMode | None,
        unmask_s: int,
        ledger: Ledger | None = None,
        layout: Layout | None = None,
    ) -> None:
        """`layout`: which part of the model the clients share; None: all of it."""
        self._means = means
        self._layout = layout
        self._ledger = ledger
        self._strategy = strategy
        self._masked = masked
        self._unmask_ms = 1000 * unmask_s

    async def complete(self, round_: Round) -> None:
        """Commits what a closed round gave; does nothing more to one that has ended."""
        if self._masked is not None and round_.phase is Phase.ABANDONED:
            await self._masked.settle(round_)
        if round_.phase not in {Phase.UNMASKING, Phase.COMMITTING}:
            return
        opened = await self._open(round_)
        if opened is None:
            return
        if round_.terms.kind is Kind.TRAIN:
            await self._commit_model(round_, opened)
        else:
            await self._commit_evaluation(round_, opened)

    # -- the sum

    async def _open(self, round_: Round) -> Opened | None:
        try:
            sums, adding_ms = await self._means.coordinator.sums(round_.terms.round_id)
        except LocalError as error:
            if error.code is not Code.STATE_CORRUPT:
                raise
            await self._abandon(round_, error)
            return None
        if not await self._charged(round_):
            return None
        first = sums[0]
        if isinstance(first, RingSum):
            totals = [sum_.total for sum_ in sums if isinstance(sum_, RingSum)]
            return await self._unmask(round_, totals, adding_ms)
        if isinstance(first, ClippedSum) and round_.terms.privacy is not None:
            return await self._add_noise(round_, first, round_.terms.privacy, adding_ms)
        prefix = "train" if round_.terms.kind is Kind.TRAIN else "device"
        figures, reports = commit.figures(round_, prefix), round_.state.reported
        return Opened(first, figures, PLAIN, {"aggregate": adding_ms}, commit.told(round_), reports)

    async def _charged(self, round_: Round) -> bool:
        """Charges a private round before anything of it is opened; one that the budgets do not allow is abandoned."""
        if self._ledger is None:
            return True
        try:
            await self._ledger.charge(round_)
        except PeerError as error:
            await self._abandon(round_, error)
            return False
        return True

    async def _add_noise(self, round_: Round, sum_: ClippedSum, noise: Noise, adding_ms: float) -> Opened:
        """The mean of a plain round with the aggregator's noise: what was there before is not kept."""
        seed = await load_seed(self._means.database, round_.terms.round_id)
        mean, clipped = await asyncio.to_thread(
            noised_mean, noise, sum_.total, sum_.clipped, round(sum_.weight), steps=sum_.steps, seed=seed
        )
        return Opened(
            MeanSum(mean), figures(noise, clipped), PLAIN, {"aggregate": adding_ms}, {}, round_.state.reported
        )

    async def _unmask(self, round_: Round, totals: Sequence[Words], adding_ms: float) -> Opened | None:
        if self._masked is None:
            raise LocalError(Code.INTERNAL, "A masked round in a run without masks.")
        began = time.monotonic()
        try:
            copies = [total.copy() for total in totals]
            unmasked = await self._masked.open_sums(round_, copies, self._unmask_ms)
        except PeerError as error:
            await self._abandon(round_, error)
            return None
        unmask_ms = (time.monotonic() - began) * 1000
        reports, phases = round_.state.reported - unmasked.lost, {"aggregate": adding_ms, "unmask": unmask_ms}
        figures, decoded = commit.masked_figures(round_, unmasked), unmasked.whole
        mean = MeanSum(decoded.mean, cohorts=[part.mean for part in unmasked.means])
        return Opened(mean, figures, unmasked.change, phases, decoded.extras, reports)

    async def _abandon(self, round_: Round, error: PeerError | LocalError) -> None:
        change = PLAIN if self._masked is None else await self._masked.give_up(round_, error.code)
        await self._finish(round_, e.RoundStopped(reason(error)), change, lambda _connection: None)

    # -- the commit

    async def _commit_model(self, round_: Round, opened: Opened) -> None:
        means, terms = self._means, round_.terms
        old = await means.database.run(lambda c: runs.model(c, terms.run_id, terms.model_version))
        began = time.monotonic()
        beside = commit.beside(round_, opened.extras)
        mean = commit.mean_blocks(self._updates(round_, opened.sum), self._strategy, beside)
        model = await asyncio.to_thread(
            commit.next_model, means.blobs, old, mean, self._strategy, terms.round_id, self._layout
        )
        aggregate_ms = opened.phases_ms["aggregate"] + (time.monotonic() - began) * 1000
        phases = commit.times(round_) | dict(opened.phases_ms) | {"aggregate": aggregate_ms}

        def record(connection: Connection) -> None:
            runs.insert_model(connection, terms.run_id, model, means.clock())
            rounds.add_figures(connection, terms.round_id, opened.figures, phases)

        began = time.monotonic()
        await self._finish(round_, e.ModelCommitted(), opened.change, record)
        commit_ms = (time.monotonic() - began) * 1000
        await means.database.run(
            lambda c: rounds.add_figures(c, terms.round_id, phases_ms={"commit": commit_ms})
        )
        await means.tickets.announce(terms.run_id, model)

    def _updates(self, round_: Round, sum_: FloatSum | MeanSum) -> FloatSum | MeanSum | SingleReports:
        """What the strategy makes the mean of: the sum, or the reports behind it, in the order of client ids."""
        if not isinstance(self._strategy, Robust):
            return sum_
        terms = round_.terms
        clients = sorted(member.client_id for member in commit.reported(round_))
        files = [self._means.coordinator.spooled(terms.round_id, client_id) for client_id in clients]
        return SingleReports(files, terms.parameters)

    async def _commit_evaluation(self, round_: Round, opened: Opened) -> None:
        """The figures of an evaluation belong to the training round of the same number."""
        terms = round_.terms
        spread = commit.spread(round_)
        figures = {**opened.figures, **spread, "device_reports": float(opened.reports)}

        def record(connection: Connection) -> None:
            rounds.add_figures(connection, terms.round_id, figures, commit.times(round_))
            trained = rounds.training_round(connection, terms.run_id, terms.number)
            if trained is not None:
                rounds.add_figures(connection, trained, figures)

        await self._finish(round_, e.ModelCommitted(), opened.change, record)

    async def _finish(
        self, round_: Round, event: e.ModelCommitted | e.RoundStopped, change: Change, record: Record
    ) -> None:
        def both(connection: Connection) -> None:
            record(connection)
            if round_.terms.privacy is not None:
                privacy_store.erase_seed(connection, round_.terms.round_id)
            change.record(connection, round_.terms)

        await self._means.coordinator.finish(round_.terms.round_id, event, both)
        change.then()
