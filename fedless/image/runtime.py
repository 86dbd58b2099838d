"""What a board runs, as a tree below `/`: our code, pinned wheels for its processor, the command, the agent's unit.

The same tree is in the image and in the Debian package. Python is the system's own (Debian 13 has 3.13).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import edge_runtime
import fedless
from cloud_adapters import wheels
from edge_runtime import service

HOME = "opt/fedless"
PACKAGES = f"{HOME}/lib/site-packages"
PYTHON = "3.13"
GLIBC = 41
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyi", "*.in", "tests", "*.a", "*.pxd")
_COMMAND = f"""\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/{PACKAGES}")
from edge_runtime.cli import main

sys.exit(main())
"""


def lock() -> Path:
    """The pins of `fedless[edge]` with their hashes, for Python 3.13 on 64-bit Linux."""
    return Path(str(resources.files("fedless.image").joinpath("requirements.txt")))


def make(tree: Path, architecture: str, cache: Path) -> None:
    """Fill `tree` for `architecture` (aarch64 or x86_64). Wheels are kept unpacked in `cache` by their pins."""
    packages = tree / PACKAGES
    shutil.copytree(_wheels(architecture, cache), packages, symlinks=True)
    code(packages)
    command = tree / HOME / "bin" / "fedless-edge"
    command.parent.mkdir(parents=True)
    command.write_text(_COMMAND)
    command.chmod(0o755)
    link = tree / "usr" / "bin" / "fedless-edge"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"/{HOME}/bin/fedless-edge")
    files("device", tree)
    units = tree / "usr" / "lib" / "systemd" / "system"
    (units / "fedless-edge.service").write_text(service.unit(f"/{HOME}/bin/fedless-edge"))


def code(packages: Path) -> None:
    """Our own packages, as far as a device needs them."""
    ours = Path(fedless.__file__).parent
    (packages / "fedless").mkdir(parents=True)
    shutil.copy(ours / "__init__.py", packages / "fedless")
    for name in ("protocol", "v1"):
        shutil.copytree(ours / name, packages / "fedless" / name, ignore=_LEFT_OUT)
    shutil.copytree(Path(edge_runtime.__file__).parent, packages / "edge_runtime", ignore=_LEFT_OUT)


def files(name: str, tree: Path) -> None:
    """Copy a folder of `files` over the tree."""
    shutil.copytree(
        Path(str(resources.files("fedless.image").joinpath("files"))) / name, tree, dirs_exist_ok=True
    )


def settle(tree: Path, epoch: int) -> None:
    """Give everything modes and times that depend on the content alone: the owner writes, time is `epoch`."""
    for path in walk(tree):
        found = path.lstat()
        if not path.is_symlink():
            runs = path.is_dir() or (bool(found.st_mode & 0o100) and ".so" not in path.suffixes)
            path.chmod(0o755 if runs else 0o644)
        os.utime(path, (epoch, epoch), follow_symlinks=False)


def walk(tree: Path) -> Iterator[Path]:
    """Everything below `tree` and the tree itself, folders after what they hold."""
    for folder, folders, names in os.walk(tree, topdown=False):
        for name in sorted(names + [name for name in folders if (Path(folder) / name).is_symlink()]):
            yield Path(folder) / name
        yield Path(folder)


def kept(architecture: str, cache: Path) -> Path:
    """The folder of `cache` with the unpacked wheels of the present pins."""
    text = lock().read_bytes() + repr(_target(architecture)).encode()
    return cache / f"wheels-{architecture}-{hashlib.sha256(text).hexdigest()[:16]}"


def _wheels(architecture: str, cache: Path) -> Path:
    folder = kept(architecture, cache)
    if not folder.is_dir():
        building = folder.with_suffix(".new")
        shutil.rmtree(building, ignore_errors=True)
        wheels.install(building, _target(architecture), wheels.pinned(lock()))
        building.rename(folder)
    return folder


def _target(architecture: str) -> wheels.Target:
    return wheels.Target(PYTHON, architecture, GLIBC)
