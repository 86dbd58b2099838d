"""`fedless helper`: from nothing to settings that the service loads, by the commands that the help prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedless.console.main import main
from fedless.helper.config import load
from fedless.helper.rotation import own_keys
from fedless.protocol import crypto


def fedless(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    return int(leaving.value.code or 0)


def test_helper_is_made_certified_and_ready_to_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, helper = tmp_path / "greenhouse", tmp_path / "helper"
    assert fedless("init", fleet, "--host", "127.0.0.1") == 0
    authority = fleet / "authority" / "authority.pem"
    assert fedless("helper", "init", helper, "--fleet", "greenhouse", "--authority", authority) == 0
    keys = load(helper / "helper.toml").keys
    digest = crypto.sha256(crypto.x25519_public(own_keys(keys)[0])).hex()
    assert digest in capsys.readouterr().out
    assert fedless("helper", "certify", helper / "request.der", "--fleet", fleet) == 0
    chain = capsys.readouterr().out
    assert chain.count("BEGIN CERTIFICATE") == 2
    (helper / "cert.pem").write_text(chain)
    settings = load(helper / "helper.toml")
    assert settings.fleet.name == "greenhouse"
    assert settings.keys.certificate == helper / "cert.pem"
    assert crypto.p256_from_pem(settings.keys.key.read_bytes()).curve.name == "secp256r1"
    assert (helper / "hpke.key").stat().st_mode & 0o077 == 0
    old, _ = own_keys(keys)
    assert fedless("helper", "rotate-key", "begin", helper) == 0
    assert "fedless aggregator reload" in capsys.readouterr().err
    following = own_keys(keys)[1]
    assert fedless("helper", "rotate-key", "begin", helper) == 1
    assert fedless("helper", "rotate-key", "end", helper) == 0
    assert own_keys(keys) == (following, b"")
    assert following != old


@pytest.mark.parametrize("missing", ["authority", "request"])
def test_missing_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    fleet = tmp_path / "greenhouse"
    assert fedless("init", fleet, "--host", "127.0.0.1") == 0
    nothing = tmp_path / "nothing"
    if missing == "authority":
        status = fedless("helper", "init", tmp_path / "h", "--fleet", "greenhouse", "--authority", nothing)
    else:
        status = fedless("helper", "certify", nothing, "--fleet", fleet)
    assert status == 1
    assert str(nothing) in capsys.readouterr().err
