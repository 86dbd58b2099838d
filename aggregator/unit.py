"""The systemd unit of the service, and its installation: `fedless aggregator install`.

The service writes into the fleet's directory and nowhere else, as a user of its own, with no capability but the one
for ports under 1024 where the configuration names such. Evaluations run in child processes without a sandbox of
their own, so the unit is theirs too. `deploy/systemd/fedless-aggregator.service` is this text with its defaults; a
test compares.
"""

from __future__ import annotations

from pathlib import Path

from aggregator.config import BrokerKind, Settings
from edge_runtime.service import check_path, enable

NAME = "fedless-aggregator"
HOME = "/var/lib/fedless"
LOW_PORTS = 1024
_UNIT = """\
[Unit]
Description=fedless aggregator: federated learning on functions
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} aggregator serve --fleet {fleet}
ExecReload=/bin/kill -HUP $MAINPID
User={user}
Restart=on-failure
RestartSec=5
KillMode=mixed
KillSignal=SIGTERM
TimeoutStartSec=120
TimeoutStopSec=60
UMask=0077
LimitNOFILE=65536
TasksMax=512
OOMPolicy=continue

ReadWritePaths={fleet}
ProtectSystem=strict
ProtectHome={home}
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
{users}ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
AmbientCapabilities={capabilities}
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def unit(
    program: str = "/opt/fedless/bin/fedless",
    fleet: str = HOME,
    user: str = "fedless",
    *,
    low_ports: bool = False,
) -> str:
    """The unit's text. `low_ports`: it listens on a port under 1024. Raises `LocalError` CONFIG_INVALID."""
    for path in (program, fleet):
        check_path(path)
    in_homes = any(path.startswith(("/home/", "/root/")) for path in (program, fleet))
    return _UNIT.format(
        program=program, fleet=fleet, user=user, home="read-only" if in_homes else "yes",
        capabilities="CAP_NET_BIND_SERVICE" if low_ports else "",
        users="" if low_ports else "PrivateUsers=yes\n",  # in a user namespace the capability would count for nothing
    )  # fmt: skip


def install(settings: Settings, path: Path, fleet: Path, user: str) -> list[str]:
    """Writes the unit, makes the user, gives it the fleet's directory, enables and starts; what was done.

    Raises `LocalError` with what is missing: the right to write there, systemd, useradd.
    """
    ports = [settings.listen.fleet_port, settings.listen.enrollment_port]
    if settings.broker.kind is BrokerKind.CHILD:
        ports.append(settings.broker.port)
    low = any(0 < port < LOW_PORTS for port in ports)

    def text(program: str) -> str:
        return unit(program, str(fleet), user, low_ports=low)

    return enable(path, text, fleet, user, "`journalctl --unit fedless-aggregator`")
