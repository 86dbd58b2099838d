"""Where a function keeps a training that takes longer than it may run, until its next invocation goes on with it.

A folder of an object store, by URL in the client's registration, with the credentials of the platform's own identity:
the place is the client's, as its data are, and the aggregator never sees it. A state is bound to its round, task, model
and bundle, and to the digest of its bytes; what is not of this round is removed. Nothing here is secret to the client,
but a state is its update in the clear: let nobody else read that folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edge_runtime.timings import monotonic_ms
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.messages import Ticket

RESERVE_MS = 10_000
"""Kept free behind the training: to take its state over and to store it. A tenth of the time, if that is more."""
_HEAD_MAX = 4096


class States:
    """`Pausing` on an object store. `until_ms` (monotonic): when the platform stops this invocation."""

    def __init__(self, url: str, client_id: str, scratch: Path, until_ms: float, reserve_ms: int) -> None:
        """Raises `LocalError` NOT_INSTALLED or DATA_UNREADABLE."""
        self._folder = url.rstrip("/")
        self._client_id = client_id
        self._scratch = scratch
        self._until_ms = until_ms
        self._reserve_ms = reserve_ms
        with self._told():
            from obstore.store import from_url  # noqa: PLC0415 - only functions with such a folder need it

            if urlsplit(url).scheme == "file":
                self._store = from_url(f"{self._folder}/", mkdir=True)
            else:
                self._store = from_url(f"{self._folder}/")

    def stop_after_ms(self) -> int:
        """See `Pausing`; one step is always made."""
        left = self._until_ms - monotonic_ms()
        return max(1, int(left - max(self._reserve_ms, left / 10)))

    def load(self, ticket: Ticket) -> Path | None:
        """See `Pausing`; a state that is not of this ticket, or damaged, is removed: the training begins anew."""
        import obstore  # noqa: PLC0415

        name = self._name(ticket)
        with self._told():
            for listed in obstore.list(self._store, f"{self._client_id}/"):
                for found in listed:
                    if found["path"] != name:
                        obstore.delete(self._store, found["path"])
            try:
                data = bytes(obstore.get(self._store, name).bytes())
            except FileNotFoundError:
                return None
        head, _, state = data.partition(b"\n")
        if not _fits(head, state, ticket):
            with self._told():
                obstore.delete(self._store, name)
            return None
        file = self._scratch / "state"
        file.write_bytes(state)
        return file

    def keep(self, ticket: Ticket, state: bytes | bytearray) -> None:
        """See `Pausing`. Raises `LocalError(DATA_UNREADABLE)`."""
        import obstore  # noqa: PLC0415

        head = json.dumps(_bound(ticket, state)).encode()
        with self._told():
            obstore.put(self._store, self._name(ticket), head + b"\n" + bytes(state))

    def forget(self, ticket: Ticket) -> None:
        """See `Pausing`; one that cannot be removed goes with the next round's."""
        import obstore  # noqa: PLC0415

        with suppress(LocalError, FileNotFoundError), self._told():
            obstore.delete(self._store, self._name(ticket))

    def _name(self, ticket: Ticket) -> str:
        return f"{self._client_id}/{ticket.round_id}.state"

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except ImportError as error:
            raise LocalError(
                Code.NOT_INSTALLED, "States in an object store need obstore.", fix="Install fedless[objects]."
            ) from error
        except Exception as error:  # obstore raises its own tree below Exception, and OSError for files
            place = urlsplit(self._folder)
            raise LocalError(
                Code.DATA_UNREADABLE,
                f"{place.scheme}://{place.netloc}{place.path}: {type(error).__name__}.",
                fix="Check `states` in the client's registration, and that the function's own identity may read, "
                "write, list and delete there.",
            ) from error


def _bound(ticket: Ticket, state: bytes | bytearray) -> dict[str, Any]:
    """What a state belongs to."""
    return {
        "fedless": 1,
        "round_id": ticket.round_id,
        "task": ticket.task_digest.hex(),
        "model": ticket.model_digest.hex(),
        "bundle": ticket.bundle_digest.hex(),
        "sha256": hashlib.sha256(state).hexdigest(),
    }


def _fits(head: bytes, state: bytes, ticket: Ticket) -> bool:
    try:
        return len(head) <= _HEAD_MAX and bool(json.loads(head) == _bound(ticket, state))
    except ValueError:
        return False
