"""Cloud functions join a local fleet: their platform's peer starts, they are registered, their deployment is laid down.

Called by `fleet`. A function's data lies beside its deployment, which names its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aggregator.founding import write_private
from fedless.experiments.conditions import Conditions
from fedless.experiments.groups import ClientGroup
from fedless.experiments.operator import Operator
from fedless.experiments.peers import STARTS, Peer, Place
from fedless.experiments.processes import Children

MODES = ("plain", "helper")
"""Pairwise masks need a memory between rounds, which a function has not."""
Members = Mapping[ClientGroup, Mapping[str, bytes]]
"""The .npz bytes of each client's examples, by group and client id."""


def deploy(
    folder: Path,
    groups: Members,
    source: str,
    operator: Operator,
    conditions: Conditions,
    children: Children,
) -> list[Peer]:
    """Everything up to functions that may be invoked. Raises `LocalError` and `PeerError`."""
    peers = []
    for group, members in groups.items():
        place = Place(folder / group.label, group, tuple(members), conditions, children)
        place.folder.mkdir(parents=True, mode=0o700)
        peer = STARTS[group.kind](place)
        peers.append(peer)
        for client_id, examples in members.items():
            data = (place.folder / f"{client_id}.npz").absolute()
            write_private(data, examples)
            settings = {
                **peer.settings[client_id],
                "memory_mb": group.memory_mb,
                "timeout_s": group.timeout_s,
                "modes": list(MODES),
                "data": {source: {"kind": "npz", "path": str(data)}},
            }
            deployment = operator.add_function(client_id, group.kind, settings)
            write_private(place.folder / f"{client_id}.json", deployment.encode())
    return peers
