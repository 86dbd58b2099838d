"""edge.toml: the sample, defaults, and files with mistakes, which are refused once with all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.config import EdgeConfig, Limits, load, starter
from fedless.protocol.errors import Code, LocalError

SAMPLE = Path(__file__).parents[3] / "deploy" / "samples" / "edge.toml"


def test_sample_documents_every_field_with_its_default() -> None:
    sample = load(SAMPLE, {})
    assert sample.limits == EdgeConfig().limits
    assert sample.agent == EdgeConfig().agent
    text = SAMPLE.read_text()
    for settings in (sample.limits, sample.agent):
        for name in settings.__dataclass_fields__:
            assert f"\n{name} = " in text, f"{name} is not in the sample"


def test_missing_file_and_starter_mean_defaults(tmp_path: Path) -> None:
    assert load(tmp_path / "edge.toml", {}) == EdgeConfig()
    (tmp_path / "edge.toml").write_text(starter())
    assert load(tmp_path / "edge.toml", {}) == EdgeConfig()


def test_several_mistakes_are_all_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(
        'unknown = 1\n[limits]\nthreads = "two"\ncache_mb = 3\ncolour = "red"\n[agent]\nqueue = true\n'
        '[data.Bad]\npath = "x"\n[data.good]\nkind = "tape"\n'
    )
    with pytest.raises(LocalError) as caught:
        load(path, {})
    assert caught.value.code is Code.CONFIG_INVALID
    for part in (
        "unknown",
        "limits.threads",
        "limits.cache_mb",
        "limits.colour",
        "agent.queue",
        "data.Bad",
        "tape",
    ):
        assert part in caught.value.detail
    assert "data.good" in caught.value.detail


def test_file_that_is_no_toml_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text("threads = = 2")
    with pytest.raises(LocalError, match=r"edge\.toml") as caught:
        load(path, {})
    assert caught.value.code is Code.CONFIG_INVALID


def test_environment_overrides_and_is_checked_alike(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text("[limits]\nthreads = 1\n")
    environ = {"FEDLESS__LIMITS__THREADS": "4", "FEDLESS__LISTEN__PORT": "1", "OTHER": "x"}
    assert load(path, environ).limits == Limits(threads=4)
    with pytest.raises(LocalError, match=r"limits\.threads"):
        load(path, {"FEDLESS__LIMITS__THREADS": "many"})
    with pytest.raises(LocalError, match=r"limits\.colour"):
        load(path, {"FEDLESS__LIMITS__COLOUR": "red"})


def test_source_by_mount_by_being_the_only_one_or_by_default(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text('[data.camera]\npath = "a.npz"\n')
    one = load(path, {})
    assert one.source(()).path == str(tmp_path / "a.npz")
    assert one.source(("camera",)).kind == "npz"
    with pytest.raises(LocalError, match="microphone") as caught:
        one.source(("microphone",))
    assert caught.value.code is Code.DATA_MISSING
    path.write_text('[data.camera]\npath = "a.npz"\n[data.default]\npath = "/b.npz"\n')
    assert load(path, {}).source(()).path == "/b.npz"
    path.write_text('[data.camera]\npath = "a.npz"\n[data.other]\npath = "/b.npz"\n')
    with pytest.raises(LocalError, match="default"):
        load(path, {}).source(())
