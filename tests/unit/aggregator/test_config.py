"""The service's settings: every mistake is told at once, with what was expected and found."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from aggregator.config import BrokerKind, load
from fedless.protocol.errors import Code, LocalError

SAMPLE = Path(__file__).parents[3] / "deploy" / "samples" / "aggregator.toml"
LEAST = '[fleet]\nname = "home"\n[listen]\nhosts = ["127.0.0.1"]\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "aggregator.toml"
    path.write_text(text)
    return path


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(LocalError) as caught:
        load(written(folder, text))
    assert caught.value.code is Code.CONFIG_INVALID
    return str(caught.value)


def test_sample_shows_every_key_with_its_default(tmp_path: Path) -> None:
    sample, least = load(SAMPLE).model_dump(), load(written(tmp_path, LEAST)).model_dump()
    text = SAMPLE.read_text()
    for section, values in least.items():
        for key, default in values.items():
            assert f"\n{key} = " in text, f"{section}.{key} is not in the sample"
            if default is None:  # which TOML cannot say: the sample says it in words
                line = text.split(f"[{section}]")[1].split(f"\n{key} = ")[1].split("\n")[0]
                assert "# default: none" in line, f"{section}.{key}: expected '# default: none', found {line}"
                continue
            if (section, key) not in {("fleet", "name"), ("fleet", "publisher_keys"), ("listen", "hosts")}:
                shown = sample[section][key]
                same = shown.name == default.name if isinstance(default, Path) else shown == default
                assert same, f"{section}.{key}: the sample shows {shown}, the default is {default}"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = load(written(tmp_path, LEAST))
    assert settings.state.directory == tmp_path / "state"
    assert settings.database_url == f"sqlite:///{tmp_path}/state/fedless.db"


def test_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLESS__LISTEN__FLEET_PORT", "9443")
    monkeypatch.setenv("FEDLESS__LISTEN__HOSTS", '["a.example", "b.example"]')
    listen = load(written(tmp_path, LEAST)).listen
    assert (listen.fleet_port, listen.hosts, listen.enrollment_port) == (
        9443,
        ("a.example", "b.example"),
        7444,
    )


def test_unknown_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLESS__LISTN__FLEET_PORT", "9443")
    monkeypatch.setenv("FEDLESS__LOG__LEVELS", "debug")
    said = refusal(tmp_path, LEAST)
    assert "FEDLESS__LISTN__FLEET_PORT (environment): unknown section 'listn'; did you mean 'listen'?" in said
    assert "log.levels: unknown key; did you mean 'level'?" in said


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    assert "listen.flet_port: unknown key; did you mean 'fleet_port'?" in refusal(
        tmp_path, LEAST + "flet_port = 1\n"
    )


def test_several_mistakes_are_all_reported(tmp_path: Path) -> None:
    text = '[fleet]\nname = "Not An Id"\n[listn]\n'
    text += '[broker]\nport = 70000\nkind = "amqp"\n[limits]\nstop_timeout_s = "x"\n'
    said = refusal(tmp_path, text).splitlines()
    keys = sorted(line.split(":")[0].strip() for line in said[1:-1])
    assert keys == ["broker.kind", "broker.port", "fleet", "limits.stop_timeout_s", "listen", "listn"]
    assert any("'amqp'" in line for line in said)
    assert any("70000" in line for line in said)


def test_reserved_fleet_name_is_refused(tmp_path: Path) -> None:
    assert "not reserved; found 'aggregator'" in refusal(tmp_path, LEAST.replace("home", "aggregator"))


def test_text_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    assert "is not TOML" in refusal(tmp_path, "[fleet\n")


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        load(tmp_path / "aggregator.toml")
    assert caught.value.code is Code.STATE_MISSING
    assert "fedless init" in caught.value.fix


def test_external_broker_needs_an_address(tmp_path: Path) -> None:
    assert "addresses" in refusal(tmp_path, LEAST + '[broker]\nkind = "external"\n')
    external = LEAST + '[broker]\nkind = "external"\naddresses = ["mqtt.example:8883"]\n'
    assert load(written(tmp_path, external)).broker.kind is BrokerKind.EXTERNAL


def test_database_password_is_in_no_message(tmp_path: Path) -> None:
    assert "hunter2" not in refusal(tmp_path, LEAST + '[state]\ndatabase = ["hunter2"]\n')
    for url in ("postgresql://u:hunter2@db/x", "postgresql:///x?user=u&password=hunter2"):
        said = refusal(tmp_path, LEAST + f'[state]\ndatabase = "{url}"\n')
        assert "database_password_file" in said
        assert "hunter2" not in said


def test_database_password_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLESS__STATE__DATABASE", "postgresql://u:hunter2@db/x")
    settings = load(written(tmp_path, LEAST))
    assert settings.database_url == "postgresql://u:hunter2@db/x"
    assert "hunter2" not in repr(settings)


def test_database_password_comes_from_a_file(tmp_path: Path) -> None:
    state = '[state]\ndatabase = "postgresql://u@db:5/x"\ndatabase_password_file = "secret"\n'
    settings = load(written(tmp_path, LEAST + state))
    with pytest.raises(LocalError, match="password cannot be read"):
        _ = settings.database_url
    (tmp_path / "secret").write_text("hunt/er@2\n")
    assert make_url(settings.database_url).password == "hunt/er@2"
    assert settings.database_url.endswith("@db:5/x")
    assert "hunt" not in repr(settings)
    assert "USER@HOST" in refusal(tmp_path, LEAST + '[state]\ndatabase_password_file = "secret"\n')
