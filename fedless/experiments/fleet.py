"""A whole fleet on this machine: aggregator, broker and N devices, each a process, on free loopback ports.

`run` and the benchmarks use it. Everything lives in one folder, so that the folder's end is the fleet's end:

    fleet/                the aggregator's side, as `fedless init` makes it
    helper/               the second party of helper mode, if asked for
    devices/<client-id>/  one device each: its state directory, edge.toml and its own data.npz
    functions/<group>/    the deployments and the data of a group of cloud functions
    logs/<process>.log    what each process said

The processes are the real programs, started as a user would: `fedless aggregator serve`, `fedless helper serve`,
`fedless-edge enroll` and `fedless-edge run`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from aggregator.authority import Authority
from aggregator.founding import Ports, found_fleet, write_private
from fedless.experiments.conditions import Conditions
from fedless.experiments.deployments import deploy
from fedless.experiments.groups import EDGE, ClientGroup
from fedless.experiments.operator import Connect, Operator
from fedless.experiments.peers import SDK_KEYS, Peer
from fedless.experiments.processes import Child, Children, wait_until
from fedless.helper.main import ENDPOINT_FILE, found
from fedless.protocol.identity import Name, Role
from fedless.protocol.secagg.helper import HelperRules
from fedless.protocol.tables import write_tables

HOST = "127.0.0.1"
FLEET = "local"
DATA_FILE = "data.npz"
# Devices of one's own on one's own machine: plain rounds need no further consent here.
CONSENT = write_tables({"policy": {"modes": ["plain", "pairwise", "helper"]}})
READY_S = 30.0
ENROLL_S = 60.0
ONLINE_S = 60.0
STOP_S = 8.0
HELPER_DAYS = 30
FEDLESS = (sys.executable, "-c", "from fedless.console.main import main; main()")
AGENT = (sys.executable, "-m", "edge_runtime.cli")
DEVICE = ClientGroup(EDGE, 1)
_MB = 1e6


@dataclass(frozen=True)
class Device:
    """One client to be: its id, the .npz bytes of its own examples, its edge.toml's further tables, and its group.

    Of a group of another kind than `edge` it is a cloud function, without an edge.toml.
    """

    client_id: str
    examples: bytes = field(repr=False)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    group: ClientGroup = DEVICE


class LocalFleet:
    """A fleet that runs while the `with` block does: when it is entered, every device is online, every function there.

    `connect` makes the operator's client of a fleet's folder; `source` is the name that the function's manifest gives
    to the data; `helper` asks for a helper with these rules; `logs` is where the logs go if not into the folder;
    `environment` is added to every process' own. Entering raises `LocalError` with the reason and the last words of
    the process that failed, after everything is stopped again.
    """

    def __init__(
        self,
        folder: Path,
        devices: Sequence[Device],
        connect: Connect,
        *,
        source: str = "default",
        helper: HelperRules | None = None,
        logs: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.aggregator_folder = self.folder / "fleet"
        self.clients = tuple(devices)
        self.devices = tuple(one for one in devices if not one.group.functions)
        self.children = Children(logs or self.folder / "logs")
        self.aggregator: Child
        self.agents: dict[str, Child] = {}
        self.peers: list[Peer] = []
        self.conditions = Conditions({one.client_id: one.group for one in devices})
        self._connect = connect
        self._source = source
        self._helper = helper
        self.environment = dict(environment or {})
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        """Start everything."""
        self._exits.callback(self._stop)
        try:
            self._start_aggregator()
            self.conditions.start_lines(self.folder / "lines", self.children)
            self._enroll()
            self._deploy()
            for device in self.devices:
                self.start_agent(device.client_id)
            self._wait_online()
            self.conditions.slow(self._exits, self._pids)
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End every process, the agents first, so that they can take their leave of the broker."""
        self._exits.close()

    def operator(self) -> Operator:
        """A new connection to the aggregator, closed with the fleet."""
        operator = self._connect(self.aggregator_folder)
        self._exits.callback(operator.close)
        return operator

    def state_folder(self, client_id: str) -> Path:
        """A device's state directory."""
        return self.folder / "devices" / client_id

    def start_agent(self, client_id: str) -> None:
        """Start (again) the agent of an enrolled device."""
        argv = (*AGENT, "run", "--state", str(self.state_folder(client_id)))
        environment = {**self.environment, **self.conditions.environment(client_id)}
        self.agents[client_id] = self.children.start(client_id, argv, environment)

    def kill_device(self, client_id: str) -> None:
        """Kill everything that runs on a device; its state stays."""
        self.children.kill(self.agents.pop(client_id))

    def agent_rss_mb(self) -> dict[str, float]:
        """Resident memory of each running agent process now, in MB."""
        return {
            name: psutil.Process(child.process.pid).memory_info().rss / _MB
            for name, child in self.agents.items()
            if child.alive
        }

    def _start_aggregator(self) -> None:
        now_ms = time.time_ns() // 1_000_000
        authority = found_fleet(self.aggregator_folder, FLEET, HOST, Ports(0, 0, 0), now_ms)
        tables = CONSENT + (self._start_helper(authority, now_ms, self._helper) if self._helper else "")
        settings = self.aggregator_folder / "aggregator.toml"
        write_private(settings, settings.read_bytes() + tables.encode())
        argv = (*FEDLESS, "aggregator", "serve", "--fleet", str(self.aggregator_folder))
        keys = SDK_KEYS if any(one.group.kind == "aws-lambda" for one in self.clients) else {}
        self.aggregator = self.children.start("aggregator", argv, {**self.environment, **keys})
        ready = self.aggregator_folder / "state" / "endpoints.json"
        wait_until(ready.is_file, READY_S, lambda: "The aggregator is not ready.", self.children)

    def _start_helper(self, authority: Authority, now_ms: int, rules: HelperRules) -> str:
        """Start a helper that the fleet certified; the aggregator's settings about it."""
        folder = self.folder / "helper"
        found(folder, FLEET, authority.pem)
        request = (folder / "request.der").read_bytes()
        issued = authority.issue(Name(FLEET, Role.HELPER, "main"), request, now_ms, HELPER_DAYS)
        write_private(folder / "cert.pem", issued.chain_pem)
        own = (folder / "helper.toml").read_bytes()
        listen = write_tables({"listen": {"address": HOST, "port": 0}, "rules": asdict(rules)})
        write_private(folder / "helper.toml", own + listen.encode())
        self.children.start("helper", (*FEDLESS, "helper", "serve", str(folder)), self.environment)
        ready = folder / "state" / ENDPOINT_FILE

        def written() -> bool:
            return ready.is_file() and ready.read_text().endswith("\n")

        wait_until(written, READY_S, lambda: "The helper is not ready.", self.children)
        port = json.loads(ready.read_text())["port"]
        return write_tables({"helper": {"address": f"{HOST}:{port}", "directory": str(folder)}})

    def _enroll(self) -> None:
        """Each device gets its claim through standard input and its settings and examples as files."""
        if not self.devices:
            return
        operator = self.operator()
        claims = operator.issue_claims([device.client_id for device in self.devices])

        def enroll(device: Device) -> None:
            state = self.state_folder(device.client_id)
            write_private(state / DATA_FILE, device.examples)
            data = {self._source: {"kind": "npz", "path": DATA_FILE}}
            write_private(state / "edge.toml", write_tables({**device.settings, "data": data}).encode())
            argv = (*AGENT, "enroll", "--state", str(state))
            self.children.run(device.client_id, argv, f"{claims[device.client_id]}\n".encode(), ENROLL_S)

        pool = ThreadPoolExecutor(os.cpu_count() or 1)
        try:
            for done in [pool.submit(enroll, device) for device in self.devices]:
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _deploy(self) -> None:
        groups: dict[ClientGroup, dict[str, bytes]] = {}
        for one in self.clients:
            if one.group.functions:
                groups.setdefault(one.group, {})[one.client_id] = one.examples
        if groups:
            folder, operator = self.folder / "functions", self.operator()
            self.peers = deploy(folder, groups, self._source, operator, self.conditions, self.children)

    def _pids(self, client_id: str) -> list[int]:
        """The processes that are a client's: its agent, or what serves its function."""
        owners = [self.agents, *(peer.children for peer in self.peers)]
        return [owner[client_id].process.pid for owner in owners if client_id in owner]

    def _wait_online(self) -> None:
        operator = self.operator()
        wanted = {device.client_id for device in self.devices}

        def missing() -> set[str]:
            return wanted - operator.online()

        def reason() -> str:
            names = sorted(missing())
            return f"{len(names)} of {len(wanted)} devices are not online: {', '.join(names[:5])}."

        wait_until(lambda: not missing(), ONLINE_S, reason, self.children)

    def _stop(self) -> None:
        self.children.stop(lambda child: child.name != "aggregator", STOP_S)
