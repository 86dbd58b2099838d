"""*Pure.* The clients of an experiment in groups: what they are, how their network is and how fast they are.

Read by `config` from `[[clients]]`. A group's clients are alike; groups may differ in everything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fedless.protocol.tables import Table

EDGE = "edge"
FUNCTION_KINDS = ("aws-lambda", "google", "knative")
"""Platforms for which a peer can run on this machine (`peers`)."""
KINDS = (EDGE, *FUNCTION_KINDS)
MAX_CLIENTS = 1000
LABEL_OR_NONE = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?)?")
PROFILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Network:
    """A line to the aggregator: ms added in each direction, and Mbit/s for each client (0: as it is)."""

    latency_ms: float = 0.0
    down_mbit_s: float = 0.0
    up_mbit_s: float = 0.0

    @property
    def shaped(self) -> bool:
        """Whether it differs from this machine's loopback."""
        return bool(self.latency_ms or self.down_mbit_s or self.up_mbit_s)


@dataclass(frozen=True)
class ClientGroup:
    """`count` clients of one kind: `edge` is an agent process, the others are functions on a local peer.

    `warm_mb` is what a device may keep in memory between wake-ups, MB (0: every start is cold). `slowdown` 3 leaves
    the clients' processes a third of the time. `device` names a profile of the power table. `memory_mb` and `timeout_s`
    are how a function is deployed; `concurrency` is how many of a `knative` group's functions run at a time.
    """

    kind: str
    count: int
    warm_mb: int = 0
    name: str = ""
    network: Network = Network()
    slowdown: float = 1.0
    device: str = ""
    memory_mb: int = 1024
    timeout_s: int = 600
    concurrency: int = 2

    @property
    def label(self) -> str:
        """What its clients' ids begin with."""
        return self.name or self.kind

    @property
    def functions(self) -> bool:
        """Whether its clients are cloud functions."""
        return self.kind != EDGE


def read_groups(tables: Sequence[Table]) -> tuple[ClientGroup, ...]:
    """The groups that `[[clients]]` describes; mistakes become complaints."""
    return tuple(_group(table) for table in tables)


def client_ids(groups: Sequence[ClientGroup]) -> list[tuple[str, ClientGroup]]:
    """Every client's id with its group, in the file's order; numbers go on from group to group."""
    members = [group for group in groups for _ in range(group.count)]
    digits = len(str(len(members)))
    return [(f"{group.label}-{number:0{digits}d}", group) for number, group in enumerate(members, 1)]


def _group(table: Table) -> ClientGroup:
    return ClientGroup(
        kind=table.choice("kind", (*KINDS, "aws_lambda")).replace("_", "-"),
        count=table.integer("count", 1, MAX_CLIENTS),
        warm_mb=table.integer("warm_mb", 0, 65_536, 0),
        name=table.text("name", LABEL_OR_NONE, ""),
        network=_network(table.optional("network")),
        slowdown=table.real("slowdown", 1.0, 100.0, 1.0),
        device=table.text("device", PROFILE, "raspberry-pi-4"),
        memory_mb=table.integer("memory_mb", 64, 65_536, 1024),
        timeout_s=table.integer("timeout_s", 1, 600, 600),
        concurrency=table.integer("concurrency", 1, 64, 2),
    )


def _network(table: Table | None) -> Network:
    if table is None:
        return Network()
    return Network(
        latency_ms=table.real("latency_ms", 0.0, 10_000.0, 0.0),
        down_mbit_s=table.real("down_mbit_s", 0.0, 100_000.0, 0.0),
        up_mbit_s=table.real("up_mbit_s", 0.0, 100_000.0, 0.0),
    )
