"""What a run's driver asks of a masked mode, and how it is answered in pairwise mode.

A round in a masked mode is prepared (in pairwise mode: there must be a key epoch with a free slot), opened like any
other, and its sum is opened after its reports are closed. `helpers.py` answers the same for helper mode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from aggregator import privacy
from aggregator.epochs import KeyEpochs, LiveEpoch
from aggregator.interfaces import ClientRecord, Random
from aggregator.live import MaskedRounds
from aggregator.members import Terms
from aggregator.pairwise import Change, PairwiseRounds
from aggregator.privacy import Place
from aggregator.round import Round
from aggregator.store.records import ModelRecord
from aggregator.tasks import TaskSettings
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import Encoding, Kind, Mode
from fedless.protocol.prg import Words
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.epochs import COHORT_MAX
from fedless.protocol.secagg.messages import RoundOpen
from fedless.protocol.secagg.ring import Decoded, Extra, RingEncoding

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

    async def open_sum(self, round_: Round, total: Words, window_ms: int) -> tuple[Decoded, Change]:
        """The mean of a closed round's reports, of their masked sum `total` (changed in place).

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
        self.open_sum = rounds.open_sum
        self.give_up = rounds.give_up
        self.settle = rounds.settle

    async def prepare(self, plan: Plan) -> Prepared:
        """The next slot of the run's key epoch; a new key epoch with the clients at hand, where there is none."""
        present = frozenset(record.client_id for record in plan.candidates)
        epoch = await self._epochs.usable(plan.terms.run_id, present)
        if epoch is None:
            epoch = await self._new_epoch(plan)
        members = [client_id for client_id in epoch.value.members if client_id in present]
        threshold = epoch.value.state.sealed_roster.threshold
        size = len(epoch.value.members)
        minimum = min(size, max(threshold, plan.settings.cohort.minimum_reports))
        plan = sized(plan, size)
        encoding = encoding_of(plan, size, minimum)
        terms = replace(
            plan.terms,
            mode=Mode.PAIRWISE,
            goal=size,
            minimum=minimum,
            encoding=Encoding.RING16 if encoding.bits == 16 else Encoding.RING32,  # noqa: PLR2004
            extra_words=encoding.words - encoding.dimension,
        )
        opened = RoundOpen(
            round_id=0,
            epoch=epoch.value.epoch,
            slot=0,
            model_version=plan.terms.model_version,
            model_digest=plan.model.start(plan.terms.kind),
            task_digest=hashlib.sha256(plan.task).digest(),
            encoding=encoding,
            prg=epoch.value.state.prg,
            min_alive=minimum,
            deadline_at_ms=0,
            signature=b"",
        )
        return Prepared(terms, members, self._rounds.opening(epoch, opened))

    async def _new_epoch(self, plan: Plan) -> LiveEpoch:
        cohort, secagg = plan.settings.cohort, plan.settings.secagg
        wanted = max(cohort.goal(len(plan.candidates)), secagg.minimum)
        if wanted > COHORT_MAX:
            detail = f"Expected a cohort of at most {COHORT_MAX} in pairwise mode, found {wanted}."
            raise PeerError(Code.OUT_OF_RANGE, detail, fix="Lower cohort.size, or use helper mode.")
        chosen = plan.choose(wanted, self._random(32))
        return await self._epochs.open(
            plan.terms,
            chosen,
            minimum=max(secagg.minimum, cohort.minimum_reports),
            trust=secagg.trust,
            window_ms=1000 * secagg.setup_s,
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
        extras=((loss,) if noise is None else ()) + further if trains else (loss, Extra("correct", 1.0)),
    )
