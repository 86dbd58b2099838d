"""Where a round's instance comes from: forked by a warm server, or started cold; in its sandbox, as early as possible.

Called by the participant and the invocation. What a version may see is written down when it is used (`functions`), so
that the next cold start need not wait for settings and manifest: if they have changed meanwhile, the instance that
was started early is thrown away.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import sandbox
from edge_runtime.budget import Budget
from edge_runtime.functions import FOLDER, Functions, Installed
from edge_runtime.instance import Instance
from edge_runtime.log import say
from edge_runtime.warm import ForkServer
from fedless.protocol.errors import Code, FedlessError, LocalError, PeerError

if TYPE_CHECKING:
    from edge_runtime.bundle import Unpacked
    from edge_runtime.config import EdgeConfig
    from edge_runtime.jobs import JobKind, Place
    from fedless.protocol.manifest import Manifest

_SPARE_CPU_S = 10
WAIT_S = 20.0
"""So long a round or an order waits for memory that other instances hold; then it is begun again later."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Starts:
    """Of one participant; `close` ends what is left over. `last` is the version that was used last."""

    state: Path
    functions: Functions
    last: Installed | None = None
    _early: Instance | None = field(init=False, default=None)
    _early_for: tuple[str, sandbox.Space | None] | None = field(init=False, default=None)
    _early_claimed: bool = field(init=False, default=False)
    _server: ForkServer | None = field(init=False, default=None)
    _server_for: tuple[str, sandbox.Space | None] | None = field(init=False, default=None)

    def early(self, digest: str) -> None:
        """Start an instance for a version that was used here before."""
        known = self.functions.find(digest)
        if known is not None and self._early is None:
            wanted = (digest, known.space)
            self._early, self._early_for, self._early_claimed = self._start(wanted, wait=False), wanted, False

    def prepare(self, kind: JobKind, digest: str, config: EdgeConfig) -> None:
        """Tell the early instance where its job will be, so that it reads data and graph while we ask for the rest.

        Not if memory for it is not free at once, nor for what `take` will refuse: that is told there.
        """
        from edge_runtime import bundle, host  # noqa: PLC0415  (after the instance was started)

        if self._early is None or self._early_claimed:
            return
        try:
            unpacked = bundle.find(self.functions.state / FOLDER, digest)
            if unpacked is None or self._early_for != (digest, self.space(unpacked, config)):
                return
            self._refuse_older(unpacked.manifest, digest)
            place = host.place(kind, unpacked, config, self)
            self._early.over = self._claim(unpacked, config, 0)
        except (FedlessError, OSError) as error:
            say("participant", "not_prepared", why=str(error))
            return
        self._early_claimed = True
        self._early.prepare(place)

    def take(
        self, unpacked: Unpacked, model: str, config: EdgeConfig, now_ms: int, place: Place | None = None
    ) -> Instance:
        """An instance for this version: the early one if it sees exactly what it may see, else a new one.

        `model` is the digest of the model that it works on, `place` where its job will be done: an instance that was
        prepared for another is not given. It holds its part of the memory (`budget`) until it has ended. Raises
        `PeerError` BUNDLE_OLDER, BUSY or QUEUE_FULL (no memory now); `LocalError` NOT_INSTALLED if the owner demands a
        whole sandbox and there is none, CONFIG_INVALID, DATA_MISSING for a source that is not described.
        """
        space = self.space(unpacked, config)
        self.last = self.install(unpacked, space, model, now_ms)
        wanted = (unpacked.digest, space)
        early = self._early
        if early is not None and early.how == "warm" and not early.speaks():  # its server was killed
            self.discard()
            self._drop_server()
        elif early is not None and (self._early_for != wanted or not early.fits(place)):
            self.discard()
        elif early is not None and self._early_claimed:
            self._early = None
            return early
        over = self._claim(unpacked, config, WAIT_S)
        try:
            instance = self._early or self._start(wanted)
        except BaseException:
            over()
            raise
        self._early = None
        instance.over = over
        return instance

    def _claim(self, unpacked: Unpacked, config: EdgeConfig, wait_s: float) -> Callable[[], None]:
        """Its part of the memory, and how to give it back."""
        return Budget(self.state, config.limits.total_mb).take(config.memory_mb(unpacked.manifest), wait_s)

    def space(self, unpacked: Unpacked, config: EdgeConfig) -> sandbox.Space | None:
        """What the version may see; None where there are no namespaces."""
        level = sandbox.level(self.state)
        if config.sandbox.mode == "required" and not level.full:
            raise LocalError(
                Code.NOT_INSTALLED,
                f"edge.toml demands a whole sandbox; here are {', '.join(level.mechanisms)}. {level.why_not}".strip(),
                fix="Install bubblewrap and allow user namespaces; see `fedless-edge doctor`.",
            )
        if config.sandbox.mode == "off" or not level.namespaces:
            return None
        manifest = unpacked.manifest
        read = [
            str(unpacked.directory.absolute()),
            *(source.path for source in config.sources(manifest).values()),
        ]
        return sandbox.Space(tuple(read), config.sandbox.scratch_mb, manifest.network)

    def confinement(self, unpacked: Unpacked, config: EdgeConfig, memory_mb: int) -> dict[str, object]:
        """What the instance does to itself; empty if the owner has switched the sandbox off."""
        if config.sandbox.mode == "off":
            return {}
        manifest = unpacked.manifest
        read = (
            str(unpacked.directory.absolute()),
            *(source.path for source in config.sources(manifest).values()),
        )
        seen = sandbox.Space(read, config.sandbox.scratch_mb, manifest.network)
        cpu_s = manifest.timeout_ms * config.limits.threads // 1000 + _SPARE_CPU_S
        return sandbox.confinement(seen, memory_mb, cpu_s, sandbox.level(self.state))

    def keep_warm(self, budget_mb: int) -> bool:
        """After a round: have a fork server ready for the version that was used, if it fits with us into the budget."""
        if self.last is None:
            return False
        wanted = (self.last.digest, self.last.space)
        if self._server is None or self._server_for != wanted:
            self._drop_server()
            self._server, self._server_for = ForkServer.start(wanted[1]), wanted
            try:
                self._server.wait_ready()
            except LocalError:
                self._drop_server()
                return False
        if rss_mb(os.getpid()) + rss_mb(self._server.pid) > budget_mb:
            self._drop_server()
            return False
        return True

    def close(self) -> None:
        """End the server and an instance that was not used, and close `functions`."""
        self.discard()
        self._drop_server()
        self.functions.close()

    def rest(self) -> None:
        """While the aggregator says "not now", nothing is held for a job that may never come."""
        self.discard()

    def discard(self) -> None:
        """End an instance that was not used."""
        if self._early is not None:
            self._early.close()
            self._early = None

    def _start(self, wanted: tuple[str, sandbox.Space | None], *, wait: bool = True) -> Instance:
        """`wait`: until a forked one is known to be there."""
        if self._server is not None and self._server_for == wanted:
            try:
                return self._server.instance(wait=wait)
            except (
                LocalError
            ):  # it was killed, by the kernel for want of memory perhaps: a cold start still works
                self._drop_server()
        return Instance.start(space=wanted[1])

    def install(self, unpacked: Unpacked, space: sandbox.Space | None, model: str, now_ms: int) -> Installed:
        """Make a verified version one of the newest two of its function, or note what it may see and work on now.

        Raises `PeerError(BUNDLE_OLDER)` for one that is older than one seen here, unless it serves: the newer was
        given up.
        """
        manifest, known = unpacked.manifest, self.functions.find(unpacked.digest)
        self._refuse_older(manifest, unpacked.digest)
        model = model or (known.model if known is not None else "")
        found = Installed(
            unpacked.digest, manifest.name, manifest.version, manifest.entry,
            proved=False, failures=0, given_up=False, space=space, model=model,
        )  # fmt: skip
        if known is None or (known.space, known.model) != (space, model):
            for gone in self.functions.install(found, now_ms):
                shutil.rmtree(self.functions.folder(gone), ignore_errors=True)
        return found

    def _refuse_older(self, manifest: Manifest, digest: str) -> None:
        newest = self.functions.newest_seen(manifest.name)  # also those that were brought here by hand
        serves = self.functions.current(manifest.name)
        if manifest.version < newest and (serves is None or serves.digest != digest):
            detail = f"{manifest.name} version {manifest.version}; version {newest} was already seen here."
            raise PeerError(Code.BUNDLE_OLDER, detail)

    def _drop_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


def rss_mb(pid: int) -> float:
    """Resident memory of a process and all below it, MB; pages that they share count once for each."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except (OSError, IndexError):
        return 0.0
    return pages * _PAGE / 2**20 + (sum(rss_mb(int(child)) for child in below) if pid != os.getpid() else 0.0)
