"""The board under the set-up: its files below one root, its commands through one call; tests give both.

Everything here reads or does one small thing; `steps` says in which order. Raises OSError where a file cannot be
written; commands answer with their exit status and what they said.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.disk import sync_folder, write_whole
from edge_runtime.firstboot.plan import Network

COMMAND_S = 600.0
_SECTOR = 512
_LEDS = ("ACT", "led0", "green:act", "PWR")
_LOG_LINES = 60


@dataclass(frozen=True)
class Answer:
    """What a command left: `status` 127 if there is none of that name."""

    status: int
    said: str


def call(command: Sequence[str], given: str = "") -> Answer:
    """Run a program, bounded in time."""
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_S,
            errors="replace",
        )
    except FileNotFoundError:
        return Answer(127, f"{command[0]} is not installed.")
    except subprocess.TimeoutExpired:
        return Answer(124, f"{command[0]} did not end within {COMMAND_S:.0f} s.")
    return Answer(done.returncode, (done.stdout + done.stderr).strip())


@dataclass(frozen=True)
class Machine:
    """One board. `boot` and `state` are below `root` in tests and absolute on a board."""

    root: Path = Path("/")
    boot: Path = Path("/boot/firmware")
    state: Path = Path("/var/lib/fedless-edge")
    user: str = "fedless"
    run: Callable[[Sequence[str], str], Answer] = field(default=call)

    def at(self, path: str) -> Path:
        """A path of the board."""
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str:
        """The file's text without surrounding space and NULs, or ""."""
        try:
            return self.at(path).read_text(encoding="utf-8", errors="replace").strip(" \t\r\n\0")
        except OSError:
            return ""

    def write(self, path: str, text: str, mode: int = 0o644) -> bool:
        """Make the file hold the text; whether it was something else before."""
        target = self.at(path)
        if target.is_file() and target.read_text(encoding="utf-8", errors="replace") == text:
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text.encode(), mode=mode)
        target.chmod(mode)
        return True

    # -- who and where

    @property
    def model(self) -> str:
        """The board by its device tree, such as `Raspberry Pi 4 Model B Rev 1.4`."""
        return self.read("/proc/device-tree/model")

    @property
    def serial(self) -> str:
        """What tells this board from others: its serial number, or its machine id."""
        return self.read("/proc/device-tree/serial-number") or self.read("/etc/machine-id")

    @property
    def host(self) -> str:
        """Its name."""
        return self.read("/etc/hostname") or "fedless"

    # -- the disk

    def root_partition(self) -> str:
        """The name of the root file system's partition in /sys/class/block, or ""."""
        found = self.run(["findmnt", "--noheadings", "--output", "SOURCE", "/"], "")
        return os.path.basename(found.said.strip()) if found.status == 0 else ""  # noqa: PTH119 - a device's name

    def sizes(self, partition: str) -> tuple[str, int, int, int]:
        """Disk name, partition number, bytes of the partition, bytes that it could have. ("", 0, 0, 0): no such."""
        folder = self.at(f"/sys/class/block/{partition}").resolve()
        try:
            number, start, size, total = (
                int(path.read_text(encoding="ascii"))
                for path in (folder / "partition", folder / "start", folder / "size", folder.parent / "size")
            )
        except (OSError, ValueError):
            return "", 0, 0, 0
        return folder.parent.name, number, size * _SECTOR, (total - start) * _SECTOR

    def free_bytes(self) -> int:
        """Of the root file system, for whoever is not root."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    # -- the network

    def network(self, *, wifi_wanted: bool) -> Network:
        """What it looks like now."""
        cards = [card for card in self._cards() if card.name != "lo"]
        wireless = [card for card in cards if (card / "phy80211").exists() or (card / "wireless").exists()]
        carrier = any(self.read(f"/sys/class/net/{card.name}/carrier") == "1" for card in cards)
        if not wifi_wanted or not wireless:
            return Network(carrier, self._has_route(), wifi_wanted, bool(wireless))
        card = wireless[0].name
        told = self.run(["wpa_cli", "-i", card, "status"], "")
        states = [line.partition("=")[2] for line in told.said.splitlines() if line.startswith("wpa_state=")]
        unit = f"wpa_supplicant@{card}"
        log = self.run(
            ["journalctl", "--boot", "--unit", unit, "--output", "cat", "--lines", str(_LOG_LINES)], ""
        )
        return Network(carrier, self._has_route(), wifi_wanted, True, "".join(states[:1]), log.said)  # noqa: FBT003

    def _cards(self) -> list[Path]:
        folder = self.at("/sys/class/net")
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def _has_route(self) -> bool:
        """A way out: a default route of IPv4, or of IPv6 that is not the one to nowhere."""
        four = [line.split() for line in self.read("/proc/net/route").splitlines()[1:]]
        six = [line.split() for line in self.read("/proc/net/ipv6_route").splitlines()]
        return any(len(line) > 1 and line[1] == "00000000" for line in four) or any(
            len(line) > 9 and line[1] == "00" and set(line[0]) == {"0"} and line[9] != "lo"  # noqa: PLR2004
            for line in six
        )

    # -- the boot partition and the LED

    def erase(self, path: Path) -> None:
        """Overwrite and remove a secret; a second call finds nothing to do."""
        if not path.exists():
            return
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.write(b"\0" * size)
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
        sync_folder(path.parent)

    def led(self, pattern: str) -> bool:
        """Let the board's LED show it; whether there is one that can."""
        for name in _LEDS:
            folder = self.at(f"/sys/class/leds/{name}")
            if not (folder / "trigger").exists():
                continue
            try:
                (folder / "trigger").write_text("pattern" if pattern else "none", encoding="ascii")
                if pattern:
                    (folder / "pattern").write_text(pattern, encoding="ascii")
                    (folder / "repeat").write_text("-1", encoding="ascii")
            except OSError:
                continue  # a kernel without the trigger, or a LED that another driver holds
            return True
        return False

    def moment(self) -> str:
        """The clock, for people."""
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
