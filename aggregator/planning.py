"""Brings `plan.py` what is known: the task, its bundle, the fleet's past and profiles, the disk.

Called by the Operator service for `fedless plan`, and by `runs` before a run is started.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from aggregator import ledger, rates, strategies
from aggregator.demand import Assumed, Client, Refusal, Service, Wanted, Work
from aggregator.interfaces import ClientRecord
from aggregator.pace import Tariff
from aggregator.plan import Plan, foresee, refused
from aggregator.privacy import Place
from aggregator.privacy import encoding as encoding_under
from aggregator.store import measured
from aggregator.store.engine import Database
from aggregator.store.measured import Line
from aggregator.strategies.base import Strategy
from aggregator.tasks import MAX_EXAMPLES, TaskSettings
from cloud_adapters import prices
from fedless.protocol import wire
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.manifest import Manifest
from fedless.protocol.messages import Mode, Task
from fedless.protocol.secagg import ring
from fedless.protocol.secagg.epochs import SLOTS_MAX, threshold

ASSUMED_MAX = 1e12
DEVICE = "raspberry-pi-4"
"""As what devices are priced."""


@dataclass(frozen=True)
class Package:
    """A bundle as it matters here: its manifest, its digest (32 bytes) and its size."""

    manifest: Manifest
    digest: bytes
    size_bytes: int


def assumed(changes: Mapping[str, float]) -> Assumed:
    """The assumptions with these instead. Raises `PeerError(CONFIG_INVALID)` for an unknown or impossible one."""
    known = [field.name for field in fields(Assumed)]
    for name, value in changes.items():
        if name not in known:
            raise PeerError(
                Code.CONFIG_INVALID, f"assume: expected one of {', '.join(known)}, found {name[:40]!r}."
            )
        if (
            not 0 <= value < ASSUMED_MAX
            or (name.startswith("presence") and value > 1)
            or (name.endswith("_per_s") and not value)
        ):
            raise PeerError(Code.CONFIG_INVALID, f"assume: {name} cannot be {value:g}.")
    return Assumed(**changes)


def plan_to_json(value: Plan) -> str:
    """The plan as JSON, field by field; a refusal's code is its wire value."""
    return json.dumps(asdict(value), default=lambda code: code.value, separators=(",", ":"))


@dataclass(frozen=True)
class Known:
    """What a plan is made of: the clients with what is known of each, and the aggregator itself."""

    clients: Sequence[Client]
    service: Service


async def look(
    database: Database,
    enrolled: Sequence[ClientRecord],
    spool: Path,
    settings: TaskSettings,
    package: Package,
    now_ms: int,
) -> Known:
    """What is known of this fleet, for this task."""

    def work(connection: Connection) -> tuple[list[Client], Mapping[str, float]]:
        return clients(connection, enrolled, package.digest, now_ms), measured.phases_ms(
            connection, settings.mode
        )

    found, phases_ms = await database.run(work)
    return Known(found, Service(phases_ms, shutil.disk_usage(spool).free))


async def plan(settings: TaskSettings, package: Package, known: Known, taken: Assumed) -> Plan:
    """What a run of this task would be like."""
    return await asyncio.to_thread(judge, settings, package, known.clients, known.service, taken)


def final_refusals(settings: TaskSettings, package: Package, known: Known) -> list[Refusal]:
    """What cannot work, whoever may still come; blocks shortly."""
    count = len(known.clients)
    try:
        asked, more = wanted(settings, package, count), []
    except LocalError as error:
        asked, more = wanted(settings, package, count, masked=False), [_overflow(error)]
    return [*more, *(each for each in refused(asked, known.clients, known.service) if not each.waits)]


def judge(
    settings: TaskSettings,
    package: Package,
    found: Sequence[Client],
    service: Service,
    taken: Assumed | None = None,
) -> Plan:
    """As `plan`, of clients that are given; blocks."""
    try:
        return _private(
            settings, foresee(wanted(settings, package, len(found)), found, service, taken, tariff())
        )
    except LocalError as error:  # the ring cannot hold their sum
        overflow = _overflow(error)
        without = wanted(settings, package, len(found), masked=False)
        seen = foresee(without, found, service, taken, tariff())
        seen.refusals.append(overflow)
        return seen


def _private(settings: TaskSettings, seen: Plan) -> Plan:
    """The plan with what differential privacy will have cost, and a word where the budget ends the run before."""
    if settings.privacy is None or not ledger.is_installed():
        return seen
    ahead = ledger.foreseen(settings)
    if ahead.rounds < settings.rounds:
        told = f"the privacy budget ends the run after {ahead.rounds} of {settings.rounds} rounds"
        seen.advice.append(
            f"{told}, for clients that take part in each of them and have spent nothing before"
        )
    return replace(seen, epsilon=ahead.epsilon)


def tariff() -> Tariff:
    """The tables that come with fedless; devices as one of them (docs/plan-and-why.md)."""
    power = rates.load()
    return Tariff(power.per_kwh_usd, power.devices[DEVICE], power.functions, prices.load().by_platform)


def _overflow(error: LocalError) -> Refusal:
    if error.code is not Code.RING_OVERFLOW:
        raise error
    return Refusal(error.code, error.detail, error.fix.rstrip("."))


def wanted(settings: TaskSettings, package: Package, count: int, *, masked: bool = True) -> Wanted:
    """What a task asks of `count` enrolled clients; `masked` False: as if its words were plain ones.

    Raises `LocalError(RING_OVERFLOW)`, `PeerError(MANIFEST_INVALID)`.
    """
    model = package.manifest.model
    if model is None:
        raise PeerError(Code.MANIFEST_INVALID, f"The function {package.manifest.name} has no model to train.")
    mode, check = Mode(settings.mode), package.manifest.check
    goal, minimum, woken = _cohort(settings, mode, count)
    strategy = strategies.make(settings.strategy, settings.strategy_options.given())
    asked = task(settings, package)
    words, word_bytes = asked.rule.vectors * asked.layout.common, 4
    if masked and mode is not Mode.PLAIN:
        largest = settings.cohort_sizes(count)[0] if mode is Mode.PAIRWISE else woken
        least = threshold(largest, settings.secagg.trust) if mode is Mode.PAIRWISE else minimum
        words, word_bytes = _words(settings, strategy, (largest, least), words)
    return Wanted(
        name=settings.name, mode=mode, strategy=settings.strategy, rounds=settings.rounds,
        goal=goal, minimum=minimum, woken=woken, parameters=model.parameters, words=words, word_bytes=word_bytes,
        epochs=asked.rule.local_epochs + asked.rule.personal_epochs, batch=model.batch, bundle_bytes=package.size_bytes,
        max_steps=settings.client.max_steps, peak_mb=check.peak_memory_mb if check else 0,
        memory_mb=package.manifest.memory_mb, vectors=1 + len(strategy.state),
        wait_s=settings.cohort.wait_s, deadline_ms=1000 * settings.round.deadline_s, grace=settings.round.grace,
        abandon_limit=settings.round.abandon_limit, secagg_minimum=settings.secagg.minimum,
        key_epoch_slots=min(SLOTS_MAX, settings.rounds) if mode is Mode.PAIRWISE else 1,
        cohorts=len(settings.cohort_sizes(count)) if mode is Mode.PAIRWISE else 1,
        least_cohorts=strategy.least_cohorts, keeps=asked.rule.control or bool(asked.personal),
    )  # fmt: skip


def task(settings: TaskSettings, package: Package) -> Task:
    """What clients get. Raises `PeerError` MANIFEST_INVALID (no model), CONFIG_INVALID (no such layers)."""
    model = package.manifest.model
    if model is None:
        raise PeerError(Code.MANIFEST_INVALID, f"The function {package.manifest.name} has no model to train.")
    plain = settings.task(package.digest, model.parameters)
    if settings.personalise is None:
        return plain
    try:
        return settings.personalise.applied(plain, model)
    except LocalError as error:  # the operator's mistake, not ours
        raise PeerError(error.code, error.detail, fix=error.fix) from error


def _cohort(settings: TaskSettings, mode: Mode, count: int) -> tuple[int, int, int]:
    """Goal, minimum and woken, as `driver.py` and the masked modes choose them."""
    cohort, least = settings.cohort, settings.secagg.minimum
    goal = cohort.goal(count)
    if mode is Mode.PAIRWISE:
        size, sizes = max(goal, least), settings.cohort_sizes(count)
        needed = sum(threshold(each, settings.secagg.trust) for each in sizes)
        if len(sizes) == 1:
            return size, min(size, max(needed, cohort.minimum_reports)), size
        return size, min(size, cohort.minimum_reports) or math.ceil(needed / 2), size
    minimum = cohort.minimum(goal)
    if mode is Mode.HELPER:
        goal, minimum = max(goal, least), max(minimum, least)
    woken = cohort.selected(goal)
    return goal, minimum, max(minimum, min(woken, count)) if count else woken


def _words(
    settings: TaskSettings, strategy: Strategy, clients: tuple[int, int], dimension: int
) -> tuple[int, int]:
    """Words of a masked report and bytes of each, as the round's encoding will have them.

    `clients`: how many may report, and how many must.
    """
    n, least = clients
    noise = ledger.base_noise(settings.privacy, settings.rule()) if settings.privacy else None
    if noise is not None and noise.place is not Place.LOCAL:
        private = encoding_under(
            noise.sized(n), members=n, least=least, dimension=dimension, bits=settings.secagg.bits
        )
        return private.words, private.bits // 8
    secagg, most = settings.secagg, settings.client.max_examples or MAX_EXAMPLES[Mode(settings.mode)]
    extras = strategy.extras(strategy.client(settings.client.rule()), most)
    further = [ring.Extra(name, bound) for name, bound in extras.items()]
    encoding = ring.plan(
        n=n,
        dimension=dimension,
        bits=secagg.bits,
        clip=secagg.clip,
        max_examples=most,
        l2_clip=secagg.l2_clip,
        extras=(*(() if noise else (ring.Extra("loss", secagg.loss_limit),)), *further),
    )
    return encoding.words, encoding.bits // 8


def clients(
    connection: Connection, enrolled: Sequence[ClientRecord], bundle_digest: bytes, now_ms: int
) -> list[Client]:
    """The enrolled clients with what is known of each."""
    lines, profiles = measured.lines(connection), measured.profiles(connection)
    deployed = measured.deployments(connection)
    return [
        _client(
            record,
            lines.get(record.client_id, []),
            profiles.get(record.client_id, {}),
            deployed.get(record.client_id, ("", {})),
            bundle_digest,
            now_ms,
        )
        for record in enrolled
    ]


def _client(
    record: ClientRecord,
    lines: Sequence[Line],
    profile: Mapping[str, Any],
    deployed: tuple[str, Mapping[str, Any]],
    bundle_digest: bytes,
    now_ms: int,
) -> Client:
    platform, settings = deployed
    counting = [line for line in lines if line.counts]
    resting = profile.get("not_before_reason", "") if record.not_before_ms > now_ms else ""
    return Client(
        client_id=record.client_id,
        online=record.online,
        memory_mb=int(settings.get("memory_mb", 0)) if platform else int(profile.get("memory_mb", 0)),
        asked=len(counting),
        reported=sum(line.reported for line in counting),
        works=tuple(_work(line, bundle_digest) for line in lines if line.work_ms),
        resting=resting,
        platform=platform,
        timeout_ms=1000 * int(settings.get("timeout_s", 0)) if platform else 0,
    )


def _work(line: Line, bundle_digest: bytes) -> Work:
    told = line.invocation
    peak = told.get("peak_rss_mb", 0.0) + told.get("participant_peak_rss_mb", 0.0)
    return Work(
        wake_ms=line.wake_ms,
        work_ms=line.work_ms,
        run_ms=min(told.get("timings_ms", {}).get("run", 0.0), line.work_ms),
        epochs=wire.task_from_bytes(line.task).rule.local_epochs,
        same=line.bundle_digest == bundle_digest,
        peak_mb=peak,
    )
