"""What a round asks of whoever it runs on: a device with a journal and a sandbox, or a cloud function with neither.

On a device, `Memory` is the journal and `Instances` are `starts`; in a cloud function both are in
`cloud_adapters.handlers`, where the platform isolates and nothing is kept.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_runtime.jobs import JobKind, Place

if TYPE_CHECKING:
    from edge_runtime.bundle import Unpacked
    from edge_runtime.config import EdgeConfig
    from edge_runtime.instance import Instance
    from fedless.protocol.messages import Ticket


class Memory(Protocol):
    """What is remembered beyond a round."""

    def set_clock(self, theirs_ms: int, ours_ms: int) -> None:
        """The aggregator said its time; ours at that moment (Unix ms)."""
        ...

    def newest_version(self, function: str) -> int:
        """The highest version of a function that was seen; 0: none."""
        ...

    def saw_version(self, function: str, version: int) -> None:
        """A version was verified."""
        ...

    def mask_state(self) -> bytes:
        """The state of masked rounds; empty: nothing yet."""
        ...

    def mask_mark(self) -> bytes:
        """How far it has come, for check-ins; empty: nothing yet."""
        ...

    def fact(self, name: str) -> int:
        """A number that was noted under a name; 0: none."""
        ...

    def set_fact(self, name: str, value: int) -> None:
        """Note a number under a name."""
        ...

    def save_mask_state(self, state: bytes, mark: bytes) -> None:
        """Replace both; durable before this returns, where there is a disk."""
        ...


class Pausing(Protocol):
    """Where a training that takes longer than its host may live is kept until a later invocation goes on with it."""

    def stop_after_ms(self) -> int:
        """For how long the instance may train from now on; 0: as long as it takes."""
        ...

    def load(self, ticket: Ticket) -> Path | None:
        """The file of the state to go on from; None: from the beginning."""
        ...

    def keep(self, ticket: Ticket, state: bytes | bytearray) -> None:
        """Keeps a state; durable before this returns. Raises `LocalError`."""
        ...

    def forget(self, ticket: Ticket) -> None:
        """The report was delivered."""
        ...


class Instances(Protocol):
    """Where the process that trains comes from, and how it is confined."""

    def take(
        self, unpacked: Unpacked, model: str, config: EdgeConfig, now_ms: int, place: Place | None = None
    ) -> Instance:
        """An instance for this version of a function; `model` is the digest of the model that it works on.

        `place`: where its job will be done; an instance that was prepared for another is not given.
        """
        ...

    def rest(self) -> None:
        """The aggregator has nothing to do for this client yet: what was started early may go."""
        ...

    def confinement(self, unpacked: Unpacked, config: EdgeConfig, memory_mb: int) -> dict[str, object]:
        """What the instance does to itself; empty where the platform has done it."""
        ...


def place(kind: JobKind, unpacked: Unpacked, config: EdgeConfig, here: Instances) -> Place:
    """What of a round's job this host knows before the aggregator says more. Raises `LocalError(DATA_MISSING)`."""
    memory_mb = config.memory_mb(unpacked.manifest)
    return Place(
        kind=kind,
        function_dir=str(unpacked.directory.absolute()),
        data=asdict(config.source(unpacked.manifest.data_mounts)),
        threads=config.limits.threads,
        memory_mb=memory_mb,
        confinement=here.confinement(unpacked, config, memory_mb),
    )
