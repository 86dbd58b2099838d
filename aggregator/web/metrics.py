"""The store's counts in Prometheus' text format, made anew at each scrape; so a restart loses no counter.

Rules: every name begins with `fedless_` and ends with its unit; labels have few values that we know beforehand (states,
modes, phases, codes), and never a client, a run or a round. docs/operations.md lists all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily

from aggregator.members import ENDED, Loss, Phase
from aggregator.sentences import TIMES
from aggregator.web.views import Totals
from fedless import __version__
from fedless.protocol.errors import Code

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"
CODES = frozenset(code.value for code in Code)
LOSSES = CODES | {loss.value for loss in Loss}


class Exposition:
    """What `/metrics` answers."""

    def __init__(self) -> None:
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)

    def text(self, totals: Totals, disk_free_bytes: int) -> bytes:
        """All metrics."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Counts(totals, disk_free_bytes))
        return bytes(generate_latest(registry)) + bytes(generate_latest(self._process))


class _Counts:
    def __init__(self, totals: Totals, disk_free_bytes: int) -> None:
        self._totals = totals
        self._disk_free_bytes = disk_free_bytes

    def describe(self) -> Iterator[Metric]:
        """Nothing: a registry asks it only to find names that are used twice."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client asks."""
        totals = self._totals
        info = GaugeMetricFamily("fedless_build_info", "The version that runs; always 1.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        yield _gauge("fedless_clients", "Clients by state.", "state", totals.clients)
        yield GaugeMetricFamily("fedless_clients_online", "Enrolled clients that are online.", totals.online)
        yield GaugeMetricFamily(
            "fedless_clients_resting", 'Enrolled clients that said "not before".', totals.resting
        )
        yield _gauge("fedless_runs", "Runs by state.", "state", totals.runs)
        yield GaugeMetricFamily(
            "fedless_disk_free_bytes", "Free on the disk of reports.", self._disk_free_bytes
        )
        yield from self._rounds()
        yield from self._clients()

    def _rounds(self) -> Iterator[Metric]:
        totals = self._totals
        ended = CounterMetricFamily(
            "fedless_rounds", "Training rounds that have ended.", labels=["mode", "outcome"]
        )
        opened = GaugeMetricFamily(
            "fedless_rounds_open", "Training rounds that are open.", labels=["mode", "phase"]
        )
        for (mode, phase), count in sorted(totals.rounds.items()):
            (ended if Phase(phase) in ENDED else opened).add_metric([mode, phase], count)
        took = SummaryMetricFamily(
            "fedless_round_seconds", "From a training round's opening to its end.", labels=["mode"]
        )
        for mode, (count, ms) in sorted(totals.round_ms.items()):
            took.add_metric([mode], count, ms / 1000)
        parts = CounterMetricFamily(
            "fedless_round_phase_seconds", "Time in each part of training rounds.", labels=["mode", "part"]
        )
        known: dict[tuple[str, str], float] = {}
        for (mode, name), ms in totals.phase_ms.items():
            key = (mode, name if name in TIMES else OTHER)
            known[key] = known.get(key, 0.0) + ms
        for (mode, name), ms in sorted(known.items()):
            parts.add_metric([mode, name], ms / 1000)
        yield from (ended, opened, took, parts)

    def _clients(self) -> Iterator[Metric]:
        totals = self._totals
        yield CounterMetricFamily("fedless_reports", "Reports that were counted.", totals.reports)
        yield _counter(
            "fedless_refusals", "Clients' calls that were refused.", "code", totals.refusals, CODES
        )
        yield _counter("fedless_losses", "Clients that a round did without.", "reason", totals.losses, LOSSES)
        moved = CounterMetricFamily(
            "fedless_client_bytes", "Moved in rounds, as clients told.", labels=["direction"]
        )
        moved.add_metric(["down"], totals.bytes_down)
        moved.add_metric(["up"], totals.bytes_up)
        yield moved
        yield CounterMetricFamily(
            "fedless_alarms", "Attempts that an operator should know of.", totals.alarms
        )


def _gauge(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family


def _counter(name: str, text: str, label: str, values: Mapping[str, int], known: frozenset[str]) -> Metric:
    """One that a newer peer may have given names that we do not know: those are counted together."""
    family = CounterMetricFamily(name, text, labels=[label])
    counts: dict[str, int] = {}
    for value, count in values.items():
        key = value if value in known else OTHER
        counts[key] = counts.get(key, 0) + count
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
