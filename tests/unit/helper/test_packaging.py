"""`fedless helper package` and `secret`: everything that a helper needs as a function, and its keys apart from it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cloud_adapters.packaging import Wanted, package
from fedless.console.main import main
from fedless.helper.config import load
from fedless.helper.deployed import (
    DEPLOYMENT,
    deployment_from_json,
    keys_from_json,
    read_deployment,
    read_keys,
)
from fedless.helper.entries import openwhisk
from fedless.helper.function import deployed, run
from fedless.helper.packaging import contents, secret_text
from fedless.protocol.errors import Code, LocalError
from tests.helper_fleet import FLEET, World

NOW_MS = 1_790_000_000_000


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path, NOW_MS, 10)
    (made.directory / "denied.txt").write_text("# lost\nclient-9\n")
    with (made.directory / "helper.toml").open("a") as file:
        file.write('[state]\nurl = "s3://bucket/helper"\n')
    return made


def fedless(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    return int(leaving.value.code or 0)


def secrets(world: World) -> list[str]:
    """Pieces of the helper's keys, in every line of them."""
    lines = (world.directory / "cert.key").read_text().splitlines()[1:-1]
    return [*lines, (world.directory / "hpke.key").read_text().strip()]


def test_package_and_its_commands_hold_no_key(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert fedless("helper", "package", world.directory, "--target", "google", "-o", out) == 0
    said = capsys.readouterr().out
    assert "fedless helper secret" in said
    assert "gcloud secrets create fedless-helper-greenhouse-keys --data-file keys.json" in said
    assert "--entry-point helper" in said
    assert "--set-secrets FEDLESS_HELPER_KEYS=fedless-helper-greenhouse-keys:latest" in said
    assert "MB" in said
    files = [path for path in out.rglob("*") if path.is_file()]
    assert files
    text = said + "".join(path.read_text(errors="replace") for path in files)
    assert [piece for piece in secrets(world) if piece in text] == []
    names = {str(path.relative_to(out / "source")) for path in files}
    assert {"main.py", "fedless/helper/function.py", "edge_runtime/log.py", DEPLOYMENT} <= names
    assert not any(
        name.startswith(("aggregator", "fedless/console", "edge_runtime/trainer")) for name in names
    )
    assert "obstore" in (out / "source" / "requirements.txt").read_text()
    deployment = deployment_from_json((out / "source" / DEPLOYMENT).read_text())
    assert (deployment.fleet, deployment.memory, deployment.denied) == (
        FLEET,
        "s3://bucket/helper",
        ("client-9",),
    )
    assert deployment.demands.rules.minimum == 3


def test_helper_without_a_shared_memory_is_not_packaged(world: World, tmp_path: Path) -> None:
    settings = load(world.directory / "helper.toml")
    here = settings.model_copy(update={"state": settings.state.model_copy(update={"url": ""})})
    with pytest.raises(LocalError) as error:
        contents(here)
    assert error.value.code is Code.CONFIG_INVALID
    with pytest.raises(LocalError):
        package("tinyfaas", Wanted(contents(settings), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["google", "aws-lambda", "openwhisk"])
def test_secret_is_a_private_file_that_the_function_reads(
    world: World,
    tmp_path: Path,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, password = tmp_path / "keys.json", tmp_path / "password"
    password.write_text("swordfish\n")
    arguments = ("helper", "secret", world.directory, "--target", target, "-o", out)
    assert fedless(*arguments, "--database-password-file", password) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    said = capsys.readouterr()
    assert not any(piece in said.out + said.err for piece in (*secrets(world), "swordfish"))
    assert fedless(*arguments) == 1  # never written over
    text = out.read_text()
    if target != "google":
        values = json.loads(text)
        text = values.get("Variables", values)["FEDLESS_HELPER_KEYS"]
    (tmp_path / "mounted").write_text(text)
    for given in (text, str(tmp_path / "mounted")):
        monkeypatch.setenv("FEDLESS_HELPER_KEYS", given)
        keys = read_keys()
        assert keys.hpke.hex() == (world.directory / "hpke.key").read_text().strip()
        assert keys.database_password == "swordfish"
        assert not any(piece in repr(keys) for piece in (*secrets(world), "swordfish", keys.hpke.hex()))


@pytest.mark.parametrize("change", ["key", "hpke"])
def test_errors_about_keys_hold_no_key(world: World, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    keys = {
        "key": (world.directory / "cert.key").read_text(),
        "hpke": (world.directory / "hpke.key").read_text(),
    }
    damaged = json.dumps({**keys, change: keys[change][:40]})
    with pytest.raises(LocalError) as error:
        keys_from_json(damaged)
    assert error.value.code is Code.STATE_CORRUPT
    monkeypatch.setenv("FEDLESS_HELPER_KEYS", damaged[1:])  # taken for a path
    with pytest.raises(LocalError) as missing:
        read_keys()
    for raised in (error.value, missing.value):
        seen = f"{raised} {raised!r} {raised.__cause__!r}"
        assert not any(piece[:30] in seen for piece in secrets(world))


def test_keys_that_a_caller_gives_do_not_stay(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenWhisk lets whoever invokes an action put others in the place of bound parameters."""
    deployed.cache_clear()
    settings = load(world.directory / "helper.toml")
    nowhere = settings.state.model_copy(update={"url": "postgresql://nobody@/none?host=/nonexistent"})
    deployment = contents(settings.model_copy(update={"state": nowhere})).text
    monkeypatch.setenv("FEDLESS_HELPER_DEPLOYMENT", deployment)
    monkeypatch.setenv("FEDLESS_HELPER_KEYS", "")
    bound = json.loads(secret_text(settings, "openwhisk"))
    assert openwhisk.main(bound)["outcome"] == Code.BUSY.value  # its keys are right; its database is away
    assert openwhisk.main({"FEDLESS_HELPER_KEYS": "{}"})["outcome"] == Code.STATE_CORRUPT.value
    assert openwhisk.main(bound)["outcome"] == Code.BUSY.value


def test_function_without_its_keys_or_deployment_says_so_and_signs_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed.cache_clear()
    monkeypatch.delenv("FEDLESS_HELPER_KEYS", raising=False)
    with pytest.raises(LocalError, match=r"fedless helper package"):
        read_deployment()
    monkeypatch.setenv("FEDLESS_HELPER_DEPLOYMENT", contents(load(world.directory / "helper.toml")).text)
    assert read_deployment().fleet == FLEET
    answer = run(b"{}")
    assert (answer["outcome"], "reply" in answer) == (Code.STATE_MISSING.value, False)
    assert "FEDLESS_HELPER_KEYS is not set" in answer["detail"]
    monkeypatch.setenv("FEDLESS_HELPER_DEPLOYMENT", '{"fleet": "x"}')
    assert run(b"{}")["outcome"] == Code.CONFIG_INVALID.value
