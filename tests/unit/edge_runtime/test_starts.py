"""An early instance is used only if it sees what it may see; a demanded sandbox is there, or nothing runs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_runtime import sandbox
from edge_runtime.budget import Budget
from edge_runtime.bundle import Unpacked
from edge_runtime.config import EdgeConfig, SandboxSettings
from edge_runtime.data.source import DataSource
from edge_runtime.functions import Functions
from edge_runtime.host import place
from edge_runtime.instance import Instance
from edge_runtime.jobs import JobKind
from edge_runtime.starts import Starts, rss_mb
from fedless.protocol.errors import Code, LocalError, PeerError
from fedless.protocol.manifest import Manifest, parse_bytes

MLP = Path("examples/mnist/function-mlp").resolve()
MODEL = "00" * 32


@pytest.fixture
def starts(tmp_path: Path) -> Iterator[Starts]:
    made = Starts(tmp_path, Functions(tmp_path))
    yield made
    made.close()


def unpacked() -> Unpacked:
    return Unpacked("ab" * 32, MLP, parse_bytes((MLP / "function.toml").read_bytes()))


def config(path: Path, mode: str = "auto") -> EdgeConfig:
    return EdgeConfig(
        data={"default": DataSource("npz", str(path))},
        sandbox=SandboxSettings(mode),
    )


def early(starts: Starts) -> Instance | None:
    return starts._early


def test_the_second_start_is_early_and_used(starts: Starts, tmp_path: Path) -> None:
    starts.early("ab" * 32)
    assert early(starts) is None, "nothing is known of it yet"
    with starts.take(unpacked(), MODEL, config(tmp_path), 1):
        pass
    starts.early("ab" * 32)
    begun = early(starts)
    assert begun is not None
    with starts.take(unpacked(), MODEL, config(tmp_path), 2) as taken:
        assert taken is begun


def prepared(starts: Starts, tmp_path: Path, kind: JobKind = JobKind.TRAIN) -> EdgeConfig:
    """An early instance of a version that lies here, told its place."""
    folder = starts.functions.folder("ab" * 32)
    folder.parent.mkdir(exist_ok=True)
    shutil.copytree(MLP, folder, dirs_exist_ok=True)
    settings = config(tmp_path)
    with starts.take(here(starts), MODEL, settings, 1):
        pass
    starts.early("ab" * 32)
    starts.prepare(kind, "ab" * 32, settings)
    return settings


def here(starts: Starts) -> Unpacked:
    return replace(unpacked(), directory=starts.functions.folder("ab" * 32))


def claims(tmp_path: Path) -> int:
    return len(list((tmp_path / "memory").glob("*.run")))


def test_a_prepared_instance_has_its_memory_and_is_used_for_its_job(starts: Starts, tmp_path: Path) -> None:
    settings = prepared(starts, tmp_path)
    begun = early(starts)
    assert claims(tmp_path) == 1
    wanted = place(JobKind.TRAIN, here(starts), settings, starts)
    with starts.take(here(starts), MODEL, settings, 2, wanted) as taken:
        assert taken is begun
        assert claims(tmp_path) == 1, "it is claimed once"
    assert claims(tmp_path) == 0


def test_one_that_was_prepared_for_another_job_is_thrown_away(starts: Starts, tmp_path: Path) -> None:
    settings = prepared(starts, tmp_path, JobKind.EVALUATE)
    begun = early(starts)
    wanted = place(JobKind.TRAIN, here(starts), settings, starts)
    with starts.take(here(starts), MODEL, settings, 2, wanted) as taken:
        assert taken is not begun
        assert claims(tmp_path) == 1
    prepared(starts, tmp_path)
    starts.discard()
    assert claims(tmp_path) == 0, "it gives its memory back"


def test_nothing_is_prepared_where_memory_is_not_free_or_the_version_is_older(
    starts: Starts, tmp_path: Path
) -> None:
    settings = prepared(starts, tmp_path)
    starts.discard()
    starts.early("ab" * 32)
    with Budget(tmp_path).claim(1 << 20, 0):
        starts.prepare(JobKind.TRAIN, "ab" * 32, settings)
        assert claims(tmp_path) == 1
    begun = early(starts)
    with starts.take(
        here(starts), MODEL, settings, 2, place(JobKind.EVALUATE, here(starts), settings, starts)
    ) as it:
        assert it is begun, "without a place it takes any job"
    known = starts.functions.find("ab" * 32)
    assert known is not None
    starts.functions.install(replace(known, digest="cd" * 32, version=known.version + 1), 2)
    starts.early("ab" * 32)
    starts.prepare(JobKind.TRAIN, "ab" * 32, settings)
    assert claims(tmp_path) == 0


@pytest.mark.skipif(not sandbox.probe().namespaces, reason="without namespaces all instances see the same")
def test_an_early_instance_that_sees_other_data_is_thrown_away(starts: Starts, tmp_path: Path) -> None:
    with starts.take(unpacked(), MODEL, config(tmp_path / "a"), 1):
        pass
    starts.early("ab" * 32)
    begun = early(starts)
    with starts.take(unpacked(), MODEL, config(tmp_path / "b"), 2) as taken:
        assert taken is not begun


def test_a_round_does_not_bring_back_a_version_that_is_older_than_one_seen(
    starts: Starts, tmp_path: Path
) -> None:
    with starts.take(unpacked(), MODEL, config(tmp_path), 1):
        pass
    known = starts.last
    assert known is not None
    starts.functions.install(replace(known, digest="cd" * 32, version=known.version + 1), 2)
    with pytest.raises(PeerError) as caught:
        starts.take(unpacked(), MODEL, config(tmp_path), 3)
    assert caught.value.code is Code.BUNDLE_OLDER


def test_the_sandbox_that_is_demanded_is_there_or_nothing_runs(
    starts: Starts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    assert shutil.which(sandbox.PROGRAM) is None
    with pytest.raises(LocalError) as caught:
        starts.take(unpacked(), MODEL, config(tmp_path, "required"), 1)
    assert caught.value.code is Code.NOT_INSTALLED
    assert starts.space(unpacked(), config(tmp_path)) is None
    confinement = starts.confinement(unpacked(), config(tmp_path), 100)
    assert confinement["write"] == []
    assert confinement["file_mb"] == 0


def test_a_sandbox_that_is_switched_off_is_off(starts: Starts, tmp_path: Path) -> None:
    assert starts.space(unpacked(), config(tmp_path, "off")) is None
    assert starts.confinement(unpacked(), config(tmp_path, "off"), 100) == {}


def test_only_what_the_manifest_names_is_visible(starts: Starts, tmp_path: Path) -> None:
    sources = {name: DataSource("npz", f"/data/{name}") for name in ("one", "two", "three")}
    settings = EdgeConfig(data=sources)
    manifest = replace(unpacked().manifest, data_mounts=("two",))
    visible = starts.confinement(replace(unpacked(), manifest=manifest), settings, 100)["read"]
    assert isinstance(visible, list)
    assert "/data/two" in visible
    assert not {"/data/one", "/data/three"} & set(visible)
    assert settings.sources(Manifest("own", 1, "main:handle")) == {}
    with pytest.raises(LocalError):
        settings.sources(replace(manifest, data_mounts=("absent",)))


def test_level_is_probed_once_a_boot(tmp_path: Path) -> None:
    found = sandbox.level(tmp_path)
    path = tmp_path / sandbox.PROBE_FILE
    changed = path.read_text().replace(sandbox.SECCOMP, "remembered")
    path.write_text(changed)
    assert "remembered" in sandbox.level(tmp_path).mechanisms
    path.write_text(changed.replace('"boot": "', '"boot": "another'))
    assert sandbox.level(tmp_path) == found
    path.write_text("{")
    assert sandbox.level(tmp_path) == found


def test_the_interpreter_is_visible_in_the_sandbox() -> None:
    visible = [Path(path) for path in sandbox.runtime_paths()]
    assert any(Path(sys.executable).is_relative_to(path) for path in visible)
    assert not any(Path.cwd() == path for path in visible), "the working directory may hold anything"


def test_the_folder_that_python_was_started_in_is_not_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert str(tmp_path) not in sandbox.runtime_paths()


def test_memory_of_a_process_is_seen() -> None:
    assert rss_mb(os.getpid()) > 5
    assert rss_mb(2**22 + 1) == 0.0
