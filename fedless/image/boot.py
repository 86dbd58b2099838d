"""*Pure.* The text files of the boot partition: what the Raspberry Pi's firmware and Linux are told, and our own.

Sources: the documentation of config.txt (conditional filters, `upstream_kernel`, `initramfs`).
"""

from __future__ import annotations

from edge_runtime.firstboot.settings import CLAIM_FILE, FILE
from fedless.image.options import Wanted

CMDLINE = (
    "console=ttyS1,115200 console=tty0 root=LABEL=rootfs rootfstype=ext4 rw rootwait fsck.repair=yes "
    "net.ifnames=0 panic=10"
)
NO_KERNEL = "this-board-is-not-64-bit"
DEVICE_TREES = ("bcm2710", "bcm2711", "bcm2712", "bcm2837")
_README = """\
This card starts a fedless board. What stands here and may be edited on any computer:

fedless.toml         host name and Wi-Fi
fedless-claim.txt    the claim with which the board joins a fleet; it is erased when it has
fedless-status.txt   written by the board: how it stands, and what to do if it does not join
"""


def config_txt(kernel: str, initrd: str) -> str:
    """The firmware's settings. A 32-bit board finds no kernel: its LED flashes seven times, and it stops."""
    return (
        "# fedless: 64-bit Debian for Raspberry Pi 3, 4, 5 and Zero 2\n"
        "arm_64bit=1\nupstream_kernel=1\nenable_uart=1\ndisable_splash=1\n"
        f"kernel={kernel}\ninitramfs {initrd} followkernel\n"
        f"\n# Boards with a 32-bit processor: the LED's seven flashes say that there is no kernel for them.\n"
        f"[pi0]\nkernel={NO_KERNEL}\n[pi1]\nkernel={NO_KERNEL}\n[pi02]\nkernel={kernel}\n[all]\n"
    )


def texts(wanted: Wanted, kernel: str, initrd: str) -> dict[str, str]:
    """All text files of the boot partition by name."""
    found = {
        "config.txt": config_txt(kernel, initrd),
        "cmdline.txt": CMDLINE + "\n",
        "fedless-readme.txt": _README,
        FILE: wanted.settings.text(),
    }
    if wanted.claim:
        found[CLAIM_FILE] = wanted.claim + "\n"
    return found
