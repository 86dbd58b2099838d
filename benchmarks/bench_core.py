"""Events per second of the pure round automaton with 10,000 clients: check in, announce, arrive, for each of them.

No database, no signature, no byte of an update: what `aggregator.round` decides, and nothing else. The reference does
the least that any automaton does for an event: it looks a client up and replaces its frozen state. Usage:
`python benchmarks/bench_core.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from harness import finish, middle

from aggregator import events as e
from aggregator.members import Member, Phase, Stage, Terms
from aggregator.round import Round
from aggregator.staleness import Late, Weighing
from fedless.protocol.messages import Encoding, Kind, ReportHeader

CLIENTS, REPEATS = 10_000, 5
EVENTS = 3 * CLIENTS
TERMS = Terms(
    round_id=1,
    run_id="run",
    number=1,
    kind=Kind.TRAIN,
    model_version=0,
    goal=CLIENTS,
    minimum=CLIENTS,
    opened_at_ms=0,
    deadline_at_ms=10**9,
    parameters=10,
    max_examples=100,
)
HEADER = ReportHeader(1, Encoding.FLOAT32, 40, b"d" * 32, 10, {"loss": 1.0, "correct": 5.0})
NAMES = [f"client-{number}" for number in range(CLIENTS)]
NONCE = bytes(16)


def automaton(terms: Terms) -> float:
    """Seconds for a whole round of honest clients."""
    round_ = Round(terms)
    round_.handle(e.CohortSelected(dict.fromkeys(NAMES, NONCE)), 0)
    began = time.perf_counter()
    for name in NAMES:
        round_.handle(e.ClientCheckedIn(name, NONCE), 1)
        round_.handle(e.ReportAnnounced(name, HEADER), 2)
        round_.handle(e.ReportArrived(name), 3)
    took = time.perf_counter() - began
    assert round_.phase is Phase.COMMITTING
    return took


def reference() -> float:
    """Seconds for as many look-ups and replacements of a frozen state."""
    members = {name: Member(name, NONCE) for name in NAMES}
    began = time.perf_counter()
    for name in NAMES:
        members[name] = replace(members[name], stage=Stage.CHECKED_IN, checked_in_at_ms=1)
        members[name] = replace(members[name], stage=Stage.ANNOUNCED, header=HEADER)
        members[name] = replace(members[name], stage=Stage.REPORTED, settled_at_ms=3)
    return time.perf_counter() - began


def rate(measure: Callable[[], float]) -> float:
    """Events per second, the median of a few."""
    return EVENTS / middle([measure() for _ in range(REPEATS)], 6)


def main() -> None:
    """All of it."""
    late = Late(20, Weighing.ROOT, counts=True, renormalised=False)
    rates: dict[str, Any] = {
        "plain_round": rate(lambda: automaton(TERMS)),
        "asynchronous_round": rate(lambda: automaton(replace(TERMS, late=late))),
        "reference_replacements": rate(reference),
    }
    finish(
        "core",
        clients=CLIENTS,
        events=EVENTS,
        events_per_second={name: round(value) for name, value in rates.items()},
        automaton_by_reference=round(rates["plain_round"] / rates["reference_replacements"], 3),
    )


if __name__ == "__main__":
    main()
