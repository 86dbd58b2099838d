"""*Pure.* What a run would be like before it is started: time, bytes, memory, who is missing, and what cannot work.

`planning.py` brings what is known; `fedless plan` shows the answer, and `run start` refuses what it refuses. Measured
where there is a measurement, else assumed, and then it says so: `assumptions` names each figure that nobody measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

from aggregator import pace
from aggregator.demand import PARTICIPANT_MB, Assumed, Client, Refusal, Service, Wanted
from aggregator.feasible import instance_mb, names, refusals, too_short, usable
from aggregator.forecast import Closing, Rules, Times, closing, fewer_than
from aggregator.pace import Tariff
from fedless.protocol.messages import Mode
from fedless.protocol.secagg.epochs import MINIMUM_COHORT, SMALL_COHORT

HELPER_UNDER = 0.8
"""Under this presence a mode that needs one message of each client is recommended (docs/helper.md)."""
MEASURED_SHARE = 0.5
"""From this share of clients with measured times on, a deadline that they cannot keep is refused."""
SETUP_BYTES_PER_MEMBER = 600
"""Of a key epoch's set-up, for each member and each other member: keys, roster, sealed shares there and back."""
UNMASK_BYTES_PER_MEMBER = 40


@dataclass(frozen=True)
class Plan:
    """The answer. Times in ms, sizes in bytes or MB, probabilities 0 to 1; `margin` is how many may be missing.

    `first_bytes` is what a client downloads once (the bundle), `down_bytes` and `up_bytes` in each round.
    `cost_usd`, `energy_wh` (of the run, modelled) and
    `epsilon` None: nothing says.
    """

    task: str
    mode: str
    strategy: str
    rounds: int
    clients: int
    usable: int
    woken: int
    goal: int
    minimum: int
    presence: float
    margin: int
    too_few: float
    abandoned: float
    run_fails: float
    round_p50_ms: float
    round_p95_ms: float
    run_p50_ms: float
    phases_ms: dict[str, float]
    first_bytes: int
    down_bytes: int
    up_bytes: int
    setup_bytes: int
    round_bytes: int
    run_bytes: int
    device_peak_mb: float
    device_limit_mb: int
    smallest_device_mb: int
    spool_bytes: int
    models_bytes: int
    measured_clients: int
    cost_usd: float | None = None
    energy_wh: float | None = None
    epsilon: float | None = None
    assumptions: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)


def foresee(
    wanted: Wanted,
    clients: Sequence[Client],
    service: Service,
    assumed: Assumed | None = None,
    tariff: Tariff | None = None,
) -> Plan:
    """The whole answer; without a tariff no cost."""
    taken = assumed or Assumed()
    fit, notes = usable(wanted, clients)
    there = fit or [Client("nobody", online=True)]
    rules = Rules(wanted.woken, wanted.goal, wanted.minimum, wanted.grace, wanted.deadline_ms)
    closed = closing([pace.times(wanted, client, taken) for client in there], rules)
    presence = mean(pace.presence(client, taken) for client in there)
    phases, own_ms = _own_phases(wanted, service, taken, closed)
    known = [client for client in fit if any(work.same for work in client.works)]
    no_model = max(fewer_than(wanted.minimum, wanted.woken, presence), closed.abandoned)
    spool_bytes = wanted.woken * wanted.report_bytes
    down, up, setup = _bytes(wanted)
    round_bytes = wanted.woken * (down + up + setup // wanted.key_epoch_slots)
    spent = pace.outlay(wanted, there, taken, tariff) if tariff else None
    memories = [client.memory_mb for client in fit if client.memory_mb and not client.platform]
    return Plan(
        task=wanted.name, mode=wanted.mode.value, strategy=wanted.strategy, rounds=wanted.rounds,
        clients=len(clients), usable=len(fit), woken=wanted.woken, goal=wanted.goal, minimum=wanted.minimum,
        presence=presence, margin=wanted.woken - wanted.minimum,
        too_few=fewer_than(wanted.minimum, wanted.woken, presence), abandoned=no_model,
        run_fails=_run_fails(no_model, wanted.abandon_limit, wanted.rounds),
        round_p50_ms=closed.p50_ms + own_ms, round_p95_ms=closed.p95_ms + own_ms,
        run_p50_ms=(closed.p50_ms + own_ms) * wanted.rounds / max(1.0 - no_model, 0.01), phases_ms=phases,
        first_bytes=wanted.bundle_bytes, down_bytes=down, up_bytes=up, setup_bytes=setup,
        round_bytes=round_bytes, run_bytes=round_bytes * wanted.rounds + len(fit) * wanted.bundle_bytes,
        device_peak_mb=_device_mb(wanted, fit), device_limit_mb=wanted.memory_mb,
        smallest_device_mb=min(memories, default=0), spool_bytes=spool_bytes,
        models_bytes=wanted.vectors * wanted.model_bytes * (wanted.rounds + 1), measured_clients=len(known),
        cost_usd=spent.usd * wanted.woken * wanted.rounds if spent else None,
        energy_wh=spent.wh * wanted.woken * wanted.rounds if spent else None,
        assumptions=_assumptions(wanted, fit, known, service, taken),
        advice=[f"{note}." for note in notes] + _resting(fit) + _advice(wanted, presence, no_model, closed),
        refusals=refused(wanted, clients, service, taken),
    )  # fmt: skip


def refused(
    wanted: Wanted, clients: Sequence[Client], service: Service, assumed: Assumed | None = None
) -> list[Refusal]:
    """Everything that cannot work; no assumption is among the reasons."""
    found = list(refusals(wanted, clients, service, wanted.woken * wanted.report_bytes))
    fit, _ = usable(wanted, clients)
    known = [client for client in fit if any(work.same for work in client.works)]
    if known and len(known) >= MEASURED_SHARE * len(fit):
        found += _hopeless(wanted, known, assumed or Assumed())
    return found


# -- time


def _own_phases(
    wanted: Wanted, service: Service, taken: Assumed, closed: Closing
) -> tuple[dict[str, float], float]:
    """The aggregator's phases after the close of reports: as measured in this mode, else by size; and their sum."""
    measured = {
        name: service.phases_ms[name]
        for name in ("unmask", "commit", "evaluate")
        if name in service.phases_ms
    }
    megabytes = wanted.report_bytes / 1e6
    phases = {"aggregate": 1000 * megabytes * wanted.vectors / taken.add_mb_per_s} | measured
    if wanted.mode is Mode.PAIRWISE and "unmask" not in phases:
        missing = max(0.0, wanted.woken - closed.reports)
        streams = closed.reports + missing * closed.reports
        phases["unmask"] = 1000 * megabytes * streams / taken.prg_mb_per_s
    return phases, sum(phases.values())


def _hopeless(wanted: Wanted, known: Sequence[Client], taken: Assumed) -> list[Refusal]:
    """A deadline that comes first even if everybody is there."""
    fastest = sorted(min(pace.times(wanted, client, taken).report_ms) for client in known)
    if fastest[min(wanted.minimum, len(fastest)) - 1] <= wanted.deadline_ms:
        return []  # it can be kept: how often, is told as a probability
    present = [Times(1.0, pace.times(wanted, client, taken).report_ms) for client in known]
    unbounded = Rules(wanted.woken, wanted.goal, wanted.minimum, wanted.grace, math.inf)
    return [too_short(wanted, closing(present, unbounded).p95_ms)]


def _run_fails(abandoned: float, limit: int, rounds: int) -> float:
    """The probability of `limit` abandoned rounds in a row before there are `rounds` models: a union bound."""
    return min(1.0, rounds * abandoned**limit)


# -- bytes and memory


def _bytes(wanted: Wanted) -> tuple[int, int, int]:
    """Down and up per client and round, and (both ways) for the set-up of a key epoch."""
    pairs = math.ceil(wanted.woken / wanted.cohorts) if wanted.mode is Mode.PAIRWISE else 0
    down = wanted.model_bytes
    up = wanted.report_bytes + UNMASK_BYTES_PER_MEMBER * pairs
    return down, up, SETUP_BYTES_PER_MEMBER * pairs


def _device_mb(wanted: Wanted, fit: Sequence[Client]) -> float:
    """Instance and participant together at their peak: the largest seen with it, else by the author's check."""
    seen = [work.peak_mb for client in fit for work in client.works if work.same and work.peak_mb]
    return max(seen) if seen else instance_mb(wanted) + PARTICIPANT_MB + wanted.report_bytes / 1e6


# -- words


def _assumptions(
    wanted: Wanted, fit: Sequence[Client], known: Sequence[Client], service: Service, taken: Assumed
) -> list[str]:
    found = []
    if len(known) < len(fit) or not fit:
        found.append(
            f"training time of {len(fit) - len(known)} of {len(fit)} clients: {taken.examples:g} examples each, "
            f"{taken.examples_per_s:g} a second on one core, times vary by {taken.spread:.0%}"
        )
    if any(not client.works for client in fit):
        found.append(
            f"clients without a past: {taken.wake_ms:g} ms to the check-in, {taken.overhead_ms:g} ms around training, "
            f"{taken.mbit_per_s:g} Mbit/s"
        )
    if any(client.asked < pace.PRIOR for client in fit):
        found.append(
            f"presence of clients without a past: {taken.presence:.0%} online, {taken.presence_offline:.0%} offline"
        )
    if not {"unmask", "commit"} & set(service.phases_ms):
        found.append(
            f"the aggregator adds {taken.add_mb_per_s:g} MB/s and expands masks at {taken.prg_mb_per_s:g} MB/s"
        )
    if not wanted.peak_mb and not any(work.peak_mb for client in known for work in client.works):
        found.append(f"the bundle has no check record: its instance may use all of its {wanted.memory_mb} MB")
    return found


def _advice(wanted: Wanted, presence: float, no_model: float, closed: Closing) -> list[str]:
    found = []
    if wanted.mode is Mode.PAIRWISE and presence < HELPER_UNDER:
        found.append(
            f"Presence is {presence:.0%}, under {HELPER_UNDER:.0%}: pairwise masks need {wanted.minimum} of "
            f'{wanted.woken} to stay until the sum is open. mode = "helper" needs one message of each (docs/helper.md).'
        )
    if wanted.mode is not Mode.PLAIN and wanted.goal < SMALL_COHORT:
        found.append(
            f"The sum of {wanted.goal} clients says much of each: {SMALL_COHORT} or more are better."
        )
    if wanted.mode is Mode.PAIRWISE and wanted.secagg_minimum < MINIMUM_COHORT:
        found.append(
            f"secagg.minimum is {wanted.secagg_minimum}: a device refuses cohorts of fewer than {MINIMUM_COHORT}, "
            f"unless its owner allows them (`fedless-edge policy minimum_cohort={wanted.secagg_minimum}`)."
        )
    if no_model > 0.1:  # noqa: PLR2004 - one round in ten
        found.append(
            f"{no_model:.0%} of the rounds would be abandoned: lower cohort.minimum_reports, raise "
            "cohort.over_selection, or give them more time (round.deadline_s)."
        )
    if closed.late > 0.1:  # noqa: PLR2004 - one report in ten
        found.append(f"{closed.late:.0%} of the reports would come after the deadline.")
    return found


def _resting(clients: Sequence[Client]) -> list[str]:
    """Who says "not now", and why."""
    waiting = [client for client in clients if client.resting]
    if not waiting:
        return []
    return [f"{len(waiting)} clients rest now ({names(waiting)}): {waiting[0].resting}."]
