"""What a group's clients put up with: a slow line (`shaping`) and a slow processor (`pacing`). Called by `fleet`.

The line is a process of the fleet; a client is told of its own by the variable `FEDLESS_PROXY`. Slowing is done by
threads of this process, to the processes that `roots` names by client.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from fedless.experiments.groups import ClientGroup
from fedless.experiments.pacing import Pacer
from fedless.experiments.processes import Children, wait_until
from fedless.experiments.shaping import HOST, PORTS_FILE, variables

READY_S = 30.0
LINES_FILE = "lines.json"
NAME = "network"


class Conditions:
    """The lines and speeds of a fleet's clients, by client id."""

    def __init__(self, groups: Mapping[str, ClientGroup]) -> None:
        self._groups = dict(groups)
        self._ports: dict[str, int] = {}

    def start_lines(self, folder: Path, children: Children) -> None:
        """Start the proxies, if a client needs one. Raises `LocalError` if they do not come up."""
        lines = {name: asdict(group.network) for name, group in self._groups.items() if group.network.shaped}
        if not lines:
            return
        folder.mkdir(parents=True)
        (folder / LINES_FILE).write_text(json.dumps(lines), encoding="utf-8")
        children.start(NAME, (sys.executable, "-m", "fedless.experiments.shaping", str(folder / LINES_FILE)))
        ready = folder / PORTS_FILE

        def written() -> bool:
            return ready.is_file() and ready.read_text(encoding="utf-8").endswith("\n")

        wait_until(written, READY_S, lambda: "The clients' lines are not ready.", children)
        self._ports = json.loads(ready.read_text(encoding="utf-8"))

    def proxy(self, client_id: str) -> str:
        """The URL of a client's line; "" for one whose line is this machine's own."""
        return f"http://{HOST}:{self._ports[client_id]}" if client_id in self._ports else ""

    def environment(self, client_id: str) -> dict[str, str]:
        """What a client's processes are told of its line."""
        return variables(self.proxy(client_id))

    def slow(self, exits: ExitStack, roots: Callable[[str], Collection[int]]) -> None:
        """Slow down until `exits` ends; `roots` names a client's processes, now."""
        speeds = sorted({group.slowdown for group in self._groups.values() if group.slowdown > 1.0})
        for speed in speeds:
            names = [name for name, group in self._groups.items() if group.slowdown == speed]
            exits.enter_context(Pacer(speed, _all(names, roots)))


def _all(names: Collection[str], roots: Callable[[str], Collection[int]]) -> Callable[[], set[int]]:
    return lambda: {pid for name in names for pid in roots(name)}
