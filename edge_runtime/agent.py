"""The agent: idles on MQTT, and starts a participant for each wake-up.

It holds no crypto but TLS, and imports no more than idling needs: ssl and paho.
Started by `fedless-edge run`, which has checked the configuration. One participant at a time; further wake-ups wait,
unacknowledged and bounded (the broker is told so by MQTT's receive maximum). A wake-up is acknowledged when the
participant has journaled it. The loop sleeps until something happens: a packet, a child's word, a signal, or the
next thing that it planned itself.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import selectors
import signal
import sys
import time

from edge_runtime.disk import write_whole
from edge_runtime.doorway import PAUSE_S, Doorway
from edge_runtime.handover import Child, Wake
from edge_runtime.lifetime import Lifetime
from edge_runtime.log import say
from edge_runtime.notify import ALIVE, READY, STOPPING, notify
from edge_runtime.proving import proved, start_again
from edge_runtime.timetable import Timetable
from edge_runtime.wake import Allowance, WakeLine, jitter

TICK_S = 60.0
"""At least this often the MQTT keepalive is looked after, and four times in each such interval."""
STARTS_MAX = 3
RETRY_MAX_S = 300.0
KILL_S = 5.0
ANSWER_S = 20.0
BUSY_EXIT = 75
FIRST_PAUSE_S = 1.0


class Agent:
    """The idle loop over one state directory. `options` are those of `main`."""

    def __init__(
        self, state: str, options: dict[str, int], command: list[str], local: list[str] | None = None
    ) -> None:
        self.state = state
        self.options = options
        self._command = command
        now = time.monotonic()
        self._line = WakeLine(state, options["keepalive"], options["queue"], self._woken, self._changed)
        self._allowance = Allowance(options["rate"], now)
        self._waiting: list[Wake] = []
        self._child: Child | None = None
        self._stop_at: float | None = None
        self.again = False
        self._killed = False
        self._connect_at = now
        self._failures = 0
        self._lifetime = Lifetime(state)
        self._resume_at: float | None = now
        self._resumptions = 0
        self._told = ("", "")
        self._selector = selectors.DefaultSelector()
        self._signals, wake_fd = os.pipe()
        os.set_blocking(self._signals, False)
        os.set_blocking(wake_fd, False)
        signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._stop)
        self._selector.register(self._signals, selectors.EVENT_READ, "signal")
        self._door: Doorway | None = None
        self._timetable: Timetable | None = None
        if local:
            self._open_locally(local[0], local[1], local[2:])

    def run(self) -> None:
        """Idle until SIGTERM or SIGINT, then drain."""
        self._tell("starting", "")
        gc.collect()
        gc.freeze()
        notify(READY)
        while self._stop_at is None:
            notify(ALIVE)
            self._connect()
            self._start()
            self._wait(min(self._next_s(), self._local_s()))
        say("agent", "draining", participant=self._child.pid if self._child else None)
        notify(STOPPING)
        self._line.close()
        for own in (self._door, self._timetable):
            if own is not None:
                own.close(signal.SIGTERM)
        self._drain()
        self._tell("stopped", "")

    # -- the device's own calls

    def _open_locally(self, path: str, entries: str, start: list[str]) -> None:
        state = ["--state", self.state]
        if path:
            self._door = Doorway(path, [*start, "edge_runtime.local_api", *state], self._selector)
        if entries:
            command = [*start, "edge_runtime.scheduled", *state, "--name"]
            self._timetable = Timetable(entries, command, self._selector)

    def _local_s(self) -> float:
        """See to them; how long nothing of theirs is due."""
        door_at = None if self._door is None else self._door.look()
        due = [TICK_S] if door_at is None else [PAUSE_S]
        return min(due if self._timetable is None else [*due, self._timetable.look()])

    # -- waiting

    def _next_s(self) -> float:
        """How long nothing is due."""
        now = time.monotonic()
        due = [now + min(TICK_S, self.options["keepalive"] / 4)]
        if not self._line.connected:
            due.append(self._connect_at)
        if self._free and self._waiting:
            due.append(now + self._allowance.wait_s(now))
        if self._free and self._resume_at is not None:
            due.append(self._resume_at)
        if self._free:
            due.append(now + self._lifetime.due_s())
        return max(0.0, min(due) - now)

    def _wait(self, seconds: float) -> None:
        """Sleep until something happens or `seconds` are over, and see to it."""
        socket = self._line.socket
        if socket is not None:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._line.wants_write else 0)
            self._selector.register(socket, events, "mqtt")
        try:
            found = self._selector.select(0 if self._line.pending else seconds)
        finally:
            if socket is not None:
                self._selector.unregister(socket)
        for key, events in found:
            if key.data == "mqtt" and events & selectors.EVENT_WRITE:
                self._line.write()
            elif key.data == "signal":
                os.read(self._signals, 64)
            elif key.data == "output":
                self._hear()
            elif key.data == "ended":
                self._ended()
            elif callable(key.data):  # the doorway's
                key.data()
        if self._line.socket is not None and (
            self._line.pending or any(key.data == "mqtt" for key, _ in found)
        ):
            self._line.read()
        self._line.keep()

    # -- the broker

    def _connect(self) -> None:
        """Try to connect when it is time; say so once when that changes."""
        now = time.monotonic()
        if self._line.connected or now < self._connect_at:
            return
        if self._line.open:
            self._line.drop()
            self._changed(False, "the broker does not answer")  # noqa: FBT003
            return
        try:
            self._line.connect()
            self._connect_at = now + ANSWER_S
        except (OSError, ValueError) as error:
            self._line.drop()
            self._changed(False, _why(error))  # noqa: FBT003 - a state, told by name in the callback

    def _changed(self, connected: bool, reason: str) -> None:  # noqa: FBT001
        if connected:
            self._failures = 0
            self._tell("connected", reason)
            proved()
            return
        self._waiting.clear()  # what was not acknowledged comes again on the next connection, under its own packet id
        if self._child is not None:
            self._child.wake.mid = None
        self._later()
        self._tell("disconnected", reason)

    def _later(self) -> None:
        pause = min(FIRST_PAUSE_S * 2**self._failures, float(self.options["reconnect"])) * jitter()
        self._failures = min(self._failures + 1, 16)
        self._connect_at = time.monotonic() + pause

    def _woken(self, mid: int, data: bytes) -> None:
        """A wake-up came. One that we know from before a lost connection only gets its new packet id."""
        known = [wake for wake in self._waiting if wake.data == data]
        if self._child is not None and self._child.wake.data == data:
            known.append(self._child.wake)
            if self._child.accepted:
                self._line.acknowledge(mid)
        if known:
            known[0].mid = mid
        elif len(self._waiting) >= self.options["queue"]:
            say("agent", "wake_dropped", why="queue_full", waiting=len(self._waiting))
        else:
            self._waiting.append(Wake(mid, data))

    # -- the participant

    @property
    def _free(self) -> bool:
        """No participant runs, or the one that stays can take the next wake-up."""
        return self._child is None or self._child.idle

    def _start(self) -> None:
        """Start a participant if one is due and allowed."""
        now = time.monotonic()
        if not self._free:
            return
        if self._waiting and self._allowance.wait_s(now) == 0:
            self._launch(self._waiting.pop(0))
        elif not self._waiting and self._resume_at is not None and now >= self._resume_at:
            self._launch(Wake(None, b""))
        elif not self._waiting and self._lifetime.due_s() <= 0:
            self._lifetime.tried()
            self._launch(Wake(None, b""))

    def _launch(self, wake: Wake) -> None:
        self._resume_at = None
        if wake.data:
            self._allowance.take()
        wake.starts += 1
        if self._child is not None:
            self._child.give(wake, rss_mb())
            return
        command = [*self._command, "--state", self.state, "--agent-rss", f"{rss_mb():.1f}"]
        command += ["--received", f"{wake.received:.3f}", "--started", f"{time.monotonic() * 1000:.3f}"]
        try:
            self._child = Child(command, wake, rss_mb() if self.options.get("stay") else None)
        except OSError as error:
            say("agent", "participant_not_started", why=error)
            self._retry(wake)
            return
        self._selector.register(self._child.output, selectors.EVENT_READ, "output")
        self._selector.register(self._child.ended, selectors.EVENT_READ, "ended")

    def _hear(self) -> None:
        child = self._child
        if child is None:
            return
        known, idle = child.accepted, child.idle
        if not child.listen():
            self._selector.unregister(child.output)
        if child.accepted and not known and child.wake.mid is not None:
            self._line.acknowledge(child.wake.mid)
        if child.idle and not idle:
            self._settle(child, 0)

    def _ended(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for descriptor in (child.output, child.ended):
            if descriptor in self._selector.get_map():
                self._selector.unregister(descriptor)
        known, idle, status = child.accepted, child.idle, child.reap()
        if child.accepted and not known and child.wake.mid is not None:
            self._line.acknowledge(child.wake.mid)
        if status != 0:
            say("agent", "participant_failed", status=status, starts=child.wake.starts)
        if not idle:
            self._settle(child, status)

    def _settle(self, child: Child, status: int) -> None:
        """A wake-up is done, or was left undone."""
        self._lifetime.look()
        if not child.accepted and child.wake.data:
            self._retry(child.wake)
        elif status != 0 or child.retry_ms:
            self._resume_later(child.retry_ms or 5000)
        else:
            self._resumptions = 0

    def _retry(self, wake: Wake) -> None:
        """A wake-up that was not even judged is tried a few times, then given up so that it cannot block others."""
        if wake.starts < STARTS_MAX:
            self._waiting.append(wake)
            self._allowance.take()
            return
        say("agent", "wake_dropped", why="participant_failed", starts=wake.starts)
        if wake.mid is not None:
            self._line.acknowledge(wake.mid)

    def _resume_later(self, after_ms: int) -> None:
        pause = min(after_ms / 1000 * 2 ** min(self._resumptions, 8), RETRY_MAX_S) * jitter()
        self._resumptions += 1
        self._resume_at = time.monotonic() + pause

    # -- the end

    def _stop(self, number: int, *_: object) -> None:
        self.again = number == signal.SIGUSR1 and (self.again or self._stop_at is None)
        self._stop_at = time.monotonic() + self.options["drain"]

    def _drain(self) -> None:
        """Let the participant finish; then ask it, then force it, to end."""
        steps = ((signal.SIGTERM, KILL_S), (signal.SIGKILL, KILL_S))
        until = self._stop_at or time.monotonic()
        if self._child is not None:
            self._child.dismiss()
        for number, more_s in steps:
            while self._child is not None and time.monotonic() < until:
                self._wait(max(0.0, until - time.monotonic()))
            if self._child is not None:
                say("agent", "participant_stopped", signal=number.name)
                self._child.kill(number)
                until = time.monotonic() + more_s
        while self._child is not None and time.monotonic() < until:
            self._wait(max(0.0, until - time.monotonic()))

    def _tell(self, now: str, reason: str) -> None:
        """Log a change once, and leave it in `agent.json` for `status`."""
        if (now, reason) == self._told:
            return
        self._told = (now, reason)
        say(
            "agent",
            now,
            broker=reason if now == "connected" else "",
            why=reason if now == "disconnected" else "",
        )
        at_ms, rss = time.time_ns() // 1_000_000, round(rss_mb(), 1)
        values = {"pid": os.getpid(), "state": now, "reason": reason, "at_ms": at_ms, "rss_mb": rss}
        try:
            write_whole(f"{self.state}/agent.json", json.dumps(values).encode(), sync=False)
        except OSError as error:
            say("agent", "state_not_written", why=error)


def rss_mb() -> float:
    """This process's resident memory, MB."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - pathlib costs memory
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def hold_lock(state: str) -> int:
    """Take `DIR/lock` for as long as this process lives. Raises BlockingIOError if another agent has it."""
    descriptor = os.open(f"{state}/lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def _why(error: Exception) -> str:
    text = str(error)
    if "certificate has expired" in text or "not yet valid" in text:
        return f"{text}: by this device's clock the broker's certificate is not valid; check the clock"
    return f"{type(error).__name__}: {text}"


def main(arguments: list[str] | None = None) -> int:
    """Run until told to stop: `--state DIR --NAME NUMBER ... -- COMMAND ... [-- SOCKET ENTRIES START ...]`.

    The command starts a participant. START is put before a module of ours: the local API, which serves SOCKET (or
    empty), and the calls of the timetable's ENTRIES (`NAME:SECONDS,...` or empty).
    """
    given = sys.argv[1:] if arguments is None else arguments
    cut = given.index("--")
    named = dict(zip(given[:cut:2], given[1:cut:2], strict=True))
    state = named.pop("--state")
    options = {name.removeprefix("--"): int(value) for name, value in named.items()}
    try:
        lock = hold_lock(state)
    except BlockingIOError:
        from fedless.protocol.errors import Code, LocalError

        detail = f"Another agent runs on {state}."
        error = LocalError(Code.STATE_LOCKED, detail, fix="Stop it, or use another --state.")
        sys.stderr.write(f"fedless-edge: {error}\n")
        return 1
    command = given[cut + 1 :]
    local = command[command.index("--") + 1 :] if "--" in command else []
    agent = Agent(state, options, command[: len(command) - len(local) - bool(local)], local)
    agent.run()
    os.close(lock)
    if agent.again:
        start_again()
    return 0
