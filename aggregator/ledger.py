"""The privacy ledger: what each client has spent, what that is as epsilon, and when to stop.

Called by the run's driver and by completion. One ledger for each client, over all runs of the fleet and only the rounds
that its report was in; the guarantee is the worst one. Devices that come when they like are no Poisson sample, so no
amplification is claimed (q = 1). A round is charged before its sum is opened, and stays charged whatever becomes of it.
Epsilon is dp-accounting's (extra `privacy`): Renyi accounting per round, privacy loss distributions for reports.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from sqlalchemy import Connection

from aggregator.interfaces import ClientRecord, Clock, Random
from aggregator.members import Stage, Terms
from aggregator.privacy import CLIP, CLIPPED_SHARE, EPSILON, EPSILON_PLD, NOISE, Noise, Place, releases
from aggregator.round import Round
from aggregator.sections import PrivacySettings
from aggregator.store import history, rounds, runs
from aggregator.store import privacy as store
from aggregator.store.engine import Database
from aggregator.tasks import TaskSettings
from fedless.protocol.crypto import sha256
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import ClientRule
from fedless.protocol.prg import Words
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.ring import RingEncoding

SLACK = 1.0 + 1e-9
"""Sums of spends are rounded: a budget that is met exactly is met."""
PLD_SPEND_MAX = 25.0
"""Beyond it a privacy loss distribution takes seconds, and an epsilon of a hundred says nothing."""
_HALVINGS = 80


# -- epsilon


def is_installed() -> bool:
    """Whether dp-accounting is here."""
    return find_spec("dp_accounting") is not None


def check_installed() -> None:
    """Raises `LocalError` NOT_INSTALLED without dp-accounting."""
    if not is_installed():
        detail = "A task with [privacy] needs dp-accounting, which is not installed."
        raise LocalError(Code.NOT_INSTALLED, detail, fix="Install fedless[privacy].")


@lru_cache(maxsize=4096)
def epsilon_of(spend: float, delta: float) -> float:
    """Epsilon at `delta` of releases that cost `spend` (the sum of z^-2) together, by Renyi accounting; about 1 ms.

    The first call imports dp-accounting, which takes seconds.
    """
    if spend <= 0:
        return 0.0
    return epsilon(1.0, 1.0 / math.sqrt(spend), 1, delta)


def epsilon_after(rounds_: int, multiplier: float, delta: float, *, spent: float = 0.0) -> float:
    """Epsilon of a client that has `spent` (the sum of z^-2) and reports in `rounds_` more with noise `multiplier`."""
    return epsilon_of(spent + rounds_ / multiplier**2, delta)


def tighter_epsilon_of(spend: float, delta: float) -> float | None:
    """As `epsilon_of` by privacy loss distributions, which is less; about a second. None where that takes too long."""
    if not 0 < spend <= PLD_SPEND_MAX:
        return None
    return epsilon(1.0, 1.0 / math.sqrt(spend), 1, delta, tight=True)


def epsilon(sampling: float, multiplier: float, times: int, delta: float, *, tight: bool = False) -> float:
    """Epsilon at `delta` of `times` Gaussian releases with noise `multiplier`, each of a Poisson sample (1: of all).

    Renyi accounting with dp-accounting's default orders, or (`tight`) privacy loss distributions. Rounds here have
    `sampling` 1; others are for comparison.
    """
    import dp_accounting  # noqa: PLC0415 - five seconds and scipy, which only private tasks need
    from dp_accounting import pld, rdp  # noqa: PLC0415

    event: Any = dp_accounting.GaussianDpEvent(multiplier)
    if sampling < 1:
        event = dp_accounting.PoissonSampledDpEvent(sampling, event)
    accountant: Any = pld.PLDAccountant() if tight else rdp.RdpAccountant()
    return float(accountant.compose(event, times).get_epsilon(delta))


@lru_cache(maxsize=64)
def largest_spend(budget: float, delta: float) -> float:
    """The most that a client may spend for `epsilon_of` to stay within `budget`: by bisection, from below."""
    low, high = 0.0, 1e-6
    while epsilon_of(high, delta) <= budget:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of(middle, delta) <= budget else (low, middle)
    return low


@dataclass(frozen=True)
class Ahead:
    """What a task will have cost a client that has spent nothing before and is in each of `rounds` rounds."""

    rounds: int
    epsilon: float


def foreseen(task: TaskSettings) -> Ahead:
    """How many rounds of a private task its budget allows, at most all, and the epsilon after them; blocks."""
    if task.privacy is None:
        raise AssertionError  # whoever asks looks first
    spend, count = base_noise(task.privacy, task.rule()).spend, task.rounds
    if task.privacy.epsilon:
        count = min(count, int(largest_spend(task.privacy.epsilon, task.privacy.delta) * SLACK / spend))
    return Ahead(count, epsilon_of(count * spend, task.privacy.delta))


@dataclass(frozen=True)
class Statement:
    """One client's ledger: its charges of all runs, what they cost together, and that as epsilon (None: unknown)."""

    client_id: str
    unit: str
    rounds: int
    spend: float
    epsilon: float | None


async def statements(database: Database, delta: float) -> list[Statement]:
    """Every ledger, in order of client ids. Raises `PeerError` OUT_OF_RANGE for a delta that is none."""
    if not 0.0 < delta < 1.0:
        raise PeerError(Code.OUT_OF_RANGE, f"Expected a delta above 0 and below 1, found {delta:g}.")
    found = await database.run(store.counts)

    def say() -> list[Statement]:
        known = is_installed()
        return [
            Statement(client_id, unit, times, spend, epsilon_of(spend, delta) if known else None)
            for (client_id, unit), (times, spend) in found.items()
        ]

    return await asyncio.to_thread(say)


# -- one run's view of the ledger


@dataclass(frozen=True)
class Allowed:
    """Which candidates may take part in one more round, and in words why not all."""

    records: Sequence[ClientRecord]
    why: str


class Ledger:
    """What a private run asks of the ledger."""

    def __init__(
        self, database: Database, task: TaskSettings, run_id: str, *, clock: Clock, random: Random
    ) -> None:
        """Of a run whose task has [privacy]."""
        if task.privacy is None:
            raise AssertionError  # its driver looks first
        self._database = database
        self._settings = task.privacy
        self._base = base_noise(task.privacy, task.rule())
        self._run_id = run_id
        self._clock = clock
        self._random = random

    async def noise(self) -> Noise:
        """The noise of the run's next round; with adaptive clipping the clip follows from the last one's bits."""
        if not self._base.adaptive:
            return self._base
        clip = await self._database.run(lambda c: _clip_after(c, self._run_id, self._base, self._settings))
        return replace(self._base, clip=clip)

    async def allowed(self, candidates: Sequence[ClientRecord]) -> Allowed:
        """The candidates whose ledger stays within the budget with one more round."""
        limit, noise = await self._limit(), self._base
        spent = await self._database.run(lambda c: store.spent(c, noise.unit.value))
        kept = [record for record in candidates if spent.get(record.client_id, 0.0) + noise.spend <= limit]
        if len(kept) == len(candidates):
            return Allowed(kept, "")
        worst = max(spent.get(record.client_id, 0.0) for record in candidates)
        now = await asyncio.to_thread(epsilon_of, worst, self._settings.delta)
        why = (
            f"{Code.PRIVACY_BUDGET.value}: the next round would bring {len(candidates) - len(kept)} of "
            f"{len(candidates)} clients past epsilon {self._settings.epsilon:g} (now {now:.4g} at most, "
            f"delta {self._settings.delta:g})"
        )
        return Allowed(kept, why)

    async def charge(self, round_: Round) -> None:
        """Writes down that everybody who reported in a closed round is about to be in a sum that is opened.

        Raises `PeerError` PRIVACY_BUDGET, and charges nobody, if that would bring one of them past the budget: other
        runs may have spent since the round was opened. Again after a crash: the same.
        """
        terms, noise = round_.terms, round_.terms.privacy
        if noise is None:
            return
        limit, now, seed = await self._limit(), self._clock(), self._random(32)
        members = round_.state.members.values()
        clients = sorted(member.client_id for member in members if member.stage is Stage.REPORTED)

        def work(connection: Connection) -> Mapping[str, float]:
            before = store.spent(connection, noise.unit.value, but=terms.round_id)
            beyond = [each for each in clients if before.get(each, 0.0) + noise.spend > limit]
            if beyond:
                detail = f"{len(beyond)} of {len(clients)} reporters would pass epsilon {self._settings.epsilon:g}."
                raise PeerError(Code.PRIVACY_BUDGET, detail)
            fresh = store.charge(
                connection, terms.round_id, terms.run_id, clients,
                unit=noise.unit.value, spend=noise.spend, at_ms=now,
            )  # fmt: skip
            if fresh:
                facts: dict[str, Any] = {"clients": fresh, "unit": noise.unit.value, "spend": noise.spend}
                history.note(
                    connection, terms.run_id, "privacy_charged", now, round_id=terms.round_id, **facts
                )
            if noise.place is Place.SERVER:
                store.keep_seed(connection, terms.round_id, seed)
            mine = store.clients_of(connection, terms.run_id)
            return {
                each: total
                for each, total in store.spent(connection, noise.unit.value).items()
                if each in mine
            }

        spent = await self._database.run(work)
        worst = max(spent.values(), default=0.0)
        figure = await asyncio.to_thread(epsilon_of, worst, self._settings.delta)
        told = {EPSILON: figure, NOISE: noise.multiplier}
        await self._database.run(lambda c: rounds.add_figures(c, terms.round_id, told))

    async def conclude(self) -> None:
        """At the run's end: epsilon by the tighter accounting, among the figures of its newest round."""

        def look(connection: Connection) -> tuple[int, float]:
            last = rounds.last(connection, self._run_id, 1)
            mine = store.clients_of(connection, self._run_id)
            spent = store.spent(connection, self._base.unit.value)
            return (last[0].round_id if last else 0), max((spent[each] for each in mine), default=0.0)

        round_id, worst = await self._database.run(look)
        figure = await asyncio.to_thread(tighter_epsilon_of, worst, self._settings.delta)
        if round_id and figure is not None:
            await self._database.run(lambda c: rounds.add_figures(c, round_id, {EPSILON_PLD: figure}))

    async def _limit(self) -> float:
        if not self._settings.epsilon:
            await asyncio.to_thread(
                epsilon_of, 1.0, self._settings.delta
            )  # imports it before a round waits for it
            return math.inf
        found = await asyncio.to_thread(largest_spend, self._settings.epsilon, self._settings.delta)
        return found * SLACK


def base_noise(asked: PrivacySettings, rule: ClientRule) -> Noise:
    """The noise of a task's first round, and what each round spends."""
    entered = releases(rule) if asked.place is Place.LOCAL else 1
    return Noise(asked.place, asked.multiplier, asked.clip, asked.adaptive, releases=entered)


def figures(noise: Noise, clipped: float | None) -> dict[str, float]:
    """What a private round may say of itself: everything in it is noised or was fixed before."""
    found = {CLIP: noise.clip}
    return found if clipped is None else found | {CLIPPED_SHARE: clipped}


async def load_seed(database: Database, round_id: int) -> bytes:
    """The seed of the aggregator's noise in a round that was charged and is not committed.

    Raises `LocalError` STATE_CORRUPT.
    """
    seed = await database.run(lambda c: store.load_seed(c, round_id))
    if not seed:
        raise LocalError(Code.STATE_CORRUPT, f"Round {round_id} has no seed for its noise.")
    return seed


async def add_server_noise(
    database: Database, terms: Terms, encoding: RingEncoding, total: Words, context: bytes
) -> None:
    """The aggregator's noise onto an opened sum, in place, where the encoding asks for it.

    `context`: that of the sum (several cohorts of a round have one each), so that each has noise of its own.
    """
    if encoding.server_sigma:
        seed = sha256(await load_seed(database, terms.round_id) + context)
        await asyncio.to_thread(ring.add_server_noise, encoding, total, seed)


def _clip_after(connection: Connection, run_id: str, base: Noise, asked: PrivacySettings) -> float:
    """The clip that follows from the run's newest committed private round; the task's own before there is one."""
    last = rounds.newest_private(connection, run_id)
    if last is None:
        return base.clip
    terms, metrics = last
    if terms.privacy is None or CLIPPED_SHARE not in metrics:
        return base.clip if terms.privacy is None else terms.privacy.clip
    return terms.privacy.next_clip(metrics[CLIPPED_SHARE], asked.quantile, asked.rate)


def charge_worst_case(
    connection: Connection, run_id: str, task: TaskSettings, clients: Collection[str], number: int, at_ms: int
) -> int:
    """When a back-up is restored: charges what a run may have spent since it was taken; how many clients it charged.

    Each model that is left may have cost as many rounds as may be abandoned in a row, since a round can be abandoned
    after it was charged; but nobody can have been charged beyond the task's budget. `number` stands for the round: it
    is negative, so that no round ever has it.
    """
    if task.privacy is None:
        return 0
    noise, limit = base_noise(task.privacy, task.rule()), math.inf
    if task.privacy.epsilon and is_installed():
        limit = largest_spend(task.privacy.epsilon, task.privacy.delta)
    models_left = task.rounds - runs.newest_model(connection, run_id).version
    most, unit = models_left * task.round.abandon_limit * noise.spend, noise.unit.value
    spent, charged = store.spent(connection, unit), 0
    for client_id in sorted({*clients, *spent}):
        left = min(most, limit - spent.get(client_id, 0.0))
        if left > 0:
            store.charge(connection, number, run_id, [client_id], unit=unit, spend=left, at_ms=at_ms)
            charged += 1
    history.note(
        connection, run_id, "privacy_charged", at_ms, clients=charged, unit=unit, spend=most, restored=True
    )
    return charged
