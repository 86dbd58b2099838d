"""The service's systemd unit: the file in deploy is the program's text, tight, and systemd reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aggregator import unit
from aggregator.config import load
from aggregator.founding import Ports, found_fleet
from fedless.protocol.errors import Code, LocalError

DEPLOY = Path(__file__).parents[3] / "deploy"
NOW_MS = 1_790_000_000_000
EXPOSURE_MAX = 1.5
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def installed(tmp_path: Path, ports: Ports) -> str:
    fleet = tmp_path / "home"
    found_fleet(fleet, "home", "127.0.0.1", ports, NOW_MS)
    unit.install(load(fleet / "aggregator.toml"), tmp_path / "fedless-aggregator.service", fleet, "fedless")
    return (tmp_path / "fedless-aggregator.service").read_text()


def test_the_deployed_unit_is_current() -> None:
    assert (DEPLOY / "systemd" / "fedless-aggregator.service").read_text() == unit.unit()


@pytest.mark.parametrize("path", ["relative", "/with space", "/with%percent", "/with\nline"])
def test_paths_that_systemd_would_misread_are_refused(path: str) -> None:
    with pytest.raises(LocalError) as caught:
        unit.unit(fleet=path)
    assert caught.value.code is Code.CONFIG_INVALID


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="it would enable a service here")
def test_installed_unit_serves_this_fleet_and_may_write_there_only(tmp_path: Path) -> None:
    text = installed(tmp_path, Ports(7443, 7444, 8883))
    fleet = (tmp_path / "home").resolve()
    assert f"aggregator serve --fleet {fleet}\n" in text
    assert re.findall("^ReadWritePaths=(.*)$", text, re.MULTILINE) == [str(fleet)]
    assert "CapabilityBoundingSet=\n" in text


@pytest.mark.skipif(Path("/run/systemd/system").is_dir(), reason="it would enable a service here")
def test_low_port_needs_one_capability_and_no_more(tmp_path: Path) -> None:
    text = installed(tmp_path, Ports(443, 7444, 8883))
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nAmbientCapabilities=CAP_NET_BIND_SERVICE\n" in text
    assert "PrivateUsers" not in text, "there the capability would not count"


def test_fleet_in_a_home_directory_can_be_reached() -> None:
    assert "ProtectHome=read-only\n" in unit.unit(fleet="/home/me/fleet")
    assert "ProtectHome=yes\n" in unit.unit()


def test_install_without_the_right_says_so(tmp_path: Path) -> None:
    found_fleet(tmp_path / "home", "home", "127.0.0.1", Ports(), NOW_MS)
    settings = load(tmp_path / "home" / "aggregator.toml")
    with pytest.raises(LocalError) as caught:
        unit.install(settings, tmp_path / "absent" / "x.service", tmp_path / "home", "fedless")
    assert "root" in caught.value.fix


@needs_systemd
@pytest.mark.parametrize("low_ports", [False, True])
def test_systemd_reads_the_unit(tmp_path: Path, low_ports: bool) -> None:
    path = tmp_path / "fedless-aggregator.service"
    path.write_text(unit.unit("/bin/true", "/var", "root", low_ports=low_ports))
    done = analyze("verify", path)
    assert "Unknown" not in done.stderr
    assert done.returncode == 0, done.stderr


@needs_systemd
def test_exposure_is_low(tmp_path: Path) -> None:
    """systemd's own score: 0 is perfect, 10 is nothing; a service that serves a network cannot have 0."""
    done = analyze("security", "--offline=true", DEPLOY / "systemd" / "fedless-aggregator.service")
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd cannot judge a file")
    found = re.search(r"exposure level .*: ([0-9.]+)", done.stdout)
    assert found is not None, done
    assert float(found[1]) <= EXPOSURE_MAX


@needs_systemd
def test_systemd_reads_the_units_of_the_revocation_list(tmp_path: Path) -> None:
    """They belong to mosquitto.service, whose file a stand-in replaces where it is not installed."""
    (tmp_path / "mosquitto.service").write_text("[Service]\nExecStart=/bin/true\nExecReload=/bin/true\n")
    for name in ("fedless-crl.service", "fedless-crl.path"):
        shutil.copy(DEPLOY / "mosquitto" / name, tmp_path / name)
    shutil.copytree(DEPLOY / "mosquitto" / "mosquitto.service.d", tmp_path / "mosquitto.service.d")
    for name in ("fedless-crl.path", "mosquitto.service"):
        done = analyze("verify", tmp_path / name)
        assert "Unknown" not in done.stderr
        assert done.returncode == 0, done.stderr
