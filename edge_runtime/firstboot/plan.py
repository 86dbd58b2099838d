"""*Pure.* Why a board does not take part yet: each trouble with its blinks, its sentence, its remedy and its patience.

`diagnose` tells from what the network looks like, `of_code` from what enrolling answered, `of_agent` from the agent's
last word. `status_text` and `pattern` are how people see it: on the boot partition, on the console, at the LED.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fedless.protocol.errors import Code


class Trouble(StrEnum):
    """What stands in the way."""

    SETTINGS = "settings"
    NO_LINK = "no_link"
    NO_ADDRESS = "no_address"
    NO_WIFI_DEVICE = "no_wifi_device"
    WIFI_NOT_FOUND = "wifi_not_found"
    WIFI_PASSWORD = "wifi_password"  # noqa: S105 - a trouble's name
    NO_CLAIM = "no_claim"
    CLAIM_MALFORMED = "claim_malformed"
    CLAIM_EXPIRED = "claim_expired"
    CLAIM_SPENT = "claim_spent"
    OTHER_AUTHORITY = "other_authority"
    AGGREGATOR_AWAY = "aggregator_away"
    BROKER_AWAY = "broker_away"
    REVOKED = "revoked"
    CLOCK = "clock"
    CARD = "card"
    OTHER = "other"


@dataclass(frozen=True)
class Signal:
    """How a trouble is told. `blinks` of the LED before each pause; `retry_s`: seconds until the next attempt."""

    blinks: int
    sentence: str
    remedy: str
    retry_s: int


_NEW_CLAIM = (
    "Make a new claim (`fedless fleet claim`) and put it into fedless-claim.txt on the boot partition."
)
SIGNALS: dict[Trouble, Signal] = {
    Trouble.SETTINGS: Signal(
        7, "fedless.toml on the boot partition has a mistake.", "Correct it there, then start the board again.", 60
    ),
    Trouble.NO_LINK: Signal(
        2, "There is no network.", "Plug a cable in, or give [wifi] in fedless.toml on the boot partition.", 10
    ),
    Trouble.NO_ADDRESS: Signal(
        2, "The network gives this board no address.", "Check the router: it must hand out addresses (DHCP).", 10
    ),
    Trouble.NO_WIFI_DEVICE: Signal(
        3, "This board has no Wi-Fi that works.", "Use a cable, or a board with Wi-Fi on it.", 30
    ),
    Trouble.WIFI_NOT_FOUND: Signal(
        3, "The Wi-Fi network is not in reach.",
        "Check ssid and country of [wifi] in fedless.toml, and that the router sends in that band.", 15,
    ),
    Trouble.WIFI_PASSWORD: Signal(
        3, "The Wi-Fi password is wrong.", "Correct it in fedless.toml on the boot partition.", 30
    ),
    Trouble.NO_CLAIM: Signal(4, "This board has no claim, so it cannot join a fleet.", _NEW_CLAIM, 30),
    Trouble.CLAIM_MALFORMED: Signal(
        4, "The claim is mistyped or incomplete.", "Copy the whole line into fedless-claim.txt here.", 30
    ),
    Trouble.CLAIM_EXPIRED: Signal(4, "The claim has expired.", _NEW_CLAIM, 300),
    Trouble.CLAIM_SPENT: Signal(4, "The claim was used by another device, or withdrawn.", _NEW_CLAIM, 300),
    Trouble.OTHER_AUTHORITY: Signal(
        5, "The aggregator's certificate is not the one that this board was given.",
        "If the fleet was founded anew, make a new claim; if not, someone may stand in between.", 300,
    ),
    Trouble.AGGREGATOR_AWAY: Signal(
        5, "The aggregator does not answer.", "Check that it runs and that this network lets the board reach it.", 20
    ),
    Trouble.BROKER_AWAY: Signal(
        5, "The MQTT broker does not answer.", "Check that it runs and that this network lets the board reach it.", 20
    ),
    Trouble.REVOKED: Signal(4, "The fleet does not take this device any more.", _NEW_CLAIM, 300),
    Trouble.CLOCK: Signal(
        6, "The clock is wrong.", "Let the board reach a time server (NTP), or give the network one by DHCP.", 20
    ),
    Trouble.CARD: Signal(7, "The SD card is too small.", "Use one of at least 4 GB.", 300),
    Trouble.OTHER: Signal(8, "Something went wrong.", "See `journalctl --unit fedless-firstboot`.", 60),
}  # fmt: skip

_OF_CODE = {
    Code.CLAIM_MALFORMED: Trouble.CLAIM_MALFORMED,
    Code.CLAIM_EXPIRED: Trouble.CLAIM_EXPIRED,
    Code.CLAIM_USED: Trouble.CLAIM_SPENT,
    Code.CLAIM_UNKNOWN: Trouble.CLAIM_SPENT,
    Code.CLAIM_FOREIGN: Trouble.OTHER_AUTHORITY,
    Code.FOREIGN_CERTIFICATE: Trouble.OTHER_AUTHORITY,
    Code.AGGREGATOR_UNREACHABLE: Trouble.AGGREGATOR_AWAY,
    Code.CERTIFICATE_REVOKED: Trouble.REVOKED,
    Code.CLOCK_WRONG: Trouble.CLOCK,
    Code.DISK_FULL: Trouble.CARD,
}
_BOARDS = ("Raspberry Pi 3", "Raspberry Pi 4", "Raspberry Pi 5", "Raspberry Pi Zero 2",
           *(f"Raspberry Pi Compute Module {generation}" for generation in (3, 4, 5)))  # fmt: skip
_ON_MS, _OFF_MS, _PAUSE_MS = 200, 300, 1500
FREE_BYTES_MIN = 256 << 20
"""Free on the root file system after it has grown; a model, a bundle and a report must fit."""


@dataclass(frozen=True)
class Network:
    """What the board sees of the network. `wifi_state` is wpa_supplicant's own word, `wifi_log` its last lines."""

    carrier: bool
    address: bool
    wifi_wanted: bool = False
    wifi_device: bool = False
    wifi_state: str = ""
    wifi_log: str = ""


def diagnose(network: Network) -> Trouble | None:
    """What keeps the board off the network; None: it has a way out. A cable that works is enough."""
    if network.address:
        return None
    if not network.wifi_wanted:
        return Trouble.NO_ADDRESS if network.carrier else Trouble.NO_LINK
    if not network.wifi_device:
        return Trouble.NO_WIFI_DEVICE
    if network.wifi_state == "COMPLETED":
        return Trouble.NO_ADDRESS
    wrong = ("WRONG_KEY", "pre-shared key may be incorrect", "4-Way Handshake failed")
    if any(sign in network.wifi_log for sign in wrong):
        return Trouble.WIFI_PASSWORD
    return Trouble.WIFI_NOT_FOUND


def of_code(code: Code) -> Trouble:
    """What an error of enrolling means here."""
    return _OF_CODE.get(code, Trouble.OTHER)


def of_agent(state: str, reason: str) -> Trouble | None:
    """What the agent's last word means: `state` and `reason` of `agent.json`; None: it is connected, or was stopped."""
    if state != "disconnected":
        return None
    text = reason.lower()
    if "check the clock" in text:
        return Trouble.CLOCK
    if "certificate verify failed" in text or "hostname mismatch" in text:
        return Trouble.OTHER_AUTHORITY
    if "revoked" in text or "not authorized" in text:
        return Trouble.REVOKED
    return Trouble.BROKER_AWAY


def board_note(model: str) -> str:
    """A sentence about a board that this image was not made for, or ""."""
    if model.startswith(_BOARDS):
        return ""
    known = "Raspberry Pi 3, 4, 5 or Zero 2"
    return (
        f"This board ({model or 'unknown'}) is none that the image was made for ({known}); it goes on anyway."
    )


def pattern(trouble: Trouble | None, *, busy: bool) -> str:
    """The LED, as the kernel's pattern trigger takes it: pairs of brightness and milliseconds; "" leaves it off."""
    if trouble is None:
        return f"1 {_ON_MS} 1 0 0 {_ON_MS} 0 0" if busy else ""
    blinks = SIGNALS[trouble].blinks
    on_off = f"1 {_ON_MS} 1 0 0 {_OFF_MS} 0 0 "
    return (on_off * blinks + f"0 {_PAUSE_MS}").strip()


@dataclass(frozen=True)
class Standing:
    """What is to be told. `joined` is the client id and fleet once enrolled; `detail` comes from an error."""

    trouble: Trouble | None = None
    detail: str = ""
    joined: str = ""
    note: str = ""
    busy: bool = False


def status_text(standing: Standing, host: str, model: str, version: str, moment: str) -> str:
    """`fedless-status.txt`, and without its first lines the console's banner."""
    lines = [
        f"fedless {version} on {host} ({model or 'unknown board'})",
        f"{moment} by this board's clock",
        "",
    ]
    return "\n".join([*lines, *banner(standing)]) + "\n"


def banner(standing: Standing) -> list[str]:
    """What is the matter and what to do, line by line."""
    lines = [f"Joined: {standing.joined}."] if standing.joined else ["Not joined to a fleet yet."]
    if standing.trouble is not None:
        signal = SIGNALS[standing.trouble]
        lines += [f"TROUBLE: {signal.sentence}", *([standing.detail] if standing.detail else [])]
        lines += [f"What to do: {signal.remedy}"]
        lines.append(
            f"It tries again every {signal.retry_s} s. The LED blinks {signal.blinks} times between pauses."
        )
    elif standing.busy:
        lines.append("It is being set up; the LED blinks evenly.")
    elif standing.joined:
        lines.append("All is well: it waits for wake-ups.")
    return [*lines, *([standing.note] if standing.note else [])]
