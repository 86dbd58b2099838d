"""Local invocations: drives `lifecycle.Function` for each function, with fork servers as its instances.

Called by `local_api`, from one thread for each caller. The automaton decides who runs when, on which version; this
module starts and stops servers, waits, and writes down how versions do. A server that is kept for the next call holds
its memory like an instance (`budget`), while a call runs that call's share stands for both; where there is not enough,
it is not kept. Nothing of it needs the network.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime import calls, lifecycle
from edge_runtime.budget import Budget
from edge_runtime.clock import unix_ms
from edge_runtime.config import EdgeConfig
from edge_runtime.functions import Call, Functions
from edge_runtime.instance import Instance
from edge_runtime.jobs import Outcome
from edge_runtime.log import say
from edge_runtime.starts import Starts, rss_mb
from edge_runtime.warm import ForkServer
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError


@dataclass(frozen=True)
class Answer:
    """What an invocation gave: JSON values, and how long it took, ms."""

    value: object
    start: str
    version: int
    total_ms: float


@dataclass
class _Served:
    """One function: its automaton, its servers by digest, and what was decided about invocations."""

    automaton: lifecycle.Function
    servers: dict[str, ForkServer] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    began: dict[str, float] = field(default_factory=dict)
    """When each server's start began, monotonic s."""
    granted: dict[int, lifecycle.Run] = field(default_factory=dict)
    refused: dict[int, Code] = field(default_factory=dict)
    held: dict[str, Callable[[], None]] = field(default_factory=dict)
    """What idle servers hold of the memory: how to give it back."""

    def idle(self) -> set[str]:
        """The servers that wait for the next call."""
        idle = {
            version.digest for version in self.automaton.versions if version.phase is lifecycle.Phase.IDLE
        }
        return idle & self.servers.keys()


class Pool:
    """All functions of one state directory. Thread-safe; `close` ends the servers."""

    def __init__(self, state: Path, config: EdgeConfig, functions: Functions) -> None:
        self._state = state
        self._config = config
        self.functions = functions
        self._starts = Starts(state, functions)
        self._budget = Budget(state, config.limits.total_mb)
        self._served: dict[str, _Served] = {}
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()

    def invoke(self, name: str, event: object, caller: str) -> Answer:
        """Call a function's own entry, or infer with its newest model; `event` and the answer are JSON values.

        Raises `FedlessError`: UNKNOWN_TASK (no such function), QUEUE_FULL, INSTANCE_*, DATA_*, UNKNOWN_BLOB (no model).
        """
        since = time.monotonic()
        number, granted = next(self._numbers), None
        call = {
            "at_ms": unix_ms(),
            "name": name,
            "version": 0,
            "kind": "invoke",
            "start": "cold",
            "caller": caller,
        }
        outcome, times = "done", {"queue_ms": 0.0, "start_ms": 0.0, "run_ms": 0.0}
        try:
            granted = self._admit(name, number)
            start, server = self._server(name, granted)
            waited = self._began(name, granted) - since if start == "cold" else time.monotonic() - since
            times["queue_ms"] = max(0.0, waited) * 1000
            call |= {"version": granted.version, "start": start}
            result = self._run(name, granted, server, event, times)
            call |= {"peak_rss_mb": result.peak_rss_mb}
            return Answer(calls.value(result), start, granted.version, _since(since))
        except FedlessError as error:
            outcome = error.code.value
            raise
        finally:
            if granted is not None:
                blamed = Code.of(outcome) in calls.BLAME
                self._feed(name, lifecycle.Finished(number, failed=blamed))
            times["total_ms"] = _since(since)
            times["start_ms"] = max(0.0, times["total_ms"] - times["queue_ms"] - times["run_ms"])
            if outcome != Code.UNKNOWN_TASK.value:  # or callers could fill the statistics with names
                self.functions.record(Call(**call, outcome=outcome, **times))  # type: ignore[arg-type]

    def tick(self) -> None:
        """Let time pass: servers cool down, callers in the queue run out of time; idle servers give way to others."""
        wanted = self._budget.wanted if self._served else False
        for name in list(self._served):
            self._feed(name, lifecycle.MemoryWanted() if wanted else lifecycle.TimePassed())

    def close(self) -> None:
        """End all servers."""
        with self._changed:
            for served in self._served.values():
                for server in served.servers.values():
                    server.close()
                served.servers.clear()
                self._account(served)

    def _admit(self, name: str, number: int) -> lifecycle.Run:
        """Wait for a turn."""
        with self._changed:
            served = self._look_up(name)
            deadline = _now_ms() + self._config.local.wait_s * 1000
            self._feed(name, lifecycle.Invoked(number, deadline))
            while number not in served.granted and number not in served.refused:
                self._changed.wait(max(0.0, deadline - _now_ms()) / 1000)
                if _now_ms() >= deadline:
                    self._feed(name, lifecycle.TimePassed())
            if number in served.granted:
                return served.granted.pop(number)
            code = served.refused.pop(number)
        raise PeerError(
            code, f"{name} was not run.", retry_after_ms=1000 if code is Code.QUEUE_FULL else None
        )

    def _look_up(self, name: str) -> _Served:
        """The function with all versions that are installed by now."""
        every = self.functions.versions(name)
        installed = [item for item in every if self.functions.folder(item.digest).is_dir()]
        if not installed:
            known = ", ".join(sorted({item.name for item in self.functions.versions()})) or "none"
            raise LocalError(Code.UNKNOWN_TASK, f"There is no function {name} here; known: {known}.")
        served = self._served.get(name)
        if served is None:
            versions = [item.as_version() for item in installed]
            served = self._served[name] = _Served(lifecycle.Function(self._limits(), versions))
        for item in reversed(installed):
            if all(version.digest != item.digest for version in served.automaton.versions):
                self._feed(name, lifecycle.Installed(item.version, item.digest))
        return served

    def _limits(self) -> lifecycle.Limits:
        local, warm = self._config.local, self._config.warm
        keep_ms = warm.keep_s * 1000 if warm.memory_mb else 0
        return lifecycle.Limits(local.concurrency, local.queue, keep_ms)

    def _feed(self, name: str, event: lifecycle.Event) -> None:
        with self._changed:
            served = self._served[name]
            before = [(v.digest, v.proved, v.failures, v.phase) for v in served.automaton.versions]
            for effect in served.automaton.handle(event, _now_ms()):
                self._perform(name, served, effect)
            if not self._account(served):
                for effect in served.automaton.handle(lifecycle.MemoryWanted(), _now_ms()):
                    self._perform(name, served, effect)
                self._account(served)
            for version in served.automaton.versions:
                if (version.digest, version.proved, version.failures, version.phase) not in before:
                    self.functions.judge(version)
            self._changed.notify_all()

    def _account(self, served: _Served) -> bool:
        """Idle servers hold their memory, others do not; False if there is not enough for one of them."""
        idle, enough = served.idle(), True
        for digest in served.held.keys() - idle:
            served.held.pop(digest)()
        for digest in idle - served.held.keys():
            try:
                need_mb = math.ceil(rss_mb(served.servers[digest].pid))
                served.held[digest] = self._budget.take(need_mb, 0)
            except FedlessError:
                enough = False
        return enough

    def _perform(self, name: str, served: _Served, effect: lifecycle.Effect) -> None:
        match effect:
            case lifecycle.Start():
                served.began[effect.digest] = time.monotonic()
                threading.Thread(target=self._start, args=(name, effect.digest), daemon=True).start()
            case lifecycle.Run():
                served.granted[effect.invocation] = effect
            case lifecycle.Refuse():
                served.refused[effect.invocation] = effect.code
            case lifecycle.Stop() | lifecycle.Forget():
                server = served.servers.pop(effect.digest, None)
                if server is not None:
                    server.close()
            case lifecycle.RollBack():
                say("functions", "rolled_back", function=name, given_up=effect.digest[:12], to=effect.to[:12])

    def _start(self, name: str, digest: str) -> None:
        """In a thread: a server takes 100 ms to import."""
        server = None
        try:
            server = ForkServer.start(self._starts.space(calls.unpacked(self._state, digest), self._config))
            server.wait_ready()
        except FedlessError as error:
            say("functions", "not_started", function=name, code=error.code.value, why=error.detail)
            if server is not None:
                server.close()
            self._feed(name, lifecycle.Died(digest))
            return
        with self._changed:
            self._served[name].servers[digest] = server
            self._served[name].fresh.add(digest)
            self._feed(name, lifecycle.Started(digest))

    def _server(self, name: str, granted: lifecycle.Run) -> tuple[str, ForkServer]:
        """The server that a call was granted, and whether it is the first that runs on it: `cold`, or `warm`."""
        with self._changed:
            served = self._served[name]
            server = served.servers.get(granted.digest)
            how = "cold" if granted.digest in served.fresh else "warm"
            served.fresh.discard(granted.digest)
        if server is None:
            raise PeerError(Code.INSTANCE_FAILED, f"The server of {name} was ended.")
        return how, server

    def _began(self, name: str, granted: lifecycle.Run) -> float:
        with self._changed:
            return self._served[name].began[granted.digest]

    def _run(
        self, name: str, granted: lifecycle.Run, server: ForkServer, event: object, times: dict[str, float]
    ) -> Outcome:
        unpacked = calls.unpacked(self._state, granted.digest)
        job = calls.job(unpacked, event, self._starts, self._config, here=True)
        with self._budget.claim(job.memory_mb, self._config.local.wait_s):
            instance = self._forked(name, granted.digest, server)
            with instance:
                try:
                    return instance.run(job, timeout_ms=unpacked.manifest.timeout_ms)
                finally:
                    times["run_ms"] = instance.ran_ms

    def _forked(self, name: str, digest: str, server: ForkServer) -> Instance:
        try:
            return server.instance()
        except (
            LocalError
        ):  # it was killed, for want of memory perhaps: nobody's fault, and the next call starts it
            with self._changed:
                self._served[name].servers.pop(digest, server).close()
                self._feed(name, lifecycle.Died(digest))
            raise PeerError(
                Code.BUSY, f"The server of {name} was lost; try again.", retry_after_ms=100
            ) from None


def _now_ms() -> int:
    return int(time.monotonic() * 1000)


def _since(moment: float) -> float:
    return round((time.monotonic() - moment) * 1000, 3)
