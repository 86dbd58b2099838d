"""The root file system of an image: Debian's base, the runtime, the board's files; as an ext4 that nobody had to mount.

Runs in a process of its own (`python -m fedless.image.rootfs SPEC.json`), since without root it takes fakeroot. The
same content gives the same bytes: fixed UUID and hash seed, sorted folders, and every time set, that of the last change
of an inode included, which `mke2fs -d` takes from the clock.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from fedless.image import runtime
from fedless.image.run import run

MB = 1 << 20
FIRMWARE = "boot/firmware"
_FREE = re.compile(r"^ {2}Free inodes: (.*)$", re.MULTILINE)
_COUNT = re.compile(r"^Inode count: +(\d+)$", re.MULTILINE)
_UNITS = "etc/systemd/system"
_ENABLED = {
    "multi-user.target.wants": (
        "fedless-firstboot.service",
        "fedless-edge.service",
        "systemd-networkd.service",
    ),
    "paths.target.wants": ("fedless-show.path",),
    "network-online.target.wants": ("systemd-networkd-wait-online.service",),
    "sysinit.target.wants": ("systemd-timesyncd.service", "systemd-resolved.service"),
}
_MASKED = ("wpa_supplicant.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
           "e2scrub_all.timer", "e2scrub_reap.service")  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """What to make, and where; paths as texts."""

    base: str
    tree: str
    work: str
    image: str
    epoch: int
    uuid: str
    ssh_key: str = ""
    edge_toml: str = ""
    data: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """For the process that makes it."""
        path.write_text(json.dumps(asdict(self)))


def main() -> int:
    """Make the file system that the spec describes."""
    values = json.loads(Path(sys.argv[1]).read_text())
    make(Spec(**values | {"data": tuple(values["data"])}))
    return 0


def make(spec: Spec) -> None:
    """Unpack, lay over, pack; what belongs on the boot partition stays in `work/boot`."""
    root = Path(spec.work) / "root"
    root.mkdir()
    started = int(time.time())
    # No xattrs: the only ones in a base are file capabilities of programs that root runs here.
    run(
        [
            "tar",
            "--extract",
            "--file",
            spec.base,
            "--directory",
            str(root),
            "--numeric-owner",
            "--preserve-permissions",
        ]
    )
    shutil.copytree(spec.tree, root, symlinks=True, dirs_exist_ok=True)
    _board(root, spec)
    _boot_files(root, Path(spec.work) / "boot")
    _times(root, spec.epoch, min(started, spec.epoch))
    ext4(root, Path(spec.image), spec.uuid, spec.epoch)


def _board(root: Path, spec: Spec) -> None:
    (root / "etc/sudoers.d/fedless").chmod(0o440)
    (root / "etc/machine-id").write_text("")  # each board makes its own
    (root / "etc/hostname").write_text("fedless\n")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (root / "usr/lib/clock-epoch").write_text("")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    _enable(root, ssh=bool(spec.ssh_key))
    if spec.ssh_key:
        keys = root / "etc/ssh/authorized_keys"
        keys.mkdir(exist_ok=True)
        (keys / "admin").write_text(spec.ssh_key + "\n")
    settings = root / "usr/share/fedless/edge.toml"
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(spec.edge_toml)
    store = root / "srv/fedless"
    store.mkdir(parents=True, exist_ok=True)
    for path in spec.data:
        shutil.copy(path, store)


def _enable(root: Path, *, ssh: bool) -> None:
    units = root / _UNITS
    wanted = _ENABLED | (
        {"multi-user.target.wants": (*_ENABLED["multi-user.target.wants"], "ssh.service")} if ssh else {}
    )
    for link in (*units.glob("*.wants/ssh.*"), units / "sshd.service"):
        link.unlink(missing_ok=True)
    for target, names in wanted.items():
        (units / target).mkdir(parents=True, exist_ok=True)
        for name in names:
            link = units / target / name
            link.unlink(missing_ok=True)
            link.symlink_to(f"/usr/lib/systemd/system/{name}")
    for name in _MASKED:
        for link in units.glob(f"*.wants/{name}"):
            link.unlink()
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")


def _boot_files(root: Path, boot: Path) -> None:
    """Firmware, kernel, initrd and device trees for the boot partition; the folder stays as a mount point."""
    shutil.copytree(root / FIRMWARE, boot)
    for entry in (root / FIRMWARE).iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for tree in (
        *root.glob("usr/lib/modules/*/dtb/broadcom/*.dtb"),
        *root.glob("usr/lib/linux-image-*/broadcom/*.dtb"),
    ):
        shutil.copy(tree, boot)
    for path in runtime.walk(boot):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _times(root: Path, epoch: int, newest: int) -> None:
    """What is younger than `newest` was made by this build: it gets the build's moment."""
    for path in runtime.walk(root):
        changed = int(path.lstat().st_mtime)
        moment = epoch if changed > newest else changed
        os.utime(path, (moment, moment), follow_symlinks=False)
    os.utime(root / "usr/lib/clock-epoch", (epoch, epoch))


def ext4(root: Path, image: Path, uuid: str, epoch: int) -> None:
    """The folder as an ext4 file system with a little room in it."""
    found = [path.lstat() for path in runtime.walk(root)]
    used = sum(entry.st_blocks * 512 + 512 for entry in found)
    size_mb = used // MB * 112 // 100 + 96
    image.unlink(missing_ok=True)
    run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "rootfs", "-U", uuid, "-m", "1", "-N", str(len(found) * 2),
         "-E", f"hash_seed={uuid},lazy_itable_init=0,lazy_journal_init=0", "-d", str(root), str(image), f"{size_mb}M"],
        epoch=epoch,
    )  # fmt: skip
    told = run(["dumpe2fs", str(image)])
    total = int(_COUNT.findall(told)[0])
    used_inodes = sorted(set(range(1, total + 1)) - _ranges(_FREE.findall(told), total))
    # Reading a folder changes its time of access, and nothing can set a time of change.
    script = "".join(
        f"set_inode_field <{inode}> {field} @{epoch}\n"
        for inode in used_inodes
        for field in ("atime", "ctime")
    )
    run(["debugfs", "-w", "-f", "/dev/stdin", str(image)], given=script, epoch=epoch)


def _ranges(lines: list[str], total: int) -> set[int]:
    """Numbers of `1-3, 7` and alike."""
    found: set[int] = set()
    for part in ", ".join(lines).split(", "):
        low, _, high = part.strip().partition("-")
        if low:
            found.update(range(int(low), min(int(high or low), total) + 1))
    return found


if __name__ == "__main__":
    sys.exit(main())
