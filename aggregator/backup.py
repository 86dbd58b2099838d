"""A back-up of a fleet in one file (`archive.py`), taken while the service runs. Called by `fedless backup`.

The database is copied first (one moment of it), then the blobs that the copy names: they are stored before the
database names them and never change, so they are there. Reports in progress and the broker's queues are left out:
their rounds are abandoned by `restore`. Private keys are in it only when asked for, passwords never.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aggregator.archive import (
    CONFIGURATION,
    DATABASE,
    FORMAT,
    PRICES,
    Contents,
    Tell,
    blob_name,
    digest_of_content,
    in_silence,
    own_errors,
    write,
)
from aggregator.blobs import Blobs, sync_folder
from aggregator.config import Settings, load
from aggregator.objects import open_blobs
from aggregator.store import snapshot
from fedless import __version__
from fedless.protocol.errors import Code, LocalError, PeerError


def back_up(
    configuration: Path, target: Path, now_ms: int, *, with_keys: bool, tell: Tell = in_silence
) -> Contents:
    """Writes the fleet of a configuration into the new file `target` (mode 0600), whole or not at all.

    Needs as much disk as the file, the database and one blob, and the memory of one row. Raises `LocalError`
    STATE_EXISTS, STATE_MISSING, STATE_CORRUPT (a blob is not what its name says), STORE_UNREACHABLE, DISK_FULL or
    CONFIG_INVALID.
    """
    settings, target = load(configuration), target.absolute()
    if target.exists():
        raise LocalError(Code.STATE_EXISTS, f"{target} is there already.", fix="Choose another name.")
    with own_errors(target), tempfile.TemporaryDirectory(prefix=".backup-", dir=target.parent) as folder:
        copy, draft = Path(folder) / "fedless.db", Path(folder) / "backup.tar"
        schema = snapshot.take(settings.database_url, copy, lambda rows: tell("rows", rows, 0))
        blobs = open_blobs(settings.state, copies=Path(folder) / "blobs")
        files: dict[str, bytes | Path] = {CONFIGURATION: configuration.read_bytes(), DATABASE: copy}
        files |= _small_files(settings, configuration.absolute().parent, with_keys=with_keys)
        named = sorted(_named(copy, blobs, now_ms))
        contents = Contents(
            format=FORMAT, fedless=__version__, schema_version=schema, fleet=settings.fleet.name, taken_at_ms=now_ms,
            files={name: digest_of_content(content) for name, content in files.items()}
            | {blob_name(digest): digest.hex() for digest in named},
        )  # fmt: skip
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            write(file, contents, _members(files, named, blobs, Path(folder), tell))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(target)
        sync_folder(target.parent)
    return contents


def _members(
    files: dict[str, bytes | Path], named: list[bytes], blobs: Blobs, folder: Path, tell: Tell
) -> Iterator[tuple[str, bytes | Path]]:
    """Everything by its name; what was fetched for it alone goes again when it is written."""
    yield from files.items()
    for done, digest in enumerate(named):
        tell("blobs", done, len(named))
        try:
            path = blobs.path(digest)
        except PeerError as error:
            detail = f"The database names a blob that is not stored: {digest.hex()}."
            fix = "Back up again, in case it was given up just now; else put it back from an older back-up."
            raise LocalError(Code.STATE_MISSING, detail, fix=fix) from error
        yield blob_name(digest), path
        if path.is_relative_to(folder):
            path.unlink()
    tell("blobs", len(named), len(named))


def _named(copy: Path, blobs: Blobs, now_ms: int) -> set[bytes]:
    """What the copy's rows name; everything that is stored if they are of another schema version than ours."""
    needed = snapshot.needed(copy, now_ms)
    return {digest for digest, _ in blobs.stored()} if needed is None else needed


def _small_files(settings: Settings, home: Path, *, with_keys: bool) -> dict[str, bytes | Path]:
    """Certificates and settings by their names in a fleet's directory, and the keys beside them; no password file."""
    secret = {settings.state.database_password_file, settings.state.blobs_options_file}
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
        if path.is_file() and str(path) not in secret and (with_keys or path.suffix != ".key")
    }
    prices = settings.state.directory / "prices.toml"
    return found | ({PRICES: prices.read_bytes()} if prices.is_file() else {})
