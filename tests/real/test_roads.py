"""`make test-roads`: the Debian package and pip in a Debian 13 chroot: installed, joined, trained, removed.

Needs root and the folder in FEDLESS_ROADS_TEST: Debian's tarball is kept there, and the figures of the last run. What
a chroot cannot show is systemd: units are verified and enabled, and the agent is started by hand as its own user.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedless.authoring.sign import initial_weights, pack_and_sign
from fedless.image import base
from tests.recordings.conversation import SETTINGS, TASK, TINY
from tests.running_fleet import FEDLESS, ROOT, RunningFleet, wait_until

WHERE = os.environ.get("FEDLESS_ROADS_TEST", "")
PACKAGES = (
    "python3", "python3-venv", "libstdc++6", "libgcc-s1", "ca-certificates", "bubblewrap", "libseccomp2", "systemd",
)  # fmt: skip
REGISTRIES = ("PIP_", "http", "HTTP")
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
}  # fmt: skip
STATE = "var/lib/fedless-edge"
WAIT_S = 300.0
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not WHERE, reason="it takes minutes, root and the network: make test-roads"),
]


class Debian:
    """A root directory. Commands run in it with a process table of their own; nothing stays mounted or running."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def argv(self, *command: str) -> list[str]:
        inside = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
        return [
            "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inside, str(self.root), *command,
        ]  # fmt: skip

    def run(self, *command: str, given: str = "") -> str:
        """Both outputs; it must succeed."""
        reached = {name: value for name, value in os.environ.items() if name.startswith(REGISTRIES)}
        done = subprocess.run(
            self.argv(*command), input=given, capture_output=True, text=True, timeout=1200, check=False,
            env=reached | ENVIRONMENT,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def copy(self, source: Path, target: str) -> None:
        """A file from outside, such as how this machine reaches its registries; none is none."""
        if source.exists():
            shutil.copy(source, self.root / target)

    def megabytes(self, path: str) -> int:
        return int(self.run("du", "-sm", path).split()[0])


@pytest.fixture(scope="module")
def folder() -> Path:
    if os.geteuid() != 0 or shutil.which("mmdebstrap") is None:
        pytest.skip("needs root and mmdebstrap: apt-get install mmdebstrap")
    found = Path(WHERE)
    found.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture(scope="module")
def figures(folder: Path) -> Iterator[dict[str, float]]:
    """What is measured; kept in figures.json."""
    found: dict[str, float] = {}
    yield found
    (folder / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(f"{json.dumps(found)}\n")


@pytest.fixture(scope="module")
def tarball(folder: Path) -> Path:
    """Debian 13 for this processor, made once."""
    path = folder / "debian.tar"
    if not path.exists():
        making = path.with_suffix(".new")
        subprocess.run(
            ["mmdebstrap", "--variant=apt", "--format=tar", f"--include={','.join(PACKAGES)}", "", str(making), "-"],
            input=base.sources(base.SUITE, *base.mirrors()), text=True, check=True, timeout=3000,
        )  # fmt: skip
        making.rename(path)
    return path


@pytest.fixture
def debian(folder: Path, tarball: Path) -> Iterator[Debian]:
    root = folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    subprocess.run(["tar", "-xf", str(tarball), "-C", str(root)], check=True)
    made = Debian(root)
    made.copy(Path("/etc/resolv.conf"), "etc/resolv.conf")
    yield made
    shutil.rmtree(root)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RunningFleet]:
    found = RunningFleet(tmp_path / "fleet")
    found.start(FEDLESS__POLICY__MODES='["plain"]')
    yield found
    found.close()


@contextmanager
def agent(debian: Debian, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """The agent in the foreground, as the unit would start it."""
    with (debian.root / "tmp" / "agent.log").open("wb") as log:
        process = subprocess.Popen(debian.argv(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()  # --kill-child ends the agent with it
            process.wait(30)


def give_data(debian: Debian, state: str) -> None:
    random = np.random.default_rng(1)
    x, y = random.random((24, 4), np.float32), random.integers(0, 3, 24, np.int32)
    np.savez(debian.root / state / "examples.npz", x=x, y=y)
    (debian.root / state / "edge.toml").write_text(SETTINGS)
    for name in ("examples.npz", "edge.toml"):
        (debian.root / state / name).chmod(0o644)


def train(fleet: RunningFleet, debian: Debian, client: str) -> float:
    """One round on the installed device; the seconds that it took."""
    bundle = pack_and_sign(TINY, fleet.folder / "publisher" / "publisher.key")
    log = debian.root / "tmp" / "agent.log"
    with fleet.operator() as operator:
        wait_until(lambda: client in operator.online(), WAIT_S)
        began = time.monotonic()
        run = operator.start_run(TASK, operator.put(bundle), operator.put(initial_weights(TINY)), b"").run_id
        wait_until(lambda: operator.run(run).state != "running", WAIT_S)
        took = time.monotonic() - began
        assert operator.run(run).state == "finished", log.read_text()
        assert operator.run(run).rounds[0].reported == 1
    return took


def test_debian_package_is_installed_joins_trains_and_leaves(
    folder: Path, debian: Debian, fleet: RunningFleet, figures: dict[str, float]
) -> None:
    began = time.monotonic()
    making = [*FEDLESS, "image", "deb", "--arch", "amd64", "--out", str(folder)]
    subprocess.run(making, cwd=ROOT, check=True, timeout=1800)
    figures["deb_made_s"] = time.monotonic() - began
    (package,) = folder.glob("fedless-edge_*_amd64.deb")
    figures["deb_mb"] = package.stat().st_size / 1e6
    debian.copy(package, "tmp/fedless-edge.deb")
    began = time.monotonic()
    debian.run("dpkg", "-i", "/tmp/fedless-edge.deb")
    figures["deb_installed_s"] = time.monotonic() - began
    figures["deb_installed_mb"] = debian.megabytes("/opt/fedless")
    assert (debian.root / "etc/systemd/system/multi-user.target.wants/fedless-edge.service").is_symlink()
    debian.run("systemd-analyze", "verify", "/usr/lib/systemd/system/fedless-edge.service")
    as_user = ("runuser", "-u", "fedless", "--")
    began = time.monotonic()
    said = debian.run(*as_user, "fedless-edge", "enroll", given=fleet.claim("from-deb") + "\n")
    figures["deb_joined_s"] = time.monotonic() - began
    assert "from-deb" in said
    give_data(debian, STATE)
    with agent(debian, *as_user, "fedless-edge", "run"):
        figures["deb_round_s"] = train(fleet, debian, "from-deb")
    debian.run("dpkg", "--remove", "fedless-edge")
    assert not (debian.root / "opt/fedless").exists()
    assert (debian.root / STATE / "identity/key.pem").exists(), "removing keeps who it is"
    debian.run("dpkg", "--purge", "fedless-edge")
    assert not (debian.root / STATE).exists(), "purging does not"


def test_pip_installs_joins_writes_the_unit_and_trains(
    folder: Path, debian: Debian, fleet: RunningFleet, figures: dict[str, float]
) -> None:
    for old in folder.glob("fedless-*.whl"):
        old.unlink()
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        ".",
    ]
    subprocess.run(build, cwd=ROOT, check=True, timeout=600)
    (wheel,) = folder.glob("fedless-*.whl")
    debian.copy(wheel, f"tmp/{wheel.name}")
    debian.copy(Path("/etc/pip.conf"), "etc/pip.conf")
    certificate = os.environ.get("PIP_CERT", "")
    if certificate:
        (debian.root / certificate.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        debian.copy(Path(certificate), certificate.lstrip("/"))
    began = time.monotonic()
    debian.run("python3", "-m", "venv", "/opt/fedless")
    debian.run("/opt/fedless/bin/pip", "install", "--quiet", f"/tmp/{wheel.name}[edge]")
    figures["pip_installed_s"] = time.monotonic() - began
    figures["pip_installed_mb"] = debian.megabytes("/opt/fedless")
    program = "/opt/fedless/bin/fedless-edge"
    debian.run(program, "enroll", given=fleet.claim("from-pip") + "\n")
    said = debian.run(program, "install-service")
    (unit,) = (debian.root / "etc/systemd/system").glob("fedless-edge*.service")
    debian.run("systemd-analyze", "verify", f"/etc/systemd/system/{unit.name}")
    give_data(debian, STATE)
    with agent(debian, program, "run"):
        figures["pip_round_s"] = train(fleet, debian, "from-pip")
    assert said
