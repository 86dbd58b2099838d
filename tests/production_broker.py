"""A mosquitto as `fedless broker config` writes it, as a child process of a test."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

from aggregator.founding import Ports, found_fleet
from tests.edge_processes import end
from tests.running_fleet import fedless, now_ms, wait_until

PROGRAM = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ProductionBroker:
    """Of a fleet that it founds in `home`; under mosquitto's own account where we are root."""

    def __init__(self, folder: Path, *, websockets: bool = False, address: str = "127.0.0.1") -> None:
        self.ports = {"tcp": free_port()} | ({"websockets": free_port()} if websockets else {})
        self.address = address
        self.folder, self.home, self.out = folder, folder / "home", folder / "etc"
        self.authority = found_fleet(self.home, "home", "127.0.0.1", Ports(7443, 7444, 8883), now_ms())
        self.state = folder / "queues"
        self.state.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        done = fedless(
            "broker", "config", self.out, "--fleet", self.home, "--port", str(self.ports["tcp"]),
            "--websockets", str(self.ports.get("websockets", 0)), "--address", address, "--persistence", self.state,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"mosquitto -c {self.out}/mosquitto.conf\n"

    def give_away(self) -> None:
        """mosquitto drops root's rights for those of its own user, who must be able to read its files."""
        if os.geteuid() != 0:
            return
        with suppress(KeyError):
            account = pwd.getpwnam("mosquitto")
            for folder in (self.folder, *self.folder.parents):
                if (
                    folder.stat().st_uid == 0
                    and folder != folder.parent
                    and not folder.stat().st_mode & 0o001
                ):
                    folder.chmod(0o711)
            for path in (self.out, self.state, *self.out.iterdir()):
                os.chown(path, account.pw_uid, account.pw_gid)

    def start(self, *command: str | Path) -> None:
        self.give_away()
        assert PROGRAM is not None
        path = f"{os.environ.get('PATH', '')}:/usr/sbin"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command or [PROGRAM, "-c", str(self.out / "mosquitto.conf")],
                stderr=log, env={**os.environ, "PATH": path},
            )  # fmt: skip
        for port in self.ports.values():
            wait_until(lambda port=port: self._listens(port))  # type: ignore[misc]

    def _listens(self, port: int) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with suppress(OSError), socket.create_connection((self.address, port)):
            return True
        return False

    def reload(self) -> None:
        """A SIGHUP, as `systemctl reload` sends it; mosquitto does not say when it is done."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)
