"""*Pure.* What an image is made of, checked before anything is built; all complaints at once.

The claim and the Wi-Fi secret are in no repr; they end on the boot partition and nowhere else.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field

from edge_runtime.firstboot.settings import BoardSettings, Wifi, parse
from fedless.protocol.claim import parse_claim
from fedless.protocol.errors import Code, FedlessError, LocalError

_SSH_KEY = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)|sk-[a-z0-9@.-]+) [A-Za-z0-9+/=]{40,}( [^\r\n]*)?"
)
_DATA_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Wanted:
    """One board's image. `edge_toml` is its settings file, `data` names files that it finds in /srv/fedless."""

    claim: str = field(default="", repr=False)
    settings: BoardSettings = field(default_factory=BoardSettings)
    ssh_key: str = ""
    edge_toml: str = ""
    data: tuple[str, ...] = ()


def wanted(
    claim: str,
    hostname: str,
    wifi: Wifi | None,
    ssh_key: str,
    edge_toml: str = "",
    data: tuple[str, ...] = (),
) -> Wanted:
    """The checked options. Raises `LocalError` CONFIG_INVALID with everything that is wrong."""
    complaints: list[str] = []
    try:
        text = parse_claim(claim).text if claim.strip() else ""
    except FedlessError as error:
        text = ""
        complaints.append(f"the claim: {error.detail}")
    settings = BoardSettings(hostname, wifi)
    try:
        settings = parse(settings.text())
    except LocalError as error:
        complaints.append(error.detail.partition(": ")[2].rstrip("."))
    key = ssh_key.strip()
    if key and not _SSH_KEY.fullmatch(key):
        complaints.append("the ssh key: expected one line of an OpenSSH public key (ssh-ed25519 ...)")
    try:
        tomllib.loads(edge_toml)
    except tomllib.TOMLDecodeError as error:
        complaints.append(f"edge.toml: {error}")
    complaints += [
        f"data file {name!r}: letters, digits, '.', '_' and '-' only"
        for name in data
        if not _DATA_NAME.fullmatch(name)
    ]
    if complaints:
        raise LocalError(Code.CONFIG_INVALID, "; ".join(complaints) + ".")
    return Wanted(text, settings, key, edge_toml, data)
