"""The systemd unit of the agent: its text, and `fedless-edge install-service`.

The unit is as tight as bubblewrap lets it be: functions run in user namespaces with a `/proc` of their own, so what
hides parts of `/proc` (ProtectKernelTunables, ProtectProc) or forbids namespaces is left out, and the functions' own
sandbox does that and more. `deploy/systemd/fedless-edge.service` is this text with its defaults; a test compares.
"""

from __future__ import annotations

import pwd
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_runtime.disk import write_whole
from fedless.protocol.errors import Code, LocalError

NAME = "fedless-edge"
_UNIT = """\
[Unit]
Description=fedless device: federated learning on functions
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} run --state {state}
User={user}
Restart=always
RestartSec=5
WatchdogSec=180
TimeoutStartSec=600
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec=60
UMask=0077
Nice=10
IOSchedulingClass=idle
OOMPolicy=continue
TasksMax=128

ReadWritePaths={state}
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelModules=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=user pid mnt net ipc uts cgroup
SystemCallArchitectures=native
SystemCallFilter=~@clock @module @reboot @swap @obsolete @cpu-emulation @raw-io

[Install]
WantedBy=multi-user.target
"""


def unit(
    program: str = f"/opt/fedless/bin/{NAME}", state: str = f"/var/lib/{NAME}", user: str = "fedless"
) -> str:
    """The unit's text. `program` and `state` are absolute paths without spaces or `%`."""
    for path in (program, state):
        check_path(path)
    return _UNIT.format(program=program, state=state, user=user)


def check_path(path: str) -> None:
    """Refuses what systemd would read as something else. Raises `LocalError` CONFIG_INVALID."""
    if not path.startswith("/") or any(letter in path for letter in " %\n\"'\\"):
        raise LocalError(
            Code.CONFIG_INVALID, f"systemd cannot take the path {path!r}: spaces or signs in it."
        )


def install_unit(path: Path, state: Path, user: str) -> Sequence[str]:
    """Write the agent's unit, enable and start it; see `enable`."""
    return enable(path, lambda program: unit(program, str(state), user), state, user, "`fedless-edge logs`")


def enable(path: Path, text: Callable[[str], str], state: Path, user: str, logs: str) -> list[str]:
    """Write a unit, make the user, give it the state directory, enable and start; what was done, line by line.

    `text` makes the unit from the path of the running program; `logs` says how to see what it says.
    Raises `LocalError` with what is missing: the right to write there, systemd, useradd.
    """
    content = text(str(Path(sys.argv[0]).absolute()))
    try:
        write_whole(path, content.encode(), mode=0o644)
    except OSError as error:
        raise LocalError(
            Code.CONFIG_INVALID, f"{path} cannot be written ({error.strerror}).", fix="Run it as root."
        ) from error
    done = [f"{path} is written."]
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        return [*done, "systemd does not run here: nothing was enabled."]
    if not _exists(user):
        _call("useradd", "--system", "--home-dir", str(state), "--shell", "/usr/sbin/nologin", user)
        done.append(f"The user {user} is made.")
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    _call("chown", "--recursive", f"{user}:", str(state))
    _call("systemctl", "daemon-reload")
    _call("systemctl", "enable", "--now", path.name)
    return [*done, f"{path.name} is enabled and started; see {logs}."]


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-300:]
        raise LocalError(Code.NOT_INSTALLED, f"`{' '.join(command)}` failed: {said}")
