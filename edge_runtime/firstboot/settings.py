"""*Pure.* `fedless.toml` on the boot partition: host name and Wi-Fi, which people edit on another computer.

`fedless image` writes it with `BoardSettings.text`; the board reads it with `parse` at every start. A network's secret
is a passphrase of 8 to 63 characters or 64 hex digits (WPA's pre-shared key), and is in no repr.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import dataclass, field

from fedless.protocol.errors import Code, LocalError
from fedless.protocol.tables import Table, write_tables

FILE = "fedless.toml"
CLAIM_FILE = "fedless-claim.txt"
STATUS_FILE = "fedless-status.txt"
SSID_BYTES_MAX = 32
_HOST = re.compile(r"|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SSID = re.compile(r"[^\x00-\x1f\x7f]{1,32}")
_SECRET = re.compile(r"[\x20-\x7e]{8,63}|[0-9A-Fa-f]{64}|")
_COUNTRY = re.compile(r"[A-Z]{2}")
_PSK = re.compile(r"[0-9A-Fa-f]{64}")


@dataclass(frozen=True)
class Wifi:
    """A network to join. `secret` empty: an open one."""

    ssid: str
    secret: str = field(repr=False)
    country: str
    hidden: bool = False


@dataclass(frozen=True)
class BoardSettings:
    """The whole file. `hostname` empty: one is made from the board's serial number."""

    hostname: str = ""
    wifi: Wifi | None = None

    def text(self) -> str:
        """The file; `parse` gives the same settings back."""
        values: dict[str, object] = {"hostname": self.hostname or None}
        if self.wifi is not None:
            values["wifi"] = {
                "ssid": self.wifi.ssid, "secret": self.wifi.secret, "country": self.wifi.country,
                "hidden": self.wifi.hidden,
            }  # fmt: skip
        return _HEAD + write_tables(values)


_HEAD = """\
# Settings of this board; it reads them at every start.
# hostname = "greenhouse-7"
# [wifi]
# ssid = "the network's name"
# secret = "its password"
# country = "DE"       # where the board is, two letters: which channels it may use
# hidden = false
"""


def parse(text: str) -> BoardSettings:
    """The settings in `text`. Raises `LocalError` CONFIG_INVALID with all that is wrong, and never the secret."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise LocalError(Code.CONFIG_INVALID, f"{FILE}: {error}.") from None
    given = values.get("wifi")
    secret: object = given.pop("secret", "") if isinstance(given, dict) else ""  # a complaint would show it
    root = Table.root(values)
    hostname = root.text("hostname", _HOST, "")
    table = root.optional("wifi")
    wifi, own = None, []
    if table is not None:
        ssid, country = table.text("ssid", _SSID), table.text("country", _COUNTRY)
        if len(ssid.encode()) > SSID_BYTES_MAX:
            own.append(f"wifi.ssid: at most {SSID_BYTES_MAX} bytes")
        if not isinstance(secret, str) or not _SECRET.fullmatch(secret):
            own.append("wifi.secret: must be a text of 8 to 63 ASCII characters, or 64 hex digits")
        wifi = Wifi(ssid, str(secret), country, table.flag("hidden", default=False))
    complaints = root.close() + own
    if complaints:
        raise LocalError(Code.CONFIG_INVALID, f"{FILE}: " + "; ".join(complaints) + ".")
    return BoardSettings(hostname, wifi)


def pre_shared_key(wifi: Wifi) -> str:
    """WPA's key for the network, 64 hex digits (IEEE 802.11i, H.4): PBKDF2-SHA1, the SSID as salt, 4096 rounds."""
    if _PSK.fullmatch(wifi.secret):
        return wifi.secret.lower()
    return hashlib.pbkdf2_hmac("sha1", wifi.secret.encode("ascii"), wifi.ssid.encode(), 4096, 32).hex()


def supplicant(wifi: Wifi) -> str:
    """wpa_supplicant's file: the name in hex, so that no sign in it is syntax; WPA2 and, by the passphrase, WPA3."""
    lines = [
        "ctrl_interface=DIR=/run/wpa_supplicant GROUP=root", f"country={wifi.country}", "network={",
        f"  ssid={wifi.ssid.encode().hex()}", f"  scan_ssid={int(wifi.hidden)}",
    ]  # fmt: skip
    if not wifi.secret:
        lines.append("  key_mgmt=NONE")
    else:
        lines += ["  key_mgmt=WPA-PSK SAE WPA-PSK-SHA256", f"  psk={pre_shared_key(wifi)}", "  ieee80211w=1"]
        if not _PSK.fullmatch(wifi.secret):
            lines.append('  sae_password="' + wifi.secret + '"')
    return "\n".join([*lines, "}", ""])
