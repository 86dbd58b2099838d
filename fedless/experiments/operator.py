"""What an experiment asks of the aggregator's operator service.

`fedless.console.link.Link` is this over mTLS. The console is above this room, so it passes its link in:
`Connect` makes one for a fleet's operator folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

Connect = Callable[[Path], "Operator"]


class Operator(Protocol):
    """Calls that block and raise `PeerError`; replies are the messages of operator.proto."""

    def issue_claims(self, client_ids: Sequence[str]) -> Mapping[str, str]:
        """One claim for each client id, by id; they are secrets."""
        ...

    def add_function(self, client_id: str, platform: str, settings: Mapping[str, Any]) -> str:
        """Register a cloud function; what it is to be deployed with (JSON, no secret)."""
        ...

    def online(self) -> frozenset[str]:
        """The ids of the clients that are connected to the broker."""
        ...

    def put(self, data: bytes) -> bytes:
        """Store bytes under their SHA-256, which is returned."""
        ...

    def fetch(self, digest: bytes) -> Iterator[bytes]:
        """The bytes of a blob, piece by piece."""
        ...

    def start_run(self, task_toml: str, bundle: bytes, initial: bytes, test_set: bytes) -> Any:  # noqa: ANN401
        """Begin a run from digests of stored blobs; a RunInfo."""
        ...

    def stop_run(self, run_id: str) -> Any:  # noqa: ANN401
        """End a run after its last model; a RunInfo."""
        ...

    def run(self, run_id: str) -> Any:  # noqa: ANN401
        """A run with its rounds; a RunInfo."""
        ...

    def watch(self, run_id: str, after: int = 0) -> Iterator[Any]:
        """A run's events from `after` on, RunEvents; ends with the run."""
        ...

    def info(self) -> Any:  # noqa: ANN401
        """What the service says of itself; an InfoReply."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...
