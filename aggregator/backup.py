"""A back-up of a fleet in one tar file, taken while the service runs; and a fleet's directory made of it.

The database is copied first (one moment of it), then the blobs: they are written before the database names them
and never change, so every blob that the copy names is there. Reports in progress and the broker's queues are left
out: their rounds are abandoned by `restore`. Private keys are in it only when asked for.

`backup.json`, the first member, names every other one with its SHA-256. Called by `fedless backup` and `restore`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Connection

from aggregator import events as e
from aggregator import tasks
from aggregator.blobs import NO_SPACE, sync_folder
from aggregator.config import Settings, load
from aggregator.ledger import charge_worst_case
from aggregator.store import fleet, history, masks, retention, rounds, runs, snapshot, steps
from aggregator.store.engine import Database
from aggregator.store.schema import SCHEMA_VERSION
from fedless import __version__
from fedless.protocol.errors import Code, LocalError

__all__ = ["KEYS", "Contents", "back_up", "restore"]
FORMAT = 1
INDEX, CONFIGURATION = "backup.json", "aggregator.toml"
DATABASE, PRICES = "state/fedless.db", "state/prices.toml"
INDEX_BYTES_MAX = 256 * 2**20
BLOCK_BYTES = 2**20
KEYS = (
    "authority/authority.key", "aggregator/cert.key", "aggregator/ticket.key", "broker/cert.key",
    "operator/cert.key", "publisher/publisher.key",
)  # fmt: skip
"""The private keys of a fleet: in a back-up `with_keys` only."""
FOLLOWING = "authority/next.key"
"""The same of an authority that is about to take the other's place."""
RUNS_MAX = 1000
"""So many charges of one restoration have numbers of their own."""
STOPPED = "the aggregator was restored from a back-up"
# No part begins with a dot, so that no name leaves the directory.
_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*")


class Contents(BaseModel):
    """What a back-up says of itself; `files`: SHA-256 in hex by name; `taken_at_ms`: Unix ms."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    fedless: str
    schema_version: int
    fleet: str
    taken_at_ms: int
    files: dict[str, str]

    @property
    def keys_left_out(self) -> tuple[str, ...]:
        """Private keys that must come from elsewhere before the fleet can be served."""
        following = (FOLLOWING,) if FOLLOWING.replace(".key", ".pem") in self.files else ()
        return tuple(name for name in (*KEYS, *following) if name not in self.files)


def back_up(configuration: Path, target: Path, now_ms: int, *, with_keys: bool) -> Contents:
    """Writes the fleet of a configuration into the new file `target` (mode 0600).

    Raises `LocalError` STATE_EXISTS, STATE_MISSING, STATE_CORRUPT (a blob is not what its name says), DISK_FULL or
    CONFIG_INVALID (the database is not SQLite, or blobs are not in the directory).
    """
    settings, target = load(configuration), target.absolute()
    if target.exists():
        raise LocalError(Code.STATE_EXISTS, f"{target} is there already.", fix="Choose another name.")
    if settings.state.blobs:
        detail = "Models and bundles are in an object store (state.blobs), which has tools of its own."
        fix = "Copy the bucket and the rest of the directory, and the database last."
        raise LocalError(Code.CONFIG_INVALID, detail, fix=fix)
    with _own_errors(target), tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent) as folder:
        copy, draft = Path(folder) / "fedless.db", Path(folder) / "backup.tar"
        schema = snapshot.take(settings.database_url, copy)
        files: dict[str, bytes | Path] = {CONFIGURATION: configuration.read_bytes(), DATABASE: copy}
        files |= _small_files(settings, configuration.absolute().parent, with_keys=with_keys)
        files |= {f"state/blobs/{path.parent.name}/{path.name}": path for path in _blobs(settings)}
        contents = Contents(
            format=FORMAT, fedless=__version__, schema_version=schema, fleet=settings.fleet.name, taken_at_ms=now_ms,
            files={name: _digest(content) for name, content in files.items()},
        )  # fmt: skip
        _check_blobs(contents)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            _write(file, contents, files)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(target)
        sync_folder(target.parent)
    return contents


def restore(archive: Path, directory: Path, now_ms: int) -> Contents:
    """Makes the fleet's directory `directory`, which must not exist (or be empty), of a back-up: all of it or nothing.

    What may have gone on since the back-up is not taken up again: open rounds and key epochs are abandoned and claims
    that were not used are void; new rounds and key epochs get ids that are at least the Unix time in seconds, so none
    of them comes twice. Raises `LocalError` STATE_EXISTS, STATE_MISSING, STATE_CORRUPT, WRONG_STATE (of another
    version), CLOCK_WRONG (a clock before the back-up) or DISK_FULL.
    """
    directory = directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        detail = f"Expected a new or empty directory, found files in {directory}."
        raise LocalError(Code.STATE_EXISTS, detail, fix="Choose another directory.")
    with _own_errors(archive):
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        umask = os.umask(0o077)  # for folders on the way, and for what SQLite writes
        try:
            contents = _unpack(archive, draft, now_ms)
            _use_own_directories(draft / CONFIGURATION)
            _begin_anew(draft, contents, now_ms)
            draft.rename(directory)
            sync_folder(directory.parent)
        finally:
            os.umask(umask)
            shutil.rmtree(draft, ignore_errors=True)
    return contents


# -- writing


def _small_files(settings: Settings, home: Path, *, with_keys: bool) -> dict[str, bytes | Path]:
    """Certificates and settings by their names in a fleet's directory, and the keys beside them."""
    folders = {
        "authority": settings.authority.directory,
        "aggregator": settings.listen.directory,
        "broker": settings.broker.directory,
        "helper": settings.helper.directory,
        "operator": home / "operator",
        "publisher": home / "publisher",
    }
    found: dict[str, bytes | Path] = {
        f"{name}/{path.name}": path.read_bytes()
        for name, folder in folders.items()
        for path in sorted(folder.glob("[!.]*"))
        if path.is_file() and (with_keys or path.suffix != ".key")
    }
    prices = settings.state.directory / "prices.toml"
    return found | ({PRICES: prices.read_bytes()} if prices.is_file() else {})


def _blobs(settings: Settings) -> list[Path]:
    return sorted((settings.state.directory / "blobs").glob("??/*"))


def _check_blobs(contents: Contents) -> None:
    for name, digest in contents.files.items():
        if name.startswith("state/blobs/") and name.rpartition("/")[2] != digest:
            detail = f"{name} has changed on the disk: its digest is {digest[:16]}..."
            raise LocalError(Code.STATE_CORRUPT, detail, fix="Check the disk; keep the back-ups of before.")


def _digest(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(target: IO[bytes], contents: Contents, files: dict[str, bytes | Path]) -> None:
    index = contents.model_dump_json(indent=1).encode()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in {INDEX: index, **files}.items():
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = 0o600, contents.taken_at_ms // 1000
            info.size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
                tar.addfile(info, file)


# -- reading


def _unpack(archive: Path, draft: Path, now_ms: int) -> Contents:
    with tarfile.open(archive, "r:") as tar:
        contents = _contents(tar, now_ms)
        missing = set(contents.files)
        while (member := tar.next()) is not None:
            if member.name not in missing or not member.isreg():
                detail = f"{archive.name} has a member that its index lacks: {member.name}."
                raise LocalError(Code.STATE_CORRUPT, detail)
            missing.remove(member.name)
            _take_out(tar, member, draft / member.name, contents.files[member.name])
    if missing:
        raise LocalError(Code.STATE_CORRUPT, f"{archive.name} ends too early: {min(missing)} is not in it.")
    return contents


def _contents(tar: tarfile.TarFile, now_ms: int) -> Contents:
    """The index, checked. Raises `LocalError`."""
    first = tar.next()
    file = tar.extractfile(first) if first and first.name == INDEX and first.size <= INDEX_BYTES_MAX else None
    if file is None:
        raise LocalError(Code.STATE_CORRUPT, f"This is no back-up: expected {INDEX} as its first member.")
    try:
        values = json.loads(file.read())
        if isinstance(values, dict) and values.get("format") != FORMAT:
            detail = f"Expected a back-up of format {FORMAT}, found {values.get('format')!r}."
            raise LocalError(Code.WRONG_STATE, detail, fix="Use the version of fedless that made it.")
        contents = Contents.model_validate(values)
    except (ValueError, ValidationError) as error:
        raise LocalError(Code.STATE_CORRUPT, f"The back-up's {INDEX} cannot be read.") from error
    if contents.schema_version > SCHEMA_VERSION:
        detail = f"Expected a database of schema version {SCHEMA_VERSION} or before, found {contents.schema_version}."
        raise LocalError(
            Code.WRONG_STATE, detail, fix=f"Use fedless {contents.fedless}, which made the back-up."
        )
    if now_ms < contents.taken_at_ms:
        detail = "The back-up was taken later than now: ids of rounds that were given since would come again."
        raise LocalError(Code.CLOCK_WRONG, detail, fix="Set the clock, then restore.")
    wrong = [name for name in contents.files if not _NAME.fullmatch(name)]
    if wrong or not {CONFIGURATION, DATABASE} <= contents.files.keys():
        raise LocalError(
            Code.STATE_CORRUPT, f"The back-up's {INDEX} names {(wrong or ['no database'])[0]!r}."
        )
    return contents


def _take_out(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, digest: str) -> None:
    source = tar.extractfile(member)
    assert source is not None  # noqa: S101 - a regular file
    target.parent.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while block := source.read(BLOCK_BYTES):
            found.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if found.hexdigest() != digest:
        raise LocalError(
            Code.STATE_CORRUPT, f"{member.name} is damaged: its digest is not the one in {INDEX}."
        )


def _use_own_directories(configuration: Path) -> None:
    """Drops the directories that the configuration names: in the restored one everything is where it belongs."""
    values = tomllib.loads(configuration.read_text("utf-8"))
    named = [
        (section, key)
        for section, keys in values.items()
        for key in (keys if isinstance(keys, dict) else ())
        if key == "directory" or (section, key) == ("state", "database")
    ]
    for section, key in named:
        del values[section][key]
    if named:
        configuration.write_text(tomli_w.dumps(values), "utf-8")


def _begin_anew(draft: Path, contents: Contents, now_ms: int) -> None:
    """Checks the database against the blobs, and abandons what may have gone on elsewhere."""
    file = draft / DATABASE
    schema = snapshot.check(file)
    if schema != contents.schema_version:
        raise LocalError(
            Code.STATE_CORRUPT, f"The database is of schema version {schema}, its index says another."
        )
    database = Database.open(f"sqlite:///{file}")
    try:
        for digest in database.run_now(lambda c: retention.needed(c, now_ms + retention.EXPORT_MS)):
            name = digest.hex()
            if not (draft / "state" / "blobs" / name[:2] / name).is_file():
                raise LocalError(
                    Code.STATE_CORRUPT, f"The back-up lacks a blob that its database names: {name}."
                )
        database.run_now(lambda connection: _abandon(connection, now_ms))
    finally:
        database.close()


def _abandon(connection: Connection, now_ms: int) -> None:
    """As when each run is stopped, but that the runs go on: with new rounds and key epochs."""
    clients = {client.client_id for client in fleet.all_clients(connection)}
    for number, run_id in enumerate(runs.going_on(connection)):
        history.note(connection, run_id, "aggregator_restored", now_ms)
        masks.end_all(connection, run_id, STOPPED, now_ms)
        task = tasks.parse(runs.load(connection, run_id).settings)
        charge_worst_case(connection, run_id, task, clients, -(RUNS_MAX * now_ms + number), now_ms)
    for round_id in rounds.unended(connection):
        round_, event = rounds.load(connection, round_id), e.RoundStopped(STOPPED)
        steps.change_round(connection, round_, event, round_.handle(event, now_ms), now_ms)
    fleet.void_claims(connection)
    fleet.nobody_online(connection)


@contextmanager
def _own_errors(archive: Path) -> Iterator[None]:
    """Turns what the disk and tar say into `LocalError`s."""
    try:
        yield
    except FileNotFoundError as error:
        raise LocalError(Code.STATE_MISSING, f"{error.strerror}: {error.filename}.") from error
    except (tarfile.TarError, EOFError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LocalError(
            Code.STATE_CORRUPT, f"{archive.name} cannot be read as a back-up: {error}."
        ) from error
    except OSError as error:
        code = Code.DISK_FULL if error.errno in NO_SPACE else Code.CONFIG_INVALID
        raise LocalError(code, f"{error}.") from error
