"""The systemd unit: the file in deploy is the program's text, and what it says fits what the agent does."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from edge_runtime import notify, service
from fedless.protocol.errors import Code, LocalError

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "deploy" / "systemd" / "fedless-edge.service"


def test_the_deployed_unit_is_current() -> None:
    assert SAMPLE.read_text() == service.unit()


def test_bubblewrap_may_make_its_namespaces() -> None:
    lines = dict(line.split("=", 1) for line in service.unit().splitlines() if "=" in line)
    assert set(lines["RestrictNamespaces"].split()) == {"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"}
    assert lines["NoNewPrivileges"] == "yes"
    assert "ProtectKernelTunables" not in lines, "it hides parts of /proc, so that no namespace gets its own"
    assert int(lines["WatchdogSec"]) > 120, "the agent says that it is alive once a minute"
    assert int(lines["TimeoutStartSec"]) > 300, (
        "a board that is busy starting up is given time: it would never come up"
    )


@pytest.mark.parametrize("path", ["relative", "/with space", "/with%percent", "/with\nline"])
def test_paths_that_systemd_would_misread_are_refused(path: str) -> None:
    with pytest.raises(LocalError) as caught:
        service.unit(state=path)
    assert caught.value.code is Code.CONFIG_INVALID


def test_install_writes_the_unit_and_says_what_it_could_not(tmp_path: Path) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("it would enable a service here")
    done = service.install_unit(tmp_path / "fedless-edge.service", tmp_path / "state", "fedless")
    assert "ExecStart=" in (tmp_path / "fedless-edge.service").read_text()
    assert "nothing was enabled" in done[-1]


def test_install_without_the_right_says_so(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        service.install_unit(tmp_path / "absent" / "x.service", tmp_path, "fedless")
    assert "root" in caught.value.fix


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    path = tmp_path / "fedless-edge.service"
    path.write_text(service.unit(program="/bin/true", state="/var", user="root"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert "Unknown" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify.notify(notify.READY)
        assert listener.recv(64) == b"READY=1"
    notify.notify(notify.ALIVE)  # nobody listens: no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify.notify(notify.ALIVE)
