"""Back-up and restore: whole, private, and nothing out of a damaged or foreign file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from aggregator import archive as archive_format
from aggregator import backup, restore
from aggregator.blobs import Blobs
from aggregator.config import load
from aggregator.founding import Ports, found_fleet
from aggregator.store import fleet as clients
from aggregator.store.engine import Database
from aggregator.store.migrate import version_table
from aggregator.store.records import ModelRecord, RunRecord, RunState
from aggregator.store.runs import insert_model, insert_run
from aggregator.store.schema import SCHEMA_VERSION
from fedless.protocol.errors import Code, LocalError

NOW_MS = 1_790_000_000_000
MODEL = b"\0" * 4096


@dataclass(frozen=True)
class Home:
    """A fleet with a run, its blobs and a claim that nobody used."""

    folder: Path
    digest: str

    @property
    def configuration(self) -> Path:
        return self.folder / "aggregator.toml"

    def change(self, work: Callable[[Any], Any]) -> Any:
        database = Database.open(f"sqlite:///{self.folder / 'state' / 'fedless.db'}")
        try:
            return database.run_now(work)
        finally:
            database.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    folder = tmp_path / "home"
    found_fleet(folder, "home", "192.0.2.1", Ports(7443, 7444, 8883), NOW_MS)
    digest, _ = Blobs(folder / "state" / "blobs").put_blocks((MODEL,))
    made = Home(folder, digest.hex())
    record = RunRecord("run-1", "", b"", digest, b"", RunState.FINISHED)

    def work(connection: Any) -> None:
        insert_run(connection, record, "run", 1, NOW_MS)
        insert_model(connection, "run-1", ModelRecord(0, digest, 0), NOW_MS)
        clients.add_claim(connection, "dev-1", b"h" * 32, {}, NOW_MS, NOW_MS + 10**9)

    made.change(work)
    return made


@pytest.fixture
def archive(home: Home, tmp_path: Path) -> Path:
    file = tmp_path / "home.tar"
    backup.back_up(home.configuration, file, NOW_MS, with_keys=True)
    return file


def members(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def write(file: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The same back-up with another index."""
    found = members(file)
    index = json.loads(found["backup.json"])
    change(index)
    write(file, {**found, "backup.json": json.dumps(index).encode()})


def refused(file: Path, target: Path, now_ms: int = NOW_MS) -> LocalError:
    """Restoring must fail, and leave nothing behind."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(LocalError) as caught:
        restore.restore(file, target, now_ms)
    assert sorted(target.parent.iterdir()) == before, "something was left"
    return caught.value


def test_restored_fleet_is_the_same(home: Home, archive: Path, tmp_path: Path) -> None:
    contents = restore.restore(archive, tmp_path / "other", NOW_MS)
    assert contents.keys_left_out == ()
    for path in home.folder.rglob("*"):
        if path.is_file() and path.parent.name != "state":
            assert (tmp_path / "other" / path.relative_to(home.folder)).read_bytes() == path.read_bytes(), (
                path
            )
    other = Home(tmp_path / "other", home.digest)
    assert [row.client_id for row in other.change(clients.all_clients)] == ["dev-1"]
    assert load(other.configuration).database_url.endswith("other/state/fedless.db")


def test_everything_restored_is_private(archive: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    restore.restore(archive, tmp_path / "other", NOW_MS)
    for path in [tmp_path / "other", *(tmp_path / "other").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_no_private_key_without_being_asked(home: Home, tmp_path: Path) -> None:
    contents = backup.back_up(home.configuration, tmp_path / "a.tar", NOW_MS, with_keys=False)
    assert contents.keys_left_out == archive_format.KEYS
    assert b"PRIVATE KEY" not in (tmp_path / "a.tar").read_bytes()
    assert {key for key in archive_format.KEYS if not (home.folder / key).is_file()} == set(), (
        "the list is current"
    )
    restore.restore(tmp_path / "a.tar", tmp_path / "other", NOW_MS)
    assert list((tmp_path / "other").rglob("*.key")) == []


def test_claim_that_may_have_been_used_since_is_void(home: Home, archive: Path, tmp_path: Path) -> None:
    restore.restore(archive, tmp_path / "other", NOW_MS)
    other = Home(tmp_path / "other", home.digest)
    assert other.change(lambda c: clients.claim(c, b"h" * 32).expires_at_ms) == 0  # type: ignore[union-attr]


def test_directories_elsewhere_come_home(home: Home, tmp_path: Path) -> None:
    (home.folder / "state").rename(tmp_path / "elsewhere")
    (home.folder / "authority").rename(home.folder / "ca")
    text = home.configuration.read_text()
    extra = f'[state]\ndirectory = "{tmp_path / "elsewhere"}"\n[authority]\ndirectory = "ca"\n'
    home.configuration.write_text(text + extra)
    backup.back_up(home.configuration, tmp_path / "a.tar", NOW_MS, with_keys=True)
    restore.restore(tmp_path / "a.tar", tmp_path / "other", NOW_MS)
    settings = load(tmp_path / "other" / "aggregator.toml")
    assert settings.state.directory == tmp_path / "other" / "state"
    assert (settings.authority.directory / "authority.key").is_file()
    assert settings.listen.hosts == ("192.0.2.1",)


def test_existing_backup_is_not_overwritten(home: Home, archive: Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(LocalError) as caught:
        backup.back_up(home.configuration, archive, NOW_MS, with_keys=True)
    assert caught.value.code is Code.STATE_EXISTS
    assert archive.read_bytes() == before


def test_directory_with_files_is_not_restored_into(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("x")
    assert refused(archive, tmp_path / "other").code is Code.STATE_EXISTS
    (tmp_path / "other" / "mine").unlink()
    restore.restore(archive, tmp_path / "other", NOW_MS)


def test_blob_that_rotted_on_the_disk_is_found_when_backing_up(home: Home, tmp_path: Path) -> None:
    path = home.folder / "state" / "blobs" / home.digest[:2] / home.digest
    path.write_bytes(MODEL[:-1] + b"x")
    with pytest.raises(LocalError) as caught:
        backup.back_up(home.configuration, tmp_path / "a.tar", NOW_MS, with_keys=False)
    assert caught.value.code is Code.STATE_CORRUPT
    assert home.digest in caught.value.detail
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"], "a draft was left"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_truncated_backup_is_refused(archive: Path, tmp_path: Path, share: float) -> None:
    os.truncate(archive, int(archive.stat().st_size * share))
    assert refused(archive, tmp_path / "other").code is Code.STATE_CORRUPT


@pytest.mark.parametrize("name", ["state/fedless.db", "aggregator/cert.pem", "aggregator.toml"])
def test_changed_byte_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    found = members(archive)
    data = bytearray(found[name])
    data[len(data) // 2] ^= 1
    write(archive, {**found, name: bytes(data)})
    error = refused(archive, tmp_path / "other")
    assert error.code is Code.STATE_CORRUPT
    assert name in error.detail


def test_blob_that_was_exchanged_is_refused_though_the_index_knows_it(
    home: Home, archive: Path, tmp_path: Path
) -> None:
    """Its name, which the database has, is its digest."""
    found, name = members(archive), f"state/blobs/{home.digest[:2]}/{home.digest}"
    index = json.loads(found["backup.json"])
    index["files"][name] = hashlib.sha256(b"poison").hexdigest()
    write(archive, {**found, name: b"poison", "backup.json": json.dumps(index).encode()})
    assert refused(archive, tmp_path / "other").code is Code.STATE_CORRUPT


def test_only_blobs_that_rows_name_are_backed_up(home: Home, tmp_path: Path) -> None:
    Blobs(home.folder / "state" / "blobs").put_blocks((b"an upload that no run took",))
    contents = backup.back_up(home.configuration, tmp_path / "a.tar", NOW_MS, with_keys=False)
    found = [name for name in contents.files if name.startswith("state/blobs/")]
    assert found == [f"state/blobs/{home.digest[:2]}/{home.digest}"]


def test_upload_that_is_going_on_is_not_disturbed(home: Home, tmp_path: Path) -> None:
    going_on = home.folder / "state" / "blobs" / "incoming" / "half"
    going_on.write_bytes(b"half of it")
    backup.back_up(home.configuration, tmp_path / "a.tar", NOW_MS, with_keys=False)
    assert going_on.read_bytes() == b"half of it"


def test_lost_blob_is_found_when_backing_up(home: Home, tmp_path: Path) -> None:
    (home.folder / "state" / "blobs" / home.digest[:2] / home.digest).unlink()
    with pytest.raises(LocalError) as caught:
        backup.back_up(home.configuration, tmp_path / "a.tar", NOW_MS, with_keys=False)
    assert caught.value.code is Code.STATE_MISSING
    assert home.digest in caught.value.detail


def test_blob_that_the_database_needs_must_be_there(home: Home, archive: Path, tmp_path: Path) -> None:
    found = members(archive)
    index = json.loads(found["backup.json"])
    name = f"state/blobs/{home.digest[:2]}/{home.digest}"
    del found[name], index["files"][name]
    write(archive, {**found, "backup.json": json.dumps(index).encode()})
    error = refused(archive, tmp_path / "other")
    assert error.code is Code.STATE_CORRUPT
    assert home.digest in error.detail


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "state/../../evil", "a//b", ".ssh/keys", ""])
def test_name_that_leaves_the_directory_is_refused(archive: Path, tmp_path: Path, name: str) -> None:
    rewrite(archive, lambda index: index["files"].update({name: hashlib.sha256(b"x").hexdigest()}))
    assert refused(archive, tmp_path / "other").code is Code.STATE_CORRUPT


def test_link_in_a_backup_is_refused(archive: Path, tmp_path: Path) -> None:
    rewrite(archive, lambda index: index["files"].update({"link": "0" * 64}))
    with tarfile.open(archive, "a") as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    assert refused(archive, tmp_path / "other").code is Code.STATE_CORRUPT


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"format": 2}, Code.WRONG_STATE),
        ({"schema_version": 999}, Code.WRONG_STATE),
        ({"taken_at_ms": NOW_MS + 1}, Code.CLOCK_WRONG),
        ({"files": {}}, Code.STATE_CORRUPT),
        ({"files": 3}, Code.STATE_CORRUPT),
        ({"more": 1}, Code.STATE_CORRUPT),
    ],
)
def test_backup_of_another_kind_is_refused(
    archive: Path, tmp_path: Path, change: dict[str, Any], code: Code
) -> None:
    rewrite(archive, lambda index: index.update(change))
    assert refused(archive, tmp_path / "other").code is code


def test_database_of_another_schema_is_refused_whatever_the_index_says(
    home: Home, archive: Path, tmp_path: Path
) -> None:
    home.change(lambda c: c.execute(update(version_table).values(version_num="0999")).rowcount)
    later = tmp_path / "later.tar"
    assert backup.back_up(home.configuration, later, NOW_MS, with_keys=False).schema_version == 999
    rewrite(later, lambda index: index.update({"schema_version": SCHEMA_VERSION}))
    assert refused(later, tmp_path / "other").code is Code.STATE_CORRUPT


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, None])
def test_file_that_is_no_backup_is_refused(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "x.tar"
    if content is None:
        write(file, {"hello": b"x"})
    else:
        file.write_bytes(content)
    assert refused(file, tmp_path / "other").code is Code.STATE_CORRUPT


def test_absent_backup_and_absent_database_are_told(home: Home, tmp_path: Path) -> None:
    assert refused(tmp_path / "absent.tar", tmp_path / "other").code is Code.STATE_MISSING
    (home.folder / "state" / "fedless.db").unlink()
    with pytest.raises(LocalError) as caught:
        backup.back_up(home.configuration, tmp_path / "a.tar", NOW_MS, with_keys=False)
    assert caught.value.code is Code.STATE_MISSING
