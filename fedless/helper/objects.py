"""The helper's memory in an object store (S3 and compatible, Google, Azure), for functions without a database.

A log of numbered objects, one for each closed round, that only ever grows: object n+1 is made on condition that it does
not exist, after all before it were read. So what an instance decides, it decides about the whole log, and of two that
decide at once one makes the object and the other reads it and decides anew. Each object names the digest of the one
before it: one that is missing or changed is noticed. A process keeps what it has read; a new one reads all of it.

Everything rests on the store's keeping that condition, so that is tried when it is opened. The helper's identity needs
to read, list and create, and should not be allowed to delete or replace.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fedless.helper.remembering import Remembered, same_set
from fedless.protocol.crypto import sha256
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.secagg import codec
from fedless.protocol.secagg.helper import Closed, Closing, RefusedReports, repeats

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
_READERS = 16
_TURNS_MAX = 50
_CLIENT: Any = {"connect_timeout": "5s", "timeout": "60s", "user_agent": "fedless"}
_RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
_RETRY_MS = 2_000


@dataclass(frozen=True)
class Entry:
    """One closed round, as its object holds it. `before`: SHA-256 of the object before it; of the first, empty."""

    before: bytes
    context: bytes
    set_digest: bytes
    noise_seed: bytes
    at_ms: int
    model_mark: bytes
    seed_marks: tuple[bytes, ...]
    client_ids: tuple[str, ...]


class ObjectMemory:
    """`Remembering` in a folder of an object store, by URL, with the credentials of the platform's own identity."""

    def __init__(self, url: str) -> None:
        """Open it, and try what everything rests on. Raises `LocalError` or `PeerError(BUSY)`."""
        if find_spec("obstore") is None:
            raise LocalError(
                Code.NOT_INSTALLED, "The helper's memory is in an object store, and obstore is not installed.",
                fix="Install fedless[objects].",
            )  # fmt: skip
        self._store = _opened(url)
        self._rounds: dict[bytes, Remembered] = {}
        self._seeds: set[bytes] = set()
        self._counted: set[tuple[bytes, str]] = set()
        self._length, self._last = 0, b""
        self._check_condition()

    def close(self) -> None:
        """Nothing is open between two calls."""

    def remembered(self, context: bytes) -> Remembered | None:
        """See `Remembering`."""
        self._catch_up()
        return self._rounds.get(context)

    def record(self, closing: Closing, noise_seed: bytes, at_ms: int) -> Closed | RefusedReports:
        """See `Remembering`."""
        for _ in range(_TURNS_MAX):
            self._catch_up()
            known = self._rounds.get(closing.context)
            if known is not None:
                return same_set(known.closed, closing)
            used = self._seeds.intersection(closing.seed_marks)
            counted = frozenset(
                name for name in closing.client_ids if (closing.model_mark, name) in self._counted
            )
            refused = repeats(closing, frozenset(used), counted)
            if refused is not None:
                return refused
            entry = Entry(
                self._last, closing.context, closing.set_digest, noise_seed, at_ms, closing.model_mark,
                closing.seed_marks, closing.client_ids,
            )  # fmt: skip
            # The library tries again when an answer is lost, and is then refused by its own object: so the next
            # turn reads who made it, and finds this round closed, or another.
            self._create(_key(self._length + 1), codec.dumps(entry))
        raise PeerError(Code.BUSY, "Too many rounds are closed at once.", retry_after_ms=_RETRY_MS)

    def take_call(self, call_id: bytes, expires_at_ms: int, now_ms: int) -> bool:
        """See `Remembering`; a rule of the store may remove what is under `calls/` after a day."""
        del now_ms
        return self._create(f"calls/{call_id.hex()}", str(expires_at_ms).encode())

    # -- inside

    def _catch_up(self) -> None:
        """Read what was added since. Raises `LocalError(STATE_CORRUPT)` for a log with a gap or a changed object."""
        if not self._length:
            self._read_from(self._listed())
        while (data := self._get(_key(self._length + 1))) is not None:
            self._add(data)

    def _read_from(self, count: int) -> None:
        """The first `count` objects, several at a time."""
        with ThreadPoolExecutor(_READERS) as pool:
            for number, data in enumerate(pool.map(self._get, map(_key, range(1, count + 1))), 1):
                if data is None:
                    raise _broken(f"object {number} of {count} is not there")
                self._add(data)

    def _add(self, data: bytes) -> None:
        try:
            entry = codec.loads(Entry, data)
        except PeerError as error:
            raise _broken(f"object {self._length + 1} cannot be read") from error
        if entry.before != self._last:
            raise _broken(f"object {self._length + 1} does not follow object {self._length}")
        self._rounds[entry.context] = Remembered(Closed(entry.set_digest, entry.noise_seed), entry.at_ms)
        self._seeds.update(entry.seed_marks)
        self._counted.update((entry.model_mark, name) for name in entry.client_ids)
        self._length, self._last = self._length + 1, sha256(data)

    def _listed(self) -> int:
        """The highest number in the log."""
        import obstore  # noqa: PLC0415 - an extra

        highest = 0
        with _told():
            for batch in obstore.list(self._store, "closed/", chunk_size=1000):
                for found in batch:
                    name = found["path"].rpartition("/")[2]
                    highest = max(highest, int(name) if name.isdigit() else 0)
        return highest

    def _get(self, key: str) -> bytes | None:
        import obstore  # noqa: PLC0415

        with _told():
            try:
                return bytes(obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                return None

    def _create(self, key: str, data: bytes) -> bool:
        """Make an object that does not exist; whether this call made it."""
        import obstore  # noqa: PLC0415
        from obstore.exceptions import AlreadyExistsError  # noqa: PLC0415

        with _told():
            try:
                obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

    def _check_condition(self) -> None:
        """Raises `LocalError(CONFIG_INVALID)` for a store that makes an object twice."""
        if self._create("condition", b"1") and self._create("condition", b"2"):
            raise LocalError(
                Code.CONFIG_INVALID,
                "This object store replaces an object that was to be made only if it does not exist.",
                fix="A round could be closed twice there: use a store that honours If-None-Match, or PostgreSQL.",
            )


def _opened(url: str) -> ObjectStore:
    from obstore.store import from_url  # noqa: PLC0415

    plain = urlsplit(os.environ.get("AWS_ENDPOINT", os.environ.get("AWS_ENDPOINT_URL", ""))).scheme == "http"
    client: Any = {**_CLIENT, "allow_http": plain}
    try:
        store: ObjectStore = from_url(url, client_options=client, retry_config=_RETRIES)
    except Exception as error:  # its own tree, below Exception
        detail = f"The object store of state.url cannot be opened: {type(error).__name__}."
        raise LocalError(Code.CONFIG_INVALID, detail, fix="Check state.url.") from error
    return store


def _key(number: int) -> str:
    return f"closed/{number:012d}"


def _broken(what: str) -> LocalError:
    detail = f"The helper's memory is damaged: {what}. Without it an earlier round could be closed again."
    return LocalError(Code.STATE_CORRUPT, detail, fix="Restore it, or make a new helper key.")


@contextmanager
def _told() -> Iterator[None]:
    """The library's errors as ours; those that mean something here pass."""
    from obstore.exceptions import AlreadyExistsError  # noqa: PLC0415

    try:
        yield
    except (FileNotFoundError, AlreadyExistsError, LocalError, PeerError):
        raise
    except Exception as error:
        kind = type(error).__name__
        if kind in ("PermissionDeniedError", "UnauthenticatedError"):
            fix = "The helper's identity must be allowed to read, list and create objects in state.url."
            raise LocalError(Code.PLATFORM_DENIED, f"The object store refuses: {kind}.", fix=fix) from error
        detail = f"The helper's object store cannot be used: {kind}."
        raise PeerError(Code.BUSY, detail, retry_after_ms=_RETRY_MS) from error
