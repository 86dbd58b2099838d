"""What a run's driver asks of a masked mode, and how it is answered in pairwise mode.

A round in a masked mode is prepared (in pairwise mode: there must be a key epoch with a free slot), opened like any
other, and its sum is opened after its reports are closed. `helpers.py` answers the same for helper mode.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from aggregator import privacy
from aggregator.epochs import KeyEpochs, LiveEpoch
from aggregator.interfaces import ClientRecord, Random
from aggregator.live import MaskedRounds
from aggregator.members import Cohort, Terms
from aggregator.pairwise import Change, PairwiseRounds, Unmasked
from aggregator.privacy import Place
from aggregator.round import Round
from aggregator.store.records import ModelRecord
from aggregator.tasks import TaskSettings
from fedless.protocol.crypto import sha256
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Encoding, Kind, Mode
from fedless.protocol.prg import Words
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.messages import RoundOpen
from fedless.protocol.secagg.ring import Extra, RingEncoding

Choose = Callable[[int, bytes], list[str]]
"""So many of a plan's candidates, as its task's selection draws them with 32 random bytes."""


@dataclass(frozen=True)
class Plan:
    """A round that a driver wants to open: with which clients at hand, on which model, for which task."""

    terms: Terms
    settings: TaskSettings
    task: bytes
    model: ModelRecord
    candidates: Sequence[ClientRecord]
    choose: Choose
    least_cohorts: int = 1


@dataclass(frozen=True)
class Prepared:
    """A round that can be opened now: its terms, its cohort, and what to record beside."""

    terms: Terms
    cohort: Sequence[str]
    change: Change


class MaskedMode(MaskedRounds, Protocol):
    """A way to hide single updates."""

    async def prepare(self, plan: Plan) -> Prepared:
        """Makes a round ready to be opened; may take as long as its settings allow. Raises `PeerError` TOO_FEW."""
        ...

    async def open_sums(self, round_: Round, totals: Sequence[Words], window_ms: int) -> Unmasked:
        """The means of a closed round's cohorts, of their masked sums `totals` (changed in place).

        Raises `PeerError`; then `give_up`.
        """
        ...

    async def give_up(self, round_: Round, code: Code) -> Change:
        """What to record when a closed round ends without a sum."""
        ...

    async def settle(self, round_: Round) -> None:
        """Ends, without a sum, what of the round's run was abandoned by the automaton or with the run.

        Called again after a crash, with the run's newest round.
        """
        ...


def mode_of(mode: Mode, modes: Mapping[Mode, MaskedMode]) -> MaskedMode | None:
    """How a task's mode is driven here; None for plain rounds. Raises `LocalError` CONFIG_INVALID if it cannot be."""
    if mode is not Mode.PLAIN and mode not in modes:
        detail = f"The task is in mode {mode.value}, and this fleet has no helper."
        fix = "Name one under [helper] in aggregator.toml (docs/helper.md), or choose another mode."
        raise LocalError(Code.CONFIG_INVALID, detail, fix=fix)
    return modes.get(mode)


class Pairwise:
    """Pairwise mode: key epochs and the rounds in their slots."""

    def __init__(self, epochs: KeyEpochs, rounds: PairwiseRounds, random: Random) -> None:
        self._epochs = epochs
        self._rounds = rounds
        self._random = random
        self.offer = rounds.offer
        self.check_head = rounds.check_head
        self.open_sums = rounds.open_sums
        self.give_up = rounds.give_up
        self.settle = rounds.settle

    async def prepare(self, plan: Plan) -> Prepared:
        """The next slot of each of the run's key epochs; new ones with the clients at hand, where there are none."""
        present = frozenset(record.client_id for record in plan.candidates)
        lives = await self._epochs.usable(plan.terms.run_id, present)
        lives += await self._further(plan, lives)
        lives.sort(key=lambda live: live.value.epoch)
        _check_cohorts(plan, lives)
        plan = sized(plan, max(len(live.value.members) for live in lives))
        cohorts = [_cohort(plan, live, present, alone=len(lives) == 1) for live in lives]
        opened = [
            (live, _unsigned(plan, live, cohort.minimum)) for live, cohort in zip(lives, cohorts, strict=True)
        ]
        encoding = opened[0][1].encoding
        terms = replace(
            plan.terms,
            mode=Mode.PAIRWISE,
            goal=sum(len(live.value.members) for live in lives),
            minimum=_minimum(plan, lives, cohorts),
            encoding=Encoding.RING16 if encoding.bits == 16 else Encoding.RING32,  # noqa: PLR2004
            extra_words=encoding.words - encoding.dimension,
            cohorts=tuple(cohorts),
            least_cohorts=plan.least_cohorts,
        )
        members = [client_id for cohort in cohorts for client_id in cohort.clients]
        return Prepared(terms, members, self._rounds.opening(opened))

    async def _further(self, plan: Plan, lives: Sequence[LiveEpoch]) -> list[LiveEpoch]:
        """Key epochs for those cohorts of the selection that have none, with clients that are in no other."""
        secagg, run_id = plan.settings.secagg, plan.terms.run_id
        sizes = plan.settings.cohort_sizes(len(plan.candidates))
        missing = sizes[len(lives) :]
        if not missing or (_is_enough(plan, lives) and await self._epochs.set_up_failed(run_id)):
            return []
        busy = {client_id for live in lives for client_id in live.value.cohort}
        drawn = plan.choose(min(sum(missing) + len(busy), len(plan.candidates)), self._random(32))
        chosen = [client_id for client_id in drawn if client_id not in busy][: sum(missing)]
        if lives and len(chosen) < secagg.minimum:
            return []
        cohort = plan.settings.cohort
        return await self._epochs.open(
            plan.terms,
            split(chosen, min(len(missing), max(1, len(chosen) // secagg.minimum)), self._random(32)),
            minimum=secagg.minimum if len(sizes) > 1 else max(secagg.minimum, cohort.minimum_reports),
            trust=secagg.trust,
            window_ms=1000 * secagg.setup_s,
        )


def split(clients: Sequence[str], count: int, randomness: bytes) -> list[list[str]]:
    """Clients dealt out to `count` cohorts in an order that nobody can foresee."""
    shuffled = sorted(clients, key=lambda client_id: sha256(randomness + client_id.encode()))
    return [shuffled[at::count] for at in range(count)]


def _is_enough(plan: Plan, lives: Sequence[LiveEpoch]) -> bool:
    """Whether a round may be opened with these key epochs only."""
    members = sum(len(live.value.members) for live in lives)
    alone = len(lives) == 1
    return len(lives) >= plan.least_cohorts and (alone or members >= plan.settings.cohort.minimum_reports)


def _check_cohorts(plan: Plan, lives: Sequence[LiveEpoch]) -> None:
    if _is_enough(plan, lives):
        return
    members, least = sum(len(live.value.members) for live in lives), plan.settings.cohort.minimum_reports
    detail = f"{len(lives)} cohorts with {members} members are ready"
    raise PeerError(Code.TOO_FEW, f"{detail}; at least {plan.least_cohorts} with {least} in all are needed.")


def _cohort(plan: Plan, live: LiveEpoch, present: frozenset[str], *, alone: bool) -> Cohort:
    members, threshold = live.value.members, live.value.state.sealed_roster.threshold
    least = plan.settings.cohort.minimum_reports if alone else 0
    clients = tuple(client_id for client_id in members if client_id in present)
    return Cohort(live.value.epoch, min(len(members), max(threshold, least)), clients)


def _minimum(plan: Plan, lives: Sequence[LiveEpoch], cohorts: Sequence[Cohort]) -> int:
    """How many reports the round needs: as the task says, else half of what would open all cohorts."""
    if len(cohorts) == 1:
        return cohorts[0].minimum
    needed, members = plan.settings.cohort.minimum_reports, sum(len(live.value.members) for live in lives)
    return min(members, needed) or math.ceil(sum(cohort.minimum for cohort in cohorts) / 2)


def _unsigned(plan: Plan, live: LiveEpoch, minimum: int) -> RoundOpen:
    """A cohort's M4 but for what is known when it is written down."""
    return RoundOpen(
        round_id=0,
        epoch=live.value.epoch,
        slot=0,
        model_version=plan.terms.model_version,
        model_digest=plan.model.start(plan.terms.kind),
        task_digest=hashlib.sha256(plan.task).digest(),
        encoding=encoding_of(plan, len(live.value.members), minimum),
        prg=live.value.state.prg,
        min_alive=minimum,
        deadline_at_ms=0,
        signature=b"",
    )


def sized(plan: Plan, n: int) -> Plan:
    """The plan for a round of `n` clients: what noise there is depends on their number."""
    noise = plan.terms.privacy
    return plan if noise is None else replace(plan, terms=replace(plan.terms, privacy=noise.sized(n)))


def encoding_of(plan: Plan, n: int, least: int) -> RingEncoding:
    """How `n` members' updates become ring words; an evaluation has named means only. Raises RING_OVERFLOW.

    At least `least` of them are in every sum that is opened.
    """
    secagg, noise = plan.settings.secagg, plan.terms.privacy
    loss = Extra("loss", secagg.loss_limit)
    trains = plan.terms.kind is Kind.TRAIN
    if noise is not None and noise.place is not Place.LOCAL:
        dimension = plan.terms.parameters
        return privacy.encoding(noise, members=n, least=least, dimension=dimension, bits=secagg.bits)
    further = tuple(Extra(name, bound) for name, bound in plan.terms.extras)
    return ring.plan(
        n=n,
        dimension=plan.terms.vectors * plan.terms.parameters,
        bits=secagg.bits if trains else 32,
        clip=secagg.clip,
        max_examples=plan.terms.max_examples,
        l2_clip=secagg.l2_clip if trains else 0.0,
        extras=((loss,) if noise is None else ()) + further if trains else _judged(plan, loss),
    )


def _judged(plan: Plan, loss: Extra) -> tuple[Extra, ...]:
    """What is told of a model; with personal parameters also of the model as it was sent."""
    told = (loss, Extra("correct", 1.0))
    if plan.settings.personalise is None:
        return told
    return told + tuple(replace(extra, name=f"global_{extra.name}") for extra in told)
