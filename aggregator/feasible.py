"""*Pure.* What cannot work, said before it is tried: each reason with the nearest thing that can.

An assumption refuses nothing: only what was measured, registered or written down does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from aggregator.demand import PARTICIPANT_MB, Client, Refusal, Service, Wanted
from fedless.protocol.errors import Code
from fedless.protocol.messages import Mode

RUNTIME_MB = 110
"""What a cloud function needs beside the bundle (`cloud_adapters.base.RUNTIME_MB`; a test compares)."""
_NAMES = 5


def usable(wanted: Wanted, clients: Sequence[Client]) -> tuple[list[Client], list[str]]:
    """The clients that could take part, and one sentence for each kind of those that could not."""
    left, notes = list(clients), []
    for what, fits in (
        (f"cannot take part in mode {wanted.mode.value}: functions keep no keys between rounds", _keeps_keys),
        ("are cloud functions, which keep no control variate and no personal parameters", _keeps_state),
        (f"have too little memory: {instance_mb(wanted)} MB needed", _has_memory),
        ("may not run as long as this task took there before", _has_time),
    ):
        out = [client for client in left if not fits(wanted, client)]
        left = [client for client in left if fits(wanted, client)]
        if out:
            notes.append(f"{len(out)} clients {what} ({names(out)})")
    return left, notes


def refusals(
    wanted: Wanted, clients: Sequence[Client], service: Service, spool_bytes: int
) -> Iterator[Refusal]:
    """Everything that is wrong with running this task on these clients now, but for its times."""
    fit, notes = usable(wanted, clients)
    if len(clients) < wanted.needed:
        yield _too_few(wanted, len(clients))
    elif len(fit) < wanted.needed:
        yield _unfit(wanted, clients, len(fit), notes)
    if wanted.cohorts < wanted.least_cohorts:
        found = f"{wanted.woken} clients make {wanted.cohorts} cohorts"
        reason = f"{found}; {wanted.strategy} needs {wanted.least_cohorts}."
        yield Refusal(Code.TOO_FEW, reason, "more clients, or smaller cohorts (secagg.cohort_size)")
    if service.disk_free_bytes and spool_bytes > service.disk_free_bytes:
        free = service.disk_free_bytes // max(1, wanted.report_bytes)
        reason = (
            f"Reports of one round take {spool_bytes / 1e6:.0f} MB in the spool; the aggregator's disk has "
            f"{service.disk_free_bytes / 1e6:.0f} MB left."
        )
        yield Refusal(Code.DISK_FULL, reason, f"free disk space, or wake at most {free} clients in a round")


def too_short(wanted: Wanted, needed_ms: float) -> Refusal:
    """The deadline is shorter than what the same clients took before; `needed_ms`: what 19 of 20 rounds take."""
    seconds = math.ceil(1.2 * needed_ms / 1000)
    reason = (
        f"The deadline of {wanted.deadline_ms / 1000:.0f} s comes before the {wanted.minimum} reports that a round "
        f"needs: measured times say {needed_ms / 1000:.0f} s."
    )
    return Refusal(
        Code.OUT_OF_RANGE, reason, f"round.deadline_s = {seconds}, or less to do (local_epochs, max_steps)"
    )


def instance_mb(wanted: Wanted) -> int:
    """What a bundle's instance was seen to need: by its author's check, else what it may use at most."""
    return wanted.peak_mb or wanted.memory_mb


def names(clients: Sequence[Client]) -> str:
    """A few of them by name."""
    shown = ", ".join(client.client_id for client in clients[:_NAMES])
    return shown if len(clients) <= _NAMES else f"{shown} and {len(clients) - _NAMES} more"


def _too_few(wanted: Wanted, found: int) -> Refusal:
    masked = wanted.mode is not Mode.PLAIN
    reason = f"A round needs {wanted.needed} clients at least; this fleet has {found} enrolled."
    more = f"enroll {wanted.needed - found} more (`fedless fleet claim`)"
    if masked:
        instead = f'{more}; or mode = "plain", which shows the aggregator single updates'
    elif found:
        instead = f"{more}; or cohort.size = {found} and cohort.minimum_reports = {found} or less"
    else:
        instead = more
    return Refusal(Code.TOO_FEW, reason, instead, waits=not masked and wanted.wait_s > 0)


def _unfit(wanted: Wanted, clients: Sequence[Client], fit: int, notes: Sequence[str]) -> Refusal:
    reason = (
        f"A round needs {wanted.needed} clients; {fit} of {len(clients)} can take part: {'; '.join(notes)}."
    )
    if any(not _keeps_keys(wanted, client) for client in clients):
        return Refusal(Code.FUNCTION_LIMIT, reason, 'mode = "helper" (docs/helper.md), or "plain"')
    if any(not _keeps_state(wanted, client) for client in clients):
        return Refusal(
            Code.FUNCTION_LIMIT, reason, "more devices, or a task that leaves nothing on its clients"
        )
    if any(not _has_memory(wanted, client) for client in clients):
        return Refusal(
            Code.INSTANCE_MEMORY, reason, f"a smaller model or batch, or a cohort of {max(fit, 1)} clients"
        )
    return Refusal(
        Code.FUNCTION_LIMIT, reason, "a longer time limit of the functions, or less to do (local_epochs)"
    )


def _keeps_keys(wanted: Wanted, client: Client) -> bool:
    return not (client.platform and wanted.mode is Mode.PAIRWISE)


def _keeps_state(wanted: Wanted, client: Client) -> bool:
    return not (client.platform and wanted.keeps)


def _has_memory(wanted: Wanted, client: Client) -> bool:
    if client.platform:
        return wanted.memory_mb + RUNTIME_MB <= client.memory_mb
    measured = wanted.peak_mb and client.memory_mb  # a bundle's bound is no measurement
    return not measured or wanted.peak_mb + PARTICIPANT_MB <= client.memory_mb


def _has_time(_wanted: Wanted, client: Client) -> bool:
    seen = [work.work_ms for work in client.works if work.same]
    return not (client.timeout_ms and seen and min(seen) > client.timeout_ms)
