"""Partitions of a card image: FAT for the firmware, ext4 for the system; nothing is mounted, nothing needs root."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fedless.image import runtime
from fedless.image.run import run

MB = 1 << 20
SECTOR = 512
BOOT_MB = 256
START_MB = 4
BLOCK = "16MiB"
_COPY_BYTES = 4 * MB


def fat(folder: Path, image: Path, epoch: int) -> None:
    """The folder as a FAT file system named BOOTFS, with the build's moment as every file's time."""
    for path in runtime.walk(folder):
        os.utime(path, (epoch, epoch))
    image.unlink(missing_ok=True)
    run(
        ["mkfs.vfat", "--invariant", "-C", "-F", "32", "-n", "BOOTFS", "-i", f"{epoch & 0xFFFFFFFF:08X}", str(image),
         str(BOOT_MB * 1024)],
        epoch=epoch,
    )  # fmt: skip
    entries = sorted(str(path) for path in folder.iterdir())
    run(["mcopy", "-s", "-m", "-Q", "-i", str(image), *entries, "::"], epoch=epoch)


def assemble(boot: Path, root: Path, disk: Path, label: int) -> int:
    """Both file systems behind a partition table with this 32-bit label; the size of the card image, bytes."""
    start = START_MB * MB
    second = start + BOOT_MB * MB
    size = second + root.stat().st_size
    disk.unlink(missing_ok=True)
    with disk.open("wb") as file:
        file.truncate(size)
    table = (
        f"label: dos\nlabel-id: 0x{label:08x}\nunit: sectors\n"
        f"start={start // SECTOR}, size={BOOT_MB * MB // SECTOR}, type=c, bootable\n"
        f"start={second // SECTOR}, size={root.stat().st_size // SECTOR}, type=83\n"
    )
    run(["sfdisk", "--quiet", str(disk)], given=table)
    with disk.open("r+b") as file:
        for part, offset in ((boot, start), (root, second)):
            file.seek(offset)
            with part.open("rb") as source:
                _copy_holes(source.fileno(), file.fileno(), part.stat().st_size, offset)
    return size


def _copy_holes(source: int, target: int, size: int, offset: int) -> None:
    """Copy what is data; holes stay holes."""
    at = 0
    while at < size:
        try:
            begin = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            return  # only a hole is left
        at = end = os.lseek(source, begin, os.SEEK_HOLE)
        while begin < end:
            piece = os.pread(source, min(_COPY_BYTES, end - begin), begin)
            os.pwrite(target, piece, offset + begin)
            begin += len(piece)


def compress(disk: Path, target: Path, preset: int) -> None:
    """xz by its threaded coder with blocks of one size: the bytes do not depend on how many processors there are."""
    run(["xz", "--threads=0", f"--block-size={BLOCK}", f"-{preset}", "--keep", "--force", str(disk)])
    shutil.move(f"{disk}.xz", target)
