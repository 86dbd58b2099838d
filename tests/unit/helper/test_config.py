"""The helper's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedless.helper.config import Settings, load
from fedless.protocol.errors import Code, LocalError
from fedless.protocol.secagg.helper import HelperRules

SAMPLE = Path(__file__).parents[3] / "deploy" / "samples" / "helper.toml"


def test_sample_parses_documents_every_field_and_shows_the_defaults() -> None:
    sample = load(SAMPLE)
    base = SAMPLE.parent
    assert sample.rules == Settings.model_fields["rules"].default
    assert sample.listen == Settings.model_fields["listen"].default
    assert sample.keys.hpke == base / "hpke.key"
    assert sample.fleet.denied == base / "denied.txt"
    text = SAMPLE.read_text()
    for name, section in Settings.model_fields.items():
        assert f"[{name}]" in text
        for field in section.annotation.model_fields:  # type: ignore[union-attr]
            assert f"\n{field} =" in text
    assert sample.rules.demands.rules == HelperRules(8, count_functions=False)


def test_all_complaints_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "helper.toml"
    path.write_text('[fleet]\nname = "Not An Id"\n[rules]\nminimum = 1\nminimun = 3\n[listen]\nport = "x"\n')
    with pytest.raises(LocalError) as error:
        load(path)
    assert error.value.code is Code.CONFIG_INVALID
    for word in ("fleet.name", "rules.minimum", "rules.minimun", "listen.port"):
        assert word in str(error.value)


def test_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "helper.toml"
    path.write_text('[fleet]\nname = "greenhouse"\n[rules]\nminimum = 20\n')
    monkeypatch.setenv("FEDLESS_HELPER__RULES__MINIMUM", "30")
    assert load(path).rules.minimum == 30
    assert load(path).state.directory == tmp_path / "state"


@pytest.mark.parametrize(("text", "code"), [(None, Code.STATE_MISSING), ("[fleet", Code.CONFIG_INVALID)])
def test_file_that_cannot_be_read_is_told(tmp_path: Path, text: str | None, code: Code) -> None:
    path = tmp_path / "helper.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LocalError) as error:
        load(path)
    assert error.value.code is code
