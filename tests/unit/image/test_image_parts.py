"""The cheap parts of an image on this machine: the same bytes twice, and what a board needs in them.

Debian's base is half an hour of emulation: here a tarball of a few files stands in for it, and a folder for the wheels.
`make test-image` boots the whole.
"""

from __future__ import annotations

import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from edge_runtime.firstboot.settings import BoardSettings
from fedless.image import base, build, deb, disk, runtime
from fedless.image.options import wanted
from fedless.image.run import SBIN, demand, run
from fedless.protocol.claim import Claim, secret_text
from fedless.protocol.errors import Code, LocalError

EPOCH = 1_795_000_000
CLAIM = Claim("10.0.2.2:7444", "a" * 26, secret_text(bytes(16))).text
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBmTMJXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX me@here"
MISSING = [tool for tool in build.TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:{SBIN}") is None]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")
FILES = {
    "boot/vmlinuz-7": b"kernel", "boot/firmware/vmlinuz-7": b"kernel", "boot/firmware/initrd.img-7": b"initrd",
    "boot/firmware/start4.elf": b"firmware", "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "etc/machine-id": b"0123\n", "etc/ssh/ssh_host_ed25519_key": b"everybody's", "usr/bin/su": b"su",
    "usr/lib/modules/7/dtb/broadcom/bcm2711-rpi-4-b.dtb": b"tree",
}  # fmt: skip


def debian(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        folders = {str(parent) for name in FILES for parent in Path(name).parents} - {"."}
        for name in [*sorted(folders | {"etc/systemd/system", "usr/share", "srv", "var/lib"}), *FILES]:
            entry = tarfile.TarInfo(f"./{name}")
            entry.mtime = 1_700_000_000
            entry.mode = 0o4755 if name == "usr/bin/su" else 0o755 if name not in FILES else 0o644
            entry.type = tarfile.REGTYPE if name in FILES else tarfile.DIRTYPE
            entry.size = len(FILES.get(name, b""))
            tar.addfile(entry, io.BytesIO(FILES.get(name, b"")))
    return path


def wheels(cache: Path, architecture: str = "aarch64") -> None:
    """A folder where `runtime` looks for unpacked wheels."""
    package = runtime.kept(architecture, cache) / "numpy"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """An image, its unpacked root, and the progress; built twice."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "cache").mkdir()
    wheels(folder / "cache")
    tarball = debian(folder / "base.tar")
    lines: list[str] = []
    (folder / "x.npz").write_bytes(b"data")
    for name in ("one", "two"):
        place = build.Place(
            folder / f"{name}.img", folder / "cache", EPOCH, tarball, data=(folder / "x.npz",)
        )  # fmt: skip
        build.build(wanted(CLAIM, "greenhouse-7", None, KEY, "", ("x.npz",)), place, lines.append)
        os.utime(folder / "x.npz", (EPOCH - 5 if name == "one" else EPOCH + 5,) * 2)
    return folder / "one.img", folder / "two.img", lines


def inside(image: Path, command: str, tmp_path: Path) -> str:
    """debugfs on the second partition."""
    start = (disk.START_MB + disk.BOOT_MB) * disk.MB
    part = tmp_path / "part.ext4"
    if not part.exists():
        with image.open("rb") as file, part.open("wb") as target:
            file.seek(start)
            shutil.copyfileobj(file, target)
    return run(["debugfs", "-R", command, str(part)])


@needs_tools
def test_the_same_inputs_give_the_same_bytes(image: tuple[Path, Path, list[str]]) -> None:
    one, two, lines = image
    assert build.digest(one) == build.digest(two)
    assert [line for line in lines if line.startswith("root file system: ")], "progress is told"


@needs_tools
def test_the_partitions_are_what_the_firmware_expects(image: tuple[Path, Path, list[str]]) -> None:
    table = json.loads(run(["sfdisk", "--json", str(image[0])]))["partitiontable"]
    assert table["label"] == "dos"
    boot, root = table["partitions"]
    assert (boot["type"], boot["start"], root["type"]) == ("c", 8192, "83")
    assert boot["start"] + boot["size"] == root["start"]
    listing = run(["mdir", "-b", "-i", f"{image[0]}@@{disk.START_MB}M", "::"])
    assert {"config.txt", "cmdline.txt", "fedless.toml", "fedless-claim.txt", "start4.elf", "vmlinuz-7",
            "bcm2711-rpi-4-b.dtb"} <= {line.removeprefix("::/") for line in listing.split()}  # fmt: skip


@needs_tools
def test_the_root_file_system_is_sound_and_has_no_ones_keys(
    image: tuple[Path, Path, list[str]], tmp_path: Path
) -> None:
    assert inside(image[0], "cat /etc/machine-id", tmp_path) == "", "each board makes its own"
    assert run(["e2fsck", "-f", "-n", str(tmp_path / "part.ext4")])
    assert "ssh_host" not in inside(image[0], "ls -p /etc/ssh", tmp_path)
    assert "/0/0/" in inside(image[0], "ls -p /", tmp_path), "everything is root's"
    assert "Mode:  04755" in inside(image[0], "stat /usr/bin/su", tmp_path)
    assert "Mode:  0440" in inside(image[0], "stat /etc/sudoers.d/fedless", tmp_path)
    assert KEY in inside(image[0], "cat /etc/ssh/authorized_keys/admin", tmp_path)
    assert "x.npz" in inside(image[0], "ls /srv/fedless", tmp_path)
    assert inside(image[0], "cat /boot/firmware/start4.elf", tmp_path) == "", (
        "the boot partition is mounted there"
    )
    units = inside(image[0], "ls -p /etc/systemd/system/multi-user.target.wants", tmp_path)
    assert all(name in units for name in ("fedless-firstboot.service", "fedless-edge.service", "ssh.service"))
    epoch = inside(image[0], "stat /usr/lib/clock-epoch", tmp_path)
    assert f"mtime: 0x{EPOCH:08x}" in epoch, "the board's clock is never before its image"


@needs_tools
def test_an_image_holds_no_claim_outside_its_boot_partition(image: tuple[Path, Path, list[str]]) -> None:
    data = image[0].read_bytes()
    start = (disk.START_MB + disk.BOOT_MB) * disk.MB
    assert CLAIM.encode() in data[:start]
    assert CLAIM.encode() not in data[start:]


@needs_tools
def test_xz_gives_the_card_back(image: tuple[Path, Path, list[str]], tmp_path: Path) -> None:
    small = tmp_path / "small.img"
    small.write_bytes(os.urandom(1 << 16) + b"\0" * (20 << 20))
    disk.compress(small, tmp_path / "small.img.xz", 0)
    assert lzma.decompress((tmp_path / "small.img.xz").read_bytes()) == small.read_bytes()


def test_every_file_that_is_copied_is_in_the_package() -> None:
    root = Path(runtime.__file__).parent / "files"
    units = {path.name for path in root.rglob("*.service")} | {path.name for path in root.rglob("*.path")}
    assert {"fedless-firstboot.service", "fedless-show.path", "fedless-join.service"} <= units
    journald = (root / "board/etc/systemd/journald.conf.d/fedless.conf").read_text()
    assert "Storage=volatile" in journald, "an idle board writes nothing to its card"
    assert "RuntimeWatchdogSec" in (root / "board/etc/systemd/system.conf.d/fedless.conf").read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_reads_the_boards_units(tmp_path: Path) -> None:
    root = Path(runtime.__file__).parent / "files"
    units = []
    for path in (*root.rglob("fedless-*.service"), *root.rglob("*.path")):
        text = path.read_text().replace("/opt/fedless/bin/fedless-edge", "/bin/true")
        units.append(tmp_path / path.name)
        units[-1].write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, units)], capture_output=True, text=True, check=False
    )
    assert "Unknown" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_the_base_is_made_of_the_packages_that_the_list_names() -> None:
    found = base.recipe()
    command = base.command(found, Path("x.tar"))
    assert "linux-image-arm64/trixie-backports" in found.include, "a Pi 5's network needs a newer kernel"
    assert any(word.startswith("--customize-hook=rm -f") and "ssh_host" in word for word in command)
    text = base.sources("trixie", "http://mirror.test/debian", "http://mirror.test/security")
    assert text.count("deb ") == 4
    assert base.Recipe("trixie", ("a",), (), ()).digest != base.Recipe("trixie", ("b",), (), ()).digest


def test_a_missing_tool_is_named_with_its_package() -> None:
    with pytest.raises(LocalError) as caught:
        demand("mke2fs-that-is-not-there", "no-such-tool")
    assert caught.value.code is Code.NOT_INSTALLED
    assert "no-such-tool" in str(caught.value)


def test_a_base_without_a_kernel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    with pytest.raises(LocalError) as caught:
        build._boot(tmp_path / "boot", wanted("", "", None, ""))
    assert caught.value.code is Code.STATE_CORRUPT


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
@pytest.mark.parametrize(("debian_name", "machine"), deb.MACHINES.items())
def test_the_package_is_roots_and_the_same_twice(tmp_path: Path, debian_name: str, machine: str) -> None:
    (tmp_path / "cache").mkdir()
    wheels(tmp_path / "cache", machine)
    made = [deb.build(debian_name, tmp_path / out, tmp_path / "cache", EPOCH, lambda _: None) for out in "ab"]
    assert build.digest(made[0].path) == build.digest(made[1].path)
    listing = run(["dpkg-deb", "--contents", str(made[0].path)]).splitlines()
    assert all(" root/root " in line for line in listing)
    names = {line.split()[5] for line in listing}
    assert {"./opt/fedless/bin/fedless-edge", "./usr/bin/fedless-edge",
            "./usr/lib/systemd/system/fedless-edge.service"} <= names  # fmt: skip
    assert not any("aggregator" in name for name in names)
    control = run(["dpkg-deb", "--info", str(made[0].path)])
    assert f"Architecture: {debian_name}" in control
    assert BoardSettings() == wanted("", "", None, "").settings
