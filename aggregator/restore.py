"""A fleet's directory made of a back-up (`archive.py`), and if wanted its database and blobs elsewhere.

Everything is checked in a directory beside the new one before a database or an object store is touched. Then the
blobs are stored, then all rows in one transaction, and last the directory gets its name: a restoration that was
killed is begun again with the same words, and takes what it finds of itself. Called by `fedless restore`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from sqlalchemy import Connection

from aggregator import events as e
from aggregator import tasks
from aggregator.archive import BLOBS, CONFIGURATION, DATABASE, Contents, Tell, in_silence, own_errors, unpack
from aggregator.blobs import sync_folder
from aggregator.config import StateSettings, load
from aggregator.ledger import charge_worst_case
from aggregator.objects import open_blobs
from aggregator.store import fleet, history, masks, retention, rounds, runs, snapshot, steps
from aggregator.store.engine import Database
from fedless.protocol.errors import Code, LocalError

RUNS_MAX = 1000
"""So many charges of one restoration have numbers of their own."""
STOPPED = "the aggregator was restored from a back-up"
ELSEWHERE = ("database", "database_password_file", "blobs", "blobs_options_file")
"""Settings of `state` that say where the state is, beside its directory."""
HERE = StateSettings()
"""All of the state in its directory."""


def restore(
    archive: Path,
    directory: Path,
    now_ms: int,
    elsewhere: StateSettings = HERE,
    tell: Tell = in_silence,
) -> Contents:
    """Makes the fleet's directory `directory`, which must not exist (or be empty), of a back-up: all of it or nothing.

    `elsewhere`: an empty database and an object store for this fleet, with absolute paths; by default all is in the
    directory, wherever it was before. What may have gone on since the back-up is not taken up again: open rounds and
    key epochs are abandoned and claims that were not used are void; new rounds and key epochs get ids that are at
    least the Unix time in seconds, so none of them comes twice. Raises `LocalError` STATE_EXISTS, STATE_MISSING,
    STATE_CORRUPT, WRONG_STATE (of another version), CLOCK_WRONG (a clock before the back-up), STATE_LOCKED,
    STORE_UNREACHABLE, CONFIG_INVALID or DISK_FULL.
    """
    directory = directory.absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        detail = f"Expected a new or empty directory, found files in {directory}."
        raise LocalError(Code.STATE_EXISTS, detail, fix="Choose another directory.")
    with own_errors(archive):
        directory.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        umask = os.umask(0o077)  # for folders on the way, and for what SQLite writes
        try:
            contents = unpack(archive, draft, now_ms, tell)
            _configure(draft / CONFIGURATION, elsewhere)
            _begin_anew(draft, contents, now_ms)
            _hand_over(draft, contents, elsewhere, tell)
            draft.rename(directory)
            sync_folder(directory.parent)
        finally:
            os.umask(umask)
            shutil.rmtree(draft, ignore_errors=True)
    return contents


def _configure(configuration: Path, elsewhere: StateSettings) -> None:
    """In the restored directory everything is where it belongs, or where it is wanted."""
    before = tomllib.loads(configuration.read_text("utf-8"))
    values: dict[str, Any] = {
        section: {key: value for key, value in keys.items() if not _is_a_place(section, key)}
        if isinstance(keys, dict)
        else keys
        for section, keys in before.items()
    }
    places = {key: getattr(elsewhere, key) for key in ELSEWHERE if getattr(elsewhere, key)}
    if places:
        values["state"] = {**values.get("state", {}), **places}
    if values != before:
        configuration.write_text(tomli_w.dumps(values), "utf-8")
    if places:
        load(configuration)  # it refuses a URL with a password in it


def _is_a_place(section: str, key: str) -> bool:
    return key == "directory" or (section == "state" and key in ELSEWHERE)


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


def _hand_over(draft: Path, contents: Contents, elsewhere: StateSettings, tell: Tell) -> None:
    """Blobs and rows to where they are wanted: first what nobody sees before there are rows that name it."""
    if elsewhere.blobs:
        _store_blobs(draft, contents, elsewhere, tell)
    if elsewhere.database:
        told = contents.model_dump_json().encode()
        mark = f"restored from {hashlib.sha256(told).hexdigest()[:32]}"
        snapshot.put(draft / DATABASE, elsewhere.database_url, mark, lambda rows: tell("rows", rows, 0))
        tell("database", 1, 1)
        (draft / DATABASE).unlink()


def _store_blobs(draft: Path, contents: Contents, elsewhere: StateSettings, tell: Tell) -> None:
    """Raises `LocalError` STATE_EXISTS if there are others: those of another fleet, or of this one before."""
    ours = {bytes.fromhex(digest) for name, digest in contents.files.items() if name.startswith(BLOBS)}
    blobs = open_blobs(elsewhere, copies=draft / BLOBS)
    there = {digest for digest, _ in blobs.stored()}
    if there - ours:
        detail = f"Expected no blobs at state.blobs but the back-up's, found {len(there - ours)} others."
        raise LocalError(Code.STATE_EXISTS, detail, fix="Choose another bucket or prefix.")
    for done, digest in enumerate(sorted(ours - there), len(there)):
        tell("blobs", done, len(ours))
        if not blobs.put_back(digest):
            raise LocalError(Code.STATE_CORRUPT, f"A blob was lost while restoring: {digest.hex()}.")
    tell("blobs", len(ours), len(ours))
