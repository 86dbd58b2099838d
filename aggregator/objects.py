"""Blobs in an object store by URL (S3 and compatible, Google, Azure), with a directory here as their cache.

A blob is stored when the object store has it; the local copy is for those who read files. A missing copy is fetched
in ranges: what came before a lost connection stays, and the digest of the whole decides. Called as `Blobs` is; what
may reach the store blocks, and belongs into worker threads.
"""

from __future__ import annotations

import hashlib
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from aggregator.blobs import Blobs, digest_of, disk_full, write_all
from aggregator.config import StateSettings
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.messages import DIGEST_BYTES

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
RANGE_BYTES = 4 * 2**20
ATTEMPTS = 5  # at a range without a byte of progress, each with the library's own retries
FRESH_S = 3600.0
"""A copy that was used within this time stays; an object that was stored within it need not be stored anew."""
CLIENT = {"connect_timeout": "5s", "timeout": "120s", "user_agent": "fedless"}
RETRIES: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=30)}


def open_store(url: str, options: Path | None) -> ObjectStore:
    """The store of a URL; `options`: a TOML file with what the store is opened with (endpoint, keys, region).

    Without keys in it the environment and the machine's own identity decide. Raises `LocalError` CONFIG_INVALID or
    NOT_INSTALLED.
    """
    if find_spec("obstore") is None:
        detail = "state.blobs names an object store, and obstore is not installed."
        raise LocalError(Code.NOT_INSTALLED, detail, fix="Install fedless[objects].")
    from obstore.store import from_url  # noqa: PLC0415 - an extra, 30 MB that a directory does not need

    try:
        given: Any = {} if options is None else tomllib.loads(options.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        detail = f"{options} cannot be read: {type(error).__name__}."  # not what is in it
        raise LocalError(Code.CONFIG_INVALID, detail, fix="See state.blobs_options_file.") from error
    endpoint = str(given.get("endpoint", given.get("aws_endpoint", os.environ.get("AWS_ENDPOINT", ""))))
    client: Any = {**CLIENT, "allow_http": urlsplit(endpoint).scheme == "http"}
    try:
        store: ObjectStore = from_url(url, config=given, client_options=client, retry_config=RETRIES)
    except Exception as error:  # its own tree, below Exception
        detail = f"The object store of state.blobs cannot be opened: {_first_line(error)}."
        raise LocalError(Code.CONFIG_INVALID, detail, fix="See state.blobs_options_file.") from error
    return store


def open_blobs(state: StateSettings, *, copies: Path | None = None) -> Blobs:
    """The fleet's blobs, for its aggregator; with `copies`, for a look beside it, and what is fetched is put there.

    Raises `LocalError` as `open_store`.
    """
    folder = state.directory / "blobs"
    if not state.blobs:
        return Blobs(folder, sole=copies is None)
    options = Path(state.blobs_options_file) if state.blobs_options_file else None
    return ObjectBlobs(copies or folder, open_store(state.blobs, options), state.blobs_cache_mb * 2**20)


class ObjectBlobs(Blobs):
    """Objects `<prefix>/<aa>/<digest in hex>` in a store, and copies of them in a directory."""

    def __init__(self, path: Path, store: ObjectStore, cache_bytes: int) -> None:
        super().__init__(path)
        self._store = store
        self._cache_bytes = cache_bytes
        self._partial = path / "partial"
        self._partial.mkdir(exist_ok=True)

    def has(self, digest: bytes) -> bool:
        """Whether the blob is stored; asks the store unless there is a copy. Raises `LocalError` STORE_UNREACHABLE."""
        return super().has(digest) or self._age_s(digest) is not None

    def path(self, digest: bytes) -> Path:
        """The blob's copy, fetched if it is not here.

        Raises `PeerError` UNKNOWN_BLOB, `LocalError` STORE_UNREACHABLE, STATE_CORRUPT (the object has other bytes) or
        DISK_FULL.
        """
        if not super().has(digest):
            self._fetch(digest)
        file = super().path(digest)
        with suppress(FileNotFoundError):
            os.utime(file)  # in use: `trim` leaves it
        return file

    def touch(self, digest: bytes) -> bool:
        """See `Blobs`; an object that was stored long ago is stored anew: that is how it gets a new date."""
        self._want(digest)
        age_s = self._age_s(digest)
        if age_s is None:
            return False
        if age_s > FRESH_S:
            self._upload(digest, self.path(digest))
        return True

    def erase(self, digest: bytes, older_s: float) -> bool:
        """See `Blobs`: the object, then the copy."""
        import obstore  # noqa: PLC0415

        with self._lock:
            age_s = self._age_s(digest)
            if age_s is None or age_s < older_s or self._is_wanted(digest, older_s):
                return False
            with _own_errors(), suppress(FileNotFoundError):
                obstore.delete(self._store, _key(digest))
        self._file(digest).unlink(missing_ok=True)
        return True

    def stored(self) -> Iterator[tuple[bytes, float]]:
        """See `Blobs`. Raises `LocalError` STORE_UNREACHABLE."""
        import obstore  # noqa: PLC0415

        now = datetime.now(UTC)
        with _own_errors():
            for batch in obstore.list(self._store, chunk_size=1000):
                for found in batch:
                    digest = digest_of(found["path"].rpartition("/")[2])
                    if digest is not None:
                        yield digest, (now - found["last_modified"]).total_seconds()

    def put_back(self, digest: bytes) -> bool:
        """See `Blobs`: stores what is only here, as after a back-up was restored."""
        if not Blobs.has(self, digest):
            return False
        self._upload(digest, self._file(digest))
        return True

    def trim(self) -> int:
        """Removes copies that nobody used for an hour, the longest unused first, until the cache is in its bounds."""
        now, total, removed = time.time(), 0, 0
        copies = [(file.stat(), file) for file in self._path.glob("??/*")]
        for status, file in sorted(copies, key=lambda each: -each[0].st_mtime):
            total += status.st_size
            if total > self._cache_bytes and now - status.st_mtime > FRESH_S:
                file.unlink(missing_ok=True)
                removed += status.st_size
        for part in self._partial.iterdir():
            if now - part.stat().st_mtime > FRESH_S:
                part.unlink(missing_ok=True)
        return removed + super().trim()

    # -- inside

    def _keep(self, digest: bytes, draft: Path) -> None:
        """Stored first, then kept as a copy: a copy without its object would be lost with this machine."""
        self._want(digest)
        age_s = self._age_s(digest)
        if age_s is None or age_s > FRESH_S:
            self._upload(digest, draft)
        super()._keep(digest, draft)

    def _age_s(self, digest: bytes) -> float | None:
        """Seconds since the object was stored; None: there is none."""
        import obstore  # noqa: PLC0415

        if len(digest) != DIGEST_BYTES:
            return None
        with _own_errors():
            try:
                found = obstore.head(self._store, _key(digest))
            except FileNotFoundError:
                return None
        return (datetime.now(UTC) - found["last_modified"]).total_seconds()

    def _upload(self, digest: bytes, file: Path) -> None:
        import obstore  # noqa: PLC0415

        with _own_errors():
            obstore.put(self._store, _key(digest), file)

    def _fetch(self, digest: bytes) -> None:
        """Makes the copy, going on where an earlier attempt was cut off."""
        if len(digest) != DIGEST_BYTES:
            raise PeerError(Code.UNKNOWN_BLOB)
        part = self._partial / digest.hex()
        with self._fetching, disk_full(part):
            if super().has(digest):
                return
            self._fetch_ranges(digest, part)
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").digest()
            if found != digest:
                part.unlink()
                detail = f"The object {_key(digest)[:20]}... has other bytes: their digest is {found.hex()[:16]}..."
                raise LocalError(Code.STATE_CORRUPT, detail, fix="Restore it from a back-up.")
            super()._keep(digest, part)

    def _fetch_ranges(self, digest: bytes, part: Path) -> None:
        import obstore  # noqa: PLC0415

        with _own_errors():
            try:
                size = obstore.head(self._store, _key(digest))["size"]
            except FileNotFoundError:
                raise PeerError(Code.UNKNOWN_BLOB, f"Its digest is {digest.hex()[:16]}...") from None
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            have, failed = os.fstat(descriptor).st_size, 0
            while have < size:
                try:
                    with _own_errors():
                        end = min(have + RANGE_BYTES, size)
                        data = obstore.get_range(self._store, _key(digest), start=have, end=end)
                except LocalError:
                    failed += 1
                    if failed == ATTEMPTS:
                        raise
                else:
                    write_all(descriptor, memoryview(data))
                    have, failed = have + len(data), 0
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _key(digest: bytes) -> str:
    name = digest.hex()
    return f"{name[:2]}/{name}"


@contextmanager
def _own_errors() -> Iterator[None]:
    """Turns the library's errors into `LocalError` STORE_UNREACHABLE; what is not there stays FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, LocalError, PeerError):
        raise
    except Exception as error:  # its own tree, below Exception
        detail = f"{_first_line(error)}."
        raise LocalError(
            Code.STORE_UNREACHABLE, detail, fix="Start the object store, or check state.blobs."
        ) from error


def _first_line(error: Exception) -> str:
    """What the library says without its long form, and without a URL's query, which may hold a signature."""
    line = str(error).strip().partition("\n")[0]
    return " ".join(word.partition("?")[0] for word in line.split())[:300].rstrip(". ")
