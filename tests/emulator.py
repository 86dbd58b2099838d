"""A Raspberry Pi image in QEMU's `virt` machine: its processor and memory, not its boot chain, Wi-Fi or LED.

The kernel and the initrd are taken off the image's own boot partition, as the firmware would. The console is kept in a
file. User-mode network: 10.0.2.2 is this machine's loopback.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fedless.image import disk
from fedless.image.run import run

PROGRAM = os.environ.get("FEDLESS_QEMU", "qemu-system-aarch64")
APPEND = (
    "console=ttyAMA0 root=LABEL=rootfs rw rootwait net.ifnames=0 panic=10 "
    "systemd.journald.forward_to_console=1 systemd.journald.max_level_console=info systemd.show_status=1"
)


class Emulator:
    """One card in one machine; `start` and `cut` the power as often as you like."""

    def __init__(self, card: Path, folder: Path, memory_mb: int = 1024) -> None:
        self.card, self.console = card, folder / "console.log"
        self._memory_mb = memory_mb
        self._process: subprocess.Popen[bytes] | None = None
        at = f"{card}@@{disk.START_MB}M"
        names = run(["mdir", "-b", "-i", at, "::"]).split()
        self._parts = {}
        for kind in ("vmlinuz-", "initrd.img-"):
            found = next(name for name in names if name.startswith(f"::/{kind}"))
            self._parts[kind] = folder / kind.rstrip("-")
            run(["mcopy", "-n", "-o", "-i", at, found, str(self._parts[kind])])

    def start(self, *options: str) -> None:
        """Switch it on."""
        with self.console.open("ab") as log:
            log.write(b"\n=== power on ===\n")
            log.flush()
            self._process = subprocess.Popen(
                [
                    PROGRAM, "-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", str(self._memory_mb),
                    "-accel", "tcg,thread=multi", "-nographic", "-nodefaults", "-serial", "stdio", "-no-reboot",
                    "-kernel", str(self._parts["vmlinuz-"]), "-initrd", str(self._parts["initrd.img-"]),
                    "-append", APPEND, "-drive", f"file={self.card},format=raw,if=virtio,cache=writethrough",
                    "-netdev", "user,id=net0", "-device", "virtio-net-device,netdev=net0", *options,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def cut(self) -> None:
        """Take the power away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def wait(self, condition: Callable[[], object], seconds: float, what: str) -> float:
        """Until it holds; the seconds that it took. Fails with the end of the console."""
        began = time.monotonic()
        while not condition():
            ended = self._process is None or self._process.poll() is not None
            took = time.monotonic() - began
            assert not ended and took < seconds, f"{what}: not within {took:.0f} s\n{self.said()[-4000:]}"  # noqa: PT018
            time.sleep(0.5)
        return time.monotonic() - began

    def said(self) -> str:
        """The console so far."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def boot_file(self, name: str) -> str:
        """A file of the boot partition, or ""; the machine should be off."""
        try:
            return run(["mtype", "-i", f"{self.card}@@{disk.START_MB}M", f"::/{name}"])
        except Exception:  # noqa: BLE001 - mtools says it in many ways
            return ""

    def root(self, folder: Path) -> Path:
        """The second partition in a file of its own, its journal replayed; the machine must be off."""
        part = folder / "root.ext4"
        with self.card.open("rb") as file, part.open("wb") as target:
            file.seek((disk.START_MB + disk.BOOT_MB) * disk.MB)
            shutil.copyfileobj(file, target)
        subprocess.run(["/usr/sbin/e2fsck", "-f", "-y", str(part)], check=False, capture_output=True)
        return part
