"""The steps of setting a board up. Each may be repeated after a power cut at any of its instructions.

Local ones (`keys`, `clock`, `grow`, `apply_settings`) need no network and give a `Trouble` or None; `join` spends the
claim. Called by `main`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import subprocess
import sys
import time
from dataclasses import dataclass

from edge_runtime.disk import write_whole
from edge_runtime.firstboot import settings
from edge_runtime.firstboot.machine import Machine
from edge_runtime.firstboot.plan import FREE_BYTES_MIN, Trouble, of_code
from edge_runtime.keystore import KEY, Keystore
from edge_runtime.process import own_start
from fedless import __version__
from fedless.protocol.errors import Code, LocalError

DONE = "/var/lib/fedless-setup"
"""What was done once: files here, written after the step."""
PACKAGES = "/opt/fedless/lib/site-packages"
SLACK_BYTES = 4 << 20
JOIN_S = 120.0
_NOTE = "claim.json"
_HOST_WORD = re.compile(r"[^a-z0-9]")


@dataclass(frozen=True)
class Outcome:
    """What came of trying to join: a trouble with its detail, or none."""

    trouble: Trouble | None = None
    detail: str = ""


def keys(machine: Machine) -> None:
    """Host keys of this board's own; the image has none. `ssh-keygen -A` leaves those that are there."""
    if machine.at("/usr/sbin/sshd").exists():
        machine.run(["ssh-keygen", "-A", "-f", str(machine.root)], "")


def clock(machine: Machine) -> bool:
    """Set a clock that is behind the moment at which this image was built; whether it was."""
    try:
        floor = machine.at("/usr/lib/clock-epoch").stat().st_mtime
    except OSError:
        return False
    if time.time() >= floor:
        return False
    time.clock_settime(time.CLOCK_REALTIME, floor)
    return True


def grow(machine: Machine) -> Trouble | None:
    """Let root partition and file system fill the card, once; CARD if what is free then is too little."""
    partition = machine.root_partition()
    disk, number, has, could = machine.sizes(partition)
    done = machine.at(f"{DONE}/grown")
    if disk and not done.exists():
        if could - has > SLACK_BYTES:
            machine.run(["sfdisk", "--no-reread", "--force", "-N", str(number), f"/dev/{disk}"], ", +\n")
            machine.run(["partx", "--update", "--nr", str(number), f"/dev/{disk}"], "")
        resized = machine.run(["resize2fs", f"/dev/{partition}"], "")
        if resized.status == 0:
            done.parent.mkdir(parents=True, exist_ok=True)
            write_whole(done, b"")
    return Trouble.CARD if machine.free_bytes() < FREE_BYTES_MIN else None


def apply_settings(machine: Machine) -> tuple[settings.BoardSettings, str]:
    """Make host name and Wi-Fi what the boot partition says; the settings, and a complaint or ""."""
    path = machine.boot / settings.FILE
    complaint = ""
    try:
        found = (
            settings.parse(path.read_text(encoding="utf-8")) if path.exists() else settings.BoardSettings()
        )
    except LocalError as error:
        found, complaint = settings.BoardSettings(), error.detail
    except (OSError, UnicodeDecodeError) as error:
        found, complaint = (
            settings.BoardSettings(),
            f"{settings.FILE} cannot be read ({type(error).__name__}).",
        )
    if complaint:
        return found, complaint
    _name(machine, found.hostname)
    _wifi(machine, found.wifi)
    return found, ""


def _name(machine: Machine, wanted: str) -> None:
    name = wanted or f"fedless-{_HOST_WORD.sub('', machine.serial.lower())[-6:] or 'board'}"
    if machine.write("/etc/hostname", name + "\n"):
        machine.run(["hostname", name], "")
    machine.write("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n")


def _wifi(machine: Machine, wifi: settings.Wifi | None) -> None:
    """The file is written last and removed last: it says that all the rest is done, whenever the power went."""
    path, unit = "/etc/wpa_supplicant/wpa_supplicant-wlan0.conf", "wpa_supplicant@wlan0.service"
    if wifi is None:
        if machine.at(path).exists():
            machine.run(["systemctl", "disable", "--now", unit], "")
            machine.at(path).unlink()
        return
    text = settings.supplicant(wifi)
    if machine.read(path) == text.strip():
        return
    machine.run(["rfkill", "unblock", "wifi"], "")
    machine.run(["iw", "reg", "set", wifi.country], "")
    machine.run(["systemctl", "enable", unit], "")
    machine.write(path, text, 0o600)
    machine.run(["systemctl", "restart", "--no-block", unit], "")


def compiled(machine: Machine) -> None:
    """Let Python keep our code compiled: nobody but root may write there, and a start would compile it each time."""
    done = machine.at(f"{DONE}/compiled-{__version__}")
    if done.exists():
        return
    folder = machine.at(PACKAGES)
    if not folder.is_dir():
        return
    machine.run([sys.executable, "-m", "compileall", "-q", "-f", str(folder)], "")
    os.sync()
    done.parent.mkdir(parents=True, exist_ok=True)
    write_whole(done, b"")


def claim_text(machine: Machine) -> str:
    """The claim on the boot partition, or "": the first line that is no remark."""
    try:
        lines = (
            (machine.boot / settings.CLAIM_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
        )
    except OSError:
        return ""
    kept = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return kept[0] if kept else ""


def join(machine: Machine) -> Outcome:
    """Enroll with the claim that is there, as the agent's user, and erase it once it has made this identity.

    Whether a claim has done its work is told by the key: before the first attempt with it is written down which claim
    and which key there was. An identity with another key came from that claim.
    """
    text = claim_text(machine)
    enrolled = Keystore(machine.state).enrolled
    if not text:
        return Outcome() if enrolled else Outcome(Trouble.NO_CLAIM)
    note = _note(machine, text)
    if enrolled and _key_digest(machine) != note["key_before"]:
        machine.erase(machine.boot / settings.CLAIM_FILE)
        return Outcome()
    outcome = _enroll(machine, text, again=enrolled)
    if outcome.trouble is None:
        machine.erase(machine.boot / settings.CLAIM_FILE)
    return outcome


def _note(machine: Machine, text: str) -> dict[str, str]:
    """Which claim is being spent, and the key before it; on the disk before the first attempt."""
    path = machine.at(f"{DONE}/{_NOTE}")
    digest = hashlib.sha256(text.encode()).hexdigest()
    try:
        known: dict[str, str] = json.loads(path.read_bytes())
        if known["claim"] == digest:
            return known
    except (OSError, ValueError, KeyError):
        pass  # the first claim, or a note that a power cut left empty
    before = _key_digest(machine) if Keystore(machine.state).enrolled else ""
    values = {"claim": digest, "key_before": before}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(values).encode())
    return values


def _key_digest(machine: Machine) -> str:
    try:
        return hashlib.sha256((Keystore(machine.state).folder / KEY).read_bytes()).hexdigest()
    except OSError:
        return ""


def _enroll(machine: Machine, text: str, *, again: bool) -> Outcome:
    """In a process of the agent's user, which never sees the boot partition; the claim goes through a pipe."""
    who = _account(machine)
    machine.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if who is not None:
        os.chown(machine.state, who.pw_uid, who.pw_gid)
    command = [*own_start(), "edge_runtime.firstboot.joining", "--state", str(machine.state)]
    command += ["--again"] if again else []
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=JOIN_S,
            user=who.pw_uid if who else None, group=who.pw_gid if who else None, extra_groups=[] if who else None,
        )  # fmt: skip
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return Outcome(Trouble.AGGREGATOR_AWAY, f"Joining did not end within {JOIN_S:.0f} s.")
    except ValueError:
        return Outcome(
            Trouble.OTHER, f"Joining ended with status {done.returncode}: {done.stderr.strip()[-300:]}"
        )
    if not answer["code"]:
        return Outcome()
    return Outcome(of_code(Code.of(answer["code"])), answer["detail"])


def _account(machine: Machine) -> pwd.struct_passwd | None:
    """The agent's user; None if this process is nobody who could become it."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(machine.user)
    except KeyError as error:
        detail = f"There is no user {machine.user}."
        raise LocalError(Code.NOT_INSTALLED, detail, fix="Run `systemd-sysusers`.") from error
