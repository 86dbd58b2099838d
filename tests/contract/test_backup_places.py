"""A fleet's back-up from SQLite and a directory, or PostgreSQL and an object store, into either; killed in between."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import obstore
import pytest
from sqlalchemy import Connection
from typer.testing import CliRunner

from aggregator import archive as archive_format
from aggregator import backup, restore
from aggregator.blobs import Blobs
from aggregator.config import Settings, StateSettings, load
from aggregator.founding import Ports, found_fleet
from aggregator.objects import open_blobs, open_store
from aggregator.store import fleet as clients
from aggregator.store import retention
from aggregator.store.engine import Database
from aggregator.store.records import ModelRecord, RunRecord, RunState
from aggregator.store.runs import insert_model, insert_run
from fedless.console.main import build
from fedless.protocol.errors import Code, LocalError

NOW_MS = 1_790_000_000_000
MODELS = [bytes([number]) * 70_000 for number in range(4)]
ROOT = Path(__file__).parents[2]
KINDS = ("here", "elsewhere")
SCRIPT = """
import os, signal, sys
from pathlib import Path
from aggregator.config import StateSettings
from aggregator.restore import restore

def tell(what, done, of):
    if (what, done) == (sys.argv[5], int(sys.argv[6])):
        os.kill(os.getpid(), signal.SIGKILL)

archive, directory = Path(sys.argv[1]), Path(sys.argv[2])
elsewhere = StateSettings.model_validate_json(sys.argv[4])
restore(archive, directory, int(sys.argv[3]), elsewhere, tell)
"""
Places = Callable[[], StateSettings]


@pytest.fixture
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    """Gives an empty database and an empty prefix of an object store, new ones each time."""

    def take() -> StateSettings:
        url, options = request.getfixturevalue("object_server").bucket(tmp_path)
        database = request.getfixturevalue("postgresql").url()
        return StateSettings(database=database, blobs=url, blobs_options_file=str(options))

    return take


@dataclass(frozen=True)
class Home:
    """A fleet with a run whose models are stored, wherever that is."""

    folder: Path

    @property
    def configuration(self) -> Path:
        return self.folder / "aggregator.toml"

    @property
    def settings(self) -> Settings:
        return load(self.configuration)

    def blobs(self, copies: Path | None = None) -> Blobs:
        return open_blobs(self.settings.state, copies=copies)

    def fill(self) -> None:
        blobs = self.blobs()
        digests = [blobs.put_blocks((model,))[0] for model in MODELS]
        blobs.put_blocks((b"that no row names",))

        def work(connection: Connection) -> None:
            insert_run(
                connection, RunRecord("run-1", "", b"", digests[0], b"", RunState.FINISHED), "run", 1, NOW_MS
            )
            for number, digest in enumerate(digests):
                insert_model(connection, "run-1", ModelRecord(number, digest, number), NOW_MS)
            clients.add_claim(connection, "dev-1", b"h" * 32, {}, NOW_MS, NOW_MS + 10**9)

        database = Database.open(self.settings.database_url)
        try:
            database.run_now(work)
        finally:
            database.close()

    def check(self, copies: Path) -> None:
        """It is the fleet that `fill` made, and an aggregator can work on it."""
        database = Database.open(self.settings.database_url)
        try:
            needed = database.run_now(lambda c: retention.needed(c, NOW_MS))
            assert [client.client_id for client in database.run_now(clients.all_clients)] == ["dev-1"]
        finally:
            database.close()
        blobs = self.blobs(copies)
        assert {digest for digest, _ in blobs.stored()} == needed
        assert sorted(blobs.path(digest).read_bytes() for digest in needed) == MODELS


def made(folder: Path, state: StateSettings | None) -> Home:
    home = Home(folder)
    found_fleet(folder, "home", "192.0.2.1", Ports(7443, 7444, 8883), NOW_MS)
    if state is not None:
        lines = "".join(f'{key} = "{getattr(state, key)}"\n' for key in restore.ELSEWHERE)
        home.configuration.write_text(f"{home.configuration.read_text()}[state]\n{lines}")
    home.fill()
    return home


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Of a fleet that is in one directory."""
    file = tmp_path / "home.tar"
    backup.back_up(made(tmp_path / "home", None).configuration, file, NOW_MS, with_keys=True)
    return file


def refused(work: Callable[[], object]) -> LocalError:
    with pytest.raises(LocalError) as caught:
        work()
    return caught.value


@pytest.mark.parametrize("source", KINDS)
def test_a_fleet_moves_into_either_kind_of_place(tmp_path: Path, places: Places, source: str) -> None:
    home = made(tmp_path / "home", places() if source == "elsewhere" else None)
    told: list[tuple[str, int, int]] = []
    live = Database.open(home.settings.database_url)  # as the aggregator has it while it runs
    try:
        backup.back_up(
            home.configuration, tmp_path / "a.tar", NOW_MS, with_keys=True, tell=lambda *now: told.append(now)
        )
    finally:
        live.close()
    assert ("blobs", len(MODELS), len(MODELS)) in told
    assert any(what == "rows" for what, _, _ in told) == (source == "elsewhere")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert sum(name.startswith(archive_format.BLOBS) for name in tar.getnames()) == len(MODELS)

    for target in KINDS:
        elsewhere, other = places() if target == "elsewhere" else restore.HERE, Home(tmp_path / target)
        restore.restore(tmp_path / "a.tar", other.folder, NOW_MS, elsewhere)
        assert {key: getattr(other.settings.state, key) for key in restore.ELSEWHERE} == {
            key: getattr(elsewhere, key) for key in restore.ELSEWHERE
        }
        assert (other.folder / "state" / "fedless.db").exists() == (target == "here")
        other.check(tmp_path / f"copies-{target}")


@pytest.mark.parametrize("step", [("files", 5), ("blobs", 2), ("rows", 1), ("database", 1)])
def test_restoring_that_was_killed_is_done_again(
    archive: Path, tmp_path: Path, places: Places, step: tuple[str, int]
) -> None:
    elsewhere, other = places(), Home(tmp_path / "other")
    words = [archive, other.folder, NOW_MS, elsewhere.model_dump_json(), *step]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, words)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not other.folder.exists(), "nobody can serve a half of it"
    restore.restore(archive, other.folder, NOW_MS + 1000, elsewhere)
    other.check(tmp_path / "copies")


def test_database_that_is_in_use_is_not_restored_into(archive: Path, tmp_path: Path, places: Places) -> None:
    """Neither one that another fleet has nor, when it has been served, the same once more."""
    elsewhere = places()
    restore.restore(archive, tmp_path / "one", NOW_MS, elsewhere)
    Database.open(elsewhere.database_url).close()
    error = refused(lambda: restore.restore(archive, tmp_path / "two", NOW_MS, elsewhere))
    assert error.code is Code.STATE_EXISTS
    assert not (tmp_path / "two").exists()
    Home(tmp_path / "one").check(tmp_path / "copies")


def test_bucket_with_other_blobs_is_not_restored_into(archive: Path, tmp_path: Path, places: Places) -> None:
    elsewhere = places()
    open_blobs(elsewhere, copies=tmp_path / "x").put_blocks((b"of another fleet",))
    error = refused(lambda: restore.restore(archive, tmp_path / "other", NOW_MS, elsewhere))
    assert (error.code, "found 1 others" in error.detail) == (Code.STATE_EXISTS, True)
    restore.restore(
        archive, tmp_path / "other", NOW_MS, StateSettings(database=elsewhere.database)
    )  # nothing was put there


def test_object_with_other_bytes_is_found_when_backing_up(tmp_path: Path, places: Places) -> None:
    state = places()
    home, store = made(tmp_path / "home", state), open_store(state.blobs, Path(state.blobs_options_file))
    digest = hashlib.sha256(MODELS[2]).hexdigest()
    key = f"{digest[:2]}/{digest}"

    def error() -> LocalError:
        return refused(
            lambda: backup.back_up(home.configuration, tmp_path / "a.tar", NOW_MS, with_keys=False)
        )

    obstore.put(store, key, b"x")
    assert error().code is Code.STATE_CORRUPT
    obstore.delete(store, key)
    assert error().code is Code.STATE_MISSING
    assert digest in error().detail
    assert not (tmp_path / "a.tar").exists()


def test_no_password_is_in_a_backup_wherever_its_file_is(tmp_path: Path, places: Places) -> None:
    """Not with keys either: they are of this machine and these servers, and no part of the fleet."""
    state = places()
    home = made(tmp_path / "home", None)
    password, options = home.folder / "aggregator" / "password", home.folder / "helper" / "objects.toml"
    options.parent.mkdir(exist_ok=True)
    password.write_text("not-to-be-told-1")
    options.write_text(f"{Path(state.blobs_options_file).read_text()}\n# not-to-be-told-2\n")
    lines = (f'database = "{state.database}"\ndatabase_password_file = "aggregator/password"\n'
             f'blobs = "{state.blobs}"\nblobs_options_file = "helper/objects.toml"\n')  # fmt: skip
    home.configuration.write_text(f"{home.configuration.read_text()}[state]\n{lines}")
    home.fill()
    backup.back_up(home.configuration, tmp_path / "a.tar", NOW_MS, with_keys=True)
    assert b"not-to-be-told" not in (tmp_path / "a.tar").read_bytes()
    restore.restore(tmp_path / "a.tar", tmp_path / "other", NOW_MS)
    assert "postgresql" not in (tmp_path / "other" / "aggregator.toml").read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "postgresql://fleet:hush@127.0.0.1:1/x"], "holds a password"),
        (["--to", "sqlite:///x.db"], "Expected --to postgresql://"),
        (["--to-password-file", "x"], "Expected --to with"),
        (["--to", "postgresql://127.0.0.1/x", "--to-password-file", "x"], "needs a database of the form"),
        (["--to", "postgresql://fleet@127.0.0.1:1/x"], "PostgreSQL cannot be used"),
        (["--to-blobs", "ftp://x"], "state.blobs cannot be opened"),
    ],
)
def test_place_that_cannot_be_used_is_told_and_nothing_is_made(
    archive: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    """A password among the words would be in the list of processes, and in the configuration."""
    done = CliRunner().invoke(build("restore"), ["restore", str(archive), str(tmp_path / "other"), *words])
    assert isinstance(done.exception, LocalError), done.exception
    assert says in str(done.exception)
    assert "hush" not in str(done.exception)
    assert not (tmp_path / "other").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"home", "home.tar"}, "a draft was left"
