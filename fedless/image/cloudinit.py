"""*Pure.* cloud-init's files for the stock Raspberry Pi OS, where Raspberry Pi Imager 2 puts them.

They install the Debian package that lies beside them and let it join with the claim that lies beside them. The claim is
not in `user-data`, which stays on the card: it is a file of its own, which is erased once it is spent.
"""

from __future__ import annotations

import json

from edge_runtime.firstboot.settings import CLAIM_FILE, pre_shared_key
from fedless.image.options import Wanted

BOOT = "/boot/firmware"
USER_DATA, NETWORK_CONFIG, META_DATA = "user-data", "network-config", "meta-data"


def files(wanted: Wanted, package: str, instance: str) -> dict[str, str]:
    """All files by name. `package`: the .deb's file name on the boot partition; `instance`: a new id.

    JSON is YAML: what is quoted here is read as it is meant.
    """
    found = {
        USER_DATA: "#cloud-config\n" + _yaml(_user_data(wanted, package)),
        NETWORK_CONFIG: _yaml({"network": _network(wanted)}),
        META_DATA: _yaml({"instance-id": instance, "dsmode": "local"}),
    }
    if wanted.claim:
        found[CLAIM_FILE] = wanted.claim + "\n"
    return found


def _user_data(wanted: Wanted, package: str) -> dict[str, object]:
    values: dict[str, object] = {"ssh_pwauth": False, "package_update": True}
    if wanted.settings.hostname:
        values |= {"hostname": wanted.settings.hostname, "manage_etc_hosts": True}
    commands = [["apt-get", "install", "--yes", "--no-install-recommends", f"{BOOT}/{package}"]]
    if wanted.ssh_key:
        values["users"] = [
            {
                "name": "admin", "gecos": "Administrator of this board", "shell": "/bin/bash", "lock_passwd": True,
                "sudo": ["ALL=(ALL) NOPASSWD:ALL"], "ssh_authorized_keys": [wanted.ssh_key],
            }
        ]  # fmt: skip
        commands.append(["systemctl", "enable", "--now", "ssh.service"])
    if wanted.edge_toml:
        path = "/var/lib/fedless-edge/edge.toml"
        values["write_files"] = [{"path": path, "content": wanted.edge_toml, "permissions": "0644"}]
    values["runcmd"] = [*commands, ["systemctl", "enable", "--now", "fedless-join.service"]]
    return values


def _network(wanted: Wanted) -> dict[str, object]:
    values: dict[str, object] = {"version": 2, "ethernets": {"eth0": {"dhcp4": True, "optional": True}}}
    wifi = wanted.settings.wifi
    if wifi is not None:
        point: dict[str, object] = {"password": pre_shared_key(wifi)} if wifi.secret else {}
        point |= {"hidden": True} if wifi.hidden else {}
        values["wifis"] = {
            "wlan0": {
                "dhcp4": True, "optional": True, "regulatory-domain": wifi.country, "access-points": {wifi.ssid: point},
            }
        }  # fmt: skip
    return values


def _yaml(values: dict[str, object], indent: str = "") -> str:
    """Block mappings with JSON for what is no mapping."""
    lines = []
    for key, value in values.items():
        name = key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{name}:\n{_yaml(value, indent + '  ')}")
        elif isinstance(value, list):
            items = "".join(f"{indent}  - {json.dumps(item)}\n" for item in value)
            lines.append(f"{indent}{name}:\n{items}")
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}\n")
    return "".join(lines)
