"""*Pure.* The life of one function on a device: its two newest versions, their instances, and the queue before them.

`functions.Host` drives it: it calls `handle` with what happened and performs the effects. A version's instance server
is cold until an invocation needs it, is kept warm for a while, and is drained or retired when a newer version is
ready. Rules: a new version is started before the old one is retired; a version that fails its first invocations is
given up and the one before it comes back; the queue is bounded; nothing runs that is past its deadline.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from fedless.protocol.errors import Code, PeerError


class Phase(StrEnum):
    """Where a version is. `failed` ends it for good, `retired` until it is needed again."""

    COLD = "cold"
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    RETIRED = "retired"
    FAILED = "failed"


class Step(StrEnum):
    """What moves a version from phase to phase."""

    NEED = "need"
    STARTED = "started"
    RUN = "run"
    LAST_DONE = "last done"
    QUIET = "quiet"
    DIED = "died"
    SUPERSEDED = "superseded"
    GIVEN_UP = "given up"
    NEEDED_AGAIN = "needed again"


TRANSITIONS: dict[tuple[Phase, Step], Phase] = {
    (Phase.COLD, Step.NEED): Phase.STARTING,
    (Phase.COLD, Step.SUPERSEDED): Phase.RETIRED,
    (Phase.COLD, Step.GIVEN_UP): Phase.FAILED,
    (Phase.STARTING, Step.STARTED): Phase.IDLE,
    (Phase.STARTING, Step.DIED): Phase.COLD,
    (Phase.STARTING, Step.SUPERSEDED): Phase.RETIRED,
    (Phase.IDLE, Step.RUN): Phase.BUSY,
    (Phase.IDLE, Step.QUIET): Phase.COLD,
    (Phase.IDLE, Step.DIED): Phase.COLD,
    (Phase.IDLE, Step.SUPERSEDED): Phase.RETIRED,
    (Phase.IDLE, Step.GIVEN_UP): Phase.FAILED,
    (Phase.BUSY, Step.RUN): Phase.BUSY,
    (Phase.BUSY, Step.LAST_DONE): Phase.IDLE,
    (Phase.BUSY, Step.DIED): Phase.COLD,
    (Phase.BUSY, Step.SUPERSEDED): Phase.DRAINING,
    (Phase.BUSY, Step.GIVEN_UP): Phase.FAILED,
    (Phase.DRAINING, Step.LAST_DONE): Phase.RETIRED,
    (Phase.DRAINING, Step.DIED): Phase.RETIRED,
    (Phase.DRAINING, Step.NEEDED_AGAIN): Phase.BUSY,
    (Phase.RETIRED, Step.NEEDED_AGAIN): Phase.COLD,
}
"""Any other pair is a mistake of this module."""
_SERVING = frozenset({Phase.IDLE, Phase.BUSY, Phase.DRAINING})
_ENDED = frozenset({Phase.COLD, Phase.RETIRED, Phase.FAILED})


@dataclass(frozen=True)
class Limits:
    """`concurrency` invocations at once, `queue` waiting, servers idle for `keep_warm_ms` (0: none is kept)."""

    concurrency: int = 1
    queue: int = 8
    keep_warm_ms: int = 0
    trials: int = 3


# -- events (past tense) and effects (imperative)


@dataclass(frozen=True)
class Installed:
    """A verified version is on the disk."""

    version: int
    digest: str


@dataclass(frozen=True)
class Invoked:
    """Someone asks for an invocation; `deadline_at_ms` on the driver's clock."""

    invocation: int
    deadline_at_ms: int


@dataclass(frozen=True)
class Started:
    """A version's server is ready."""

    digest: str


@dataclass(frozen=True)
class Died:
    """A version's server could not be started, or ended unasked. Its invocations are reported as finished apart."""

    digest: str


@dataclass(frozen=True)
class Finished:
    """An invocation is over; `failed` if the function is to blame: it raised, hung, took too much."""

    invocation: int
    failed: bool


@dataclass(frozen=True)
class Abandoned:
    """Whoever asked does not want the answer any more. A running invocation is reported as finished apart."""

    invocation: int


@dataclass(frozen=True)
class TimePassed:
    """It may be time for something: see `Function.next_at_ms`."""


@dataclass(frozen=True)
class MemoryWanted:
    """Somebody on this device waits for memory, or there is none for servers that have nothing to do."""


Event = Installed | Invoked | Started | Died | Finished | Abandoned | TimePassed | MemoryWanted


@dataclass(frozen=True)
class Start:
    """Start this version's server; answer with `Started` or `Died`."""

    digest: str


@dataclass(frozen=True)
class Run:
    """Run the invocation on this version; answer with `Finished`."""

    invocation: int
    digest: str
    version: int


@dataclass(frozen=True)
class Refuse:
    """The invocation is not run."""

    invocation: int
    code: Code


@dataclass(frozen=True)
class Stop:
    """End this version's server."""

    digest: str


@dataclass(frozen=True)
class RollBack:
    """The version `digest` is given up for good; `to` (may be empty: there is none) serves again."""

    digest: str
    to: str


@dataclass(frozen=True)
class Forget:
    """The version is not one of the newest two any more: its files may go."""

    digest: str


Effect = Start | Run | Refuse | Stop | RollBack | Forget


@dataclass
class Version:
    """One version. `proved`: an invocation of it has succeeded. `failures`: in a row, before the first success."""

    version: int
    digest: str
    proved: bool = False
    failures: int = 0
    phase: Phase = Phase.COLD
    running: int = 0
    idle_since_ms: int = 0
    leaving: bool = False

    def move(self, step: Step) -> None:
        """To the phase that the table says."""
        self.phase = TRANSITIONS[self.phase, step]


@dataclass
class Function:
    """The automaton. `versions` holds at most two, the newest first; the first that has not failed serves."""

    limits: Limits
    versions: list[Version] = field(default_factory=list)
    waiting: deque[Invoked] = field(default_factory=deque)
    running: dict[int, Version] = field(default_factory=dict)

    def current(self) -> Version | None:
        """Who serves the next invocation: the newest that is ready, and an older one while the newer only starts."""
        usable = [version for version in self.versions if version.phase is not Phase.FAILED]
        if not usable or usable[0].phase is not Phase.STARTING:
            return usable[0] if usable else None
        return next((older for older in usable[1:] if older.phase in _SERVING), usable[0])

    def next_at_ms(self) -> int | None:
        """When `TimePassed` is due: the first deadline in the queue, or the end of a keep-warm time."""
        idle = [v.idle_since_ms + self.limits.keep_warm_ms for v in self.versions if v.phase is Phase.IDLE]
        return min([*idle, *(invoked.deadline_at_ms for invoked in self.waiting)], default=None)

    def handle(self, event: Event, now_ms: int) -> list[Effect]:
        """What to do about it. Raises `PeerError(BUNDLE_OLDER)` for an `Installed` that is older than one seen."""
        effects: list[Effect] = []
        match event:
            case Installed():
                effects += self._install(event)
            case Invoked():
                effects += self._enqueue(event, now_ms)
            case Started():
                effects += self._started(event.digest, now_ms)
            case Died():
                effects += self._died(event.digest)
            case Finished():
                effects += self._finished(event, now_ms)
            case Abandoned():
                self.waiting = deque(item for item in self.waiting if item.invocation != event.invocation)
            case TimePassed() | MemoryWanted():
                pass
        keep_ms = 0 if isinstance(event, MemoryWanted) else self.limits.keep_warm_ms
        return effects + self._expire(now_ms) + self._dispatch() + self._cool(now_ms, keep_ms)

    # -- versions

    def _version(self, digest: str) -> Version | None:
        return next((version for version in self.versions if version.digest == digest), None)

    def _install(self, event: Installed) -> list[Effect]:
        if any(version.digest == event.digest for version in self.versions):
            return []
        newest = max((version.version for version in self.versions), default=0)
        if event.version <= newest:
            raise PeerError(
                Code.BUNDLE_OLDER, f"Version {event.version}; version {newest} was already seen here."
            )
        old = self.current()
        self.versions.insert(0, Version(event.version, event.digest))
        effects: list[Effect] = []
        if old is not None and old.phase in _SERVING:  # it serves until the new one is ready
            self.versions[0].move(Step.NEED)
            effects.append(Start(event.digest))
        for gone in [version for version in self.versions[1:] if version is not old]:
            effects += self._drop(gone)
        return effects

    def _drop(self, gone: Version) -> list[Effect]:
        """Only the newest two are kept; one that still runs stays until it is done."""
        gone.leaving = True
        if gone.running:
            return self._supersede(gone)
        self.versions.remove(gone)
        stop: list[Effect] = [] if gone.phase in _ENDED else [Stop(gone.digest)]
        return [*stop, Forget(gone.digest)]

    def _started(self, digest: str, now_ms: int) -> list[Effect]:
        version = self._version(digest)
        if version is None or version.phase is not Phase.STARTING:
            return [Stop(digest)] if version is None or version.phase in _ENDED else []
        version.move(Step.STARTED)
        version.idle_since_ms = now_ms
        if version is not self.versions[0]:
            return []
        return [effect for older in self.versions[1:] for effect in self._supersede(older)]

    def _supersede(self, older: Version) -> list[Effect]:
        if (older.phase, Step.SUPERSEDED) not in TRANSITIONS:
            return []
        had_server = older.phase is Phase.IDLE
        older.move(Step.SUPERSEDED)
        return [Stop(older.digest)] if had_server else []

    def _died(self, digest: str) -> list[Effect]:
        version = self._version(digest)
        if version is None:
            return []
        starting = version.phase is Phase.STARTING
        if (version.phase, Step.DIED) in TRANSITIONS:
            version.move(Step.DIED)
        if not starting:
            return []
        effects = self._blame(version)
        if version.phase is Phase.COLD:  # starting it again at once would only spin
            effects += [Refuse(item.invocation, Code.INSTANCE_FAILED) for item in self.waiting]
            self.waiting.clear()
        return effects

    def _blame(self, version: Version) -> list[Effect]:
        """One failure more; too many before the first success, and the version before it comes back."""
        if version.proved:
            return []
        version.failures += 1
        older = next(
            (v for v in self.versions if v.version < version.version and v.phase is not Phase.FAILED), None
        )
        if version.failures < self.limits.trials or version.phase is Phase.FAILED or older is None:
            return []
        had_server = version.phase not in _ENDED
        if (version.phase, Step.GIVEN_UP) in TRANSITIONS:
            version.move(Step.GIVEN_UP)
        if (older.phase, Step.NEEDED_AGAIN) in TRANSITIONS:
            older.move(Step.NEEDED_AGAIN)
        stop: list[Effect] = [Stop(version.digest)] if had_server else []
        return [RollBack(version.digest, older.digest), *stop]

    # -- invocations

    def _enqueue(self, event: Invoked, now_ms: int) -> list[Effect]:
        if self.current() is None:
            return [Refuse(event.invocation, Code.WRONG_STATE)]
        free = self.limits.concurrency - len(self.running)
        if event.deadline_at_ms > now_ms and len(self.waiting) >= self.limits.queue + max(0, free):
            return [Refuse(event.invocation, Code.QUEUE_FULL)]
        self.waiting.append(event)
        return []

    def _expire(self, now_ms: int) -> list[Effect]:
        late = [item for item in self.waiting if item.deadline_at_ms <= now_ms]
        self.waiting = deque(item for item in self.waiting if item.deadline_at_ms > now_ms)
        return [Refuse(item.invocation, Code.INSTANCE_TIMEOUT) for item in late]

    def _dispatch(self) -> list[Effect]:
        """Start what is needed, run what can be run."""
        effects: list[Effect] = []
        while self.waiting and len(self.running) < self.limits.concurrency:
            version = self.current()
            if version is None or version.phase is Phase.STARTING:
                break
            if (version.phase, Step.NEEDED_AGAIN) in TRANSITIONS:
                version.move(Step.NEEDED_AGAIN)
            if version.phase is Phase.COLD:
                version.move(Step.NEED)
                effects.append(Start(version.digest))
                break
            item = self.waiting.popleft()
            version.move(Step.RUN)
            version.running += 1
            self.running[item.invocation] = version
            effects.append(Run(item.invocation, version.digest, version.version))
        return effects

    def _finished(self, event: Finished, now_ms: int) -> list[Effect]:
        version = self.running.pop(event.invocation)
        version.running -= 1
        effects: list[Effect] = []
        if event.failed:
            effects += self._blame(version)
        else:
            version.proved, version.failures = True, 0
        if version.running == 0 and (version.phase, Step.LAST_DONE) in TRANSITIONS:
            version.move(Step.LAST_DONE)
            version.idle_since_ms = now_ms
            if version.phase is Phase.RETIRED:
                effects.append(Stop(version.digest))
        if version.leaving and version.running == 0:
            effects += self._drop(version)
        return effects

    def _cool(self, now_ms: int, keep_ms: int) -> list[Effect]:
        """Scale to zero: servers that were idle long enough."""
        effects: list[Effect] = []
        for version in self.versions:
            if version.phase is Phase.IDLE and now_ms - version.idle_since_ms >= keep_ms:
                version.move(Step.QUIET)
                effects.append(Stop(version.digest))
        return effects
