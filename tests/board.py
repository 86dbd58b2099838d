"""A board for tests of the set-up: a folder for `/sys`, `/proc` and `/etc`, and a list for its commands."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from edge_runtime.firstboot.machine import Answer, Machine

SECTORS = 2048  # of a MB


class PowerCutError(Exception):
    """The board is off from here on."""


class Board:
    """Files below `root`; `said` answers a command by its first word, `commands` is what was called."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[list[str]] = []
        self.inputs: list[str] = []
        self.said: dict[str, Callable[[Sequence[str]], Answer] | Answer] = {}
        for folder in ("boot/firmware", "etc", "run", "usr/lib", "dev", "proc/net", "sys/class/net/lo"):
            (root / folder).mkdir(parents=True)
        self.put("/proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
        self.put("/proc/device-tree/serial-number", "10000000ABCDEF12\0")
        self.put("/dev/console", "")
        self.machine = Machine(
            root, root / "boot/firmware", root / "var/lib/fedless-edge", getpass.getuser(), self._run
        )

    def put(self, path: str, text: str) -> Path:
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def text(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    @property
    def status(self) -> str:
        return self.text("/boot/firmware/fedless-status.txt")

    def claim(self, text: str) -> Path:
        return self.put("/boot/firmware/fedless-claim.txt", text + "\n")

    def network(self, *, carrier: bool = True, route: bool = True) -> None:
        self.put("/sys/class/net/eth0/carrier", "1\n" if carrier else "0\n")
        lines = ["Iface Destination Gateway", *(["eth0 00000000 0202000A 0003"] if route else [])]
        self.put("/proc/net/route", "\n".join(lines))

    def card(self, has_mb: int, could_mb: int) -> None:
        """A card whose second partition has and could have so much; the real free space is the test machine's."""
        disk = self.root / "sys/devices/mmc/mmcblk0"
        part = disk / "mmcblk0p2"
        part.mkdir(parents=True)
        (disk / "size").write_text(str((260 + could_mb) * SECTORS))
        for name, value in (("partition", 2), ("start", 260 * SECTORS), ("size", has_mb * SECTORS)):
            (part / name).write_text(str(value))
        (self.root / "sys/class/block").mkdir(parents=True)
        (self.root / "sys/class/block/mmcblk0p2").symlink_to(part)
        self.said["findmnt"] = Answer(0, "/dev/mmcblk0p2\n")

    def called(self, program: str) -> list[list[str]]:
        return [command for command in self.commands if command[0] == program]

    def cut_at(self, number: int) -> Machine:
        """The same board, switched on until its so-many-th command, which does not happen."""
        left = number

        def run(command: Sequence[str], given: str) -> Answer:
            nonlocal left
            left -= 1
            if left < 0:
                raise PowerCutError
            return self._run(command, given)

        return replace(self.machine, run=run)

    def _run(self, command: Sequence[str], given: str) -> Answer:
        self.commands.append(list(command))
        self.inputs.append(given)
        answer = self.said.get(command[0], Answer(0, ""))
        return answer if isinstance(answer, Answer) else answer(command)
