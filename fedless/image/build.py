"""An image from its parts, with progress: base, runtime, root file system, boot partition, card, xz.

The same base, pins, code, options and moment give the same bytes; `tests/real/test_image.py` builds twice. Without root
it runs under fakeroot. Called by `fedless image build`.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fedless.image import base, boot, disk, rootfs, runtime
from fedless.image.options import Wanted
from fedless.image.run import demand, run
from fedless.protocol.errors import Code, LocalError

ARCHITECTURE = "aarch64"
TOOLS = ("tar", "mke2fs", "dumpe2fs", "debugfs", "mkfs.vfat", "mcopy", "sfdisk", "xz")
_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


@dataclass(frozen=True)
class Place:
    """Where to build, and from what. `epoch`: the build's moment, Unix seconds, which is the board's earliest time."""

    out: Path
    cache: Path
    epoch: int
    base: Path | None = None
    mirror: tuple[str, str] | None = None
    fresh: bool = False
    data: tuple[Path, ...] = ()
    preset: int = 1


@dataclass
class Built:
    """What was made. `seconds` by part, in their order; sizes in bytes."""

    path: Path
    card_bytes: int = 0
    file_bytes: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


def build(wanted: Wanted, place: Place, observe: Callable[[str], None]) -> Built:
    """Make the image at `place.out`; `.xz` at its end compresses it. Raises `LocalError`."""
    demand(*TOOLS, *(() if os.geteuid() == 0 else ("fakeroot",)))
    if place.out.is_dir() or not place.out.absolute().parent.is_dir():
        raise LocalError(
            Code.CONFIG_INVALID, f"{place.out} cannot be written: not a file in a folder that exists."
        )
    built, watch = Built(place.out), _Watch(observe)
    found = place.base or (None if place.fresh else base.find(place.cache, base.recipe()))
    if found is None:
        with watch.part("base", built):
            found = base.make(
                place.cache, base.recipe(), place.mirror or base.mirrors(), place.epoch, observe
            )
    with tempfile.TemporaryDirectory(prefix=".fedless-image-", dir=place.out.absolute().parent) as folder:
        _make(Path(folder), found, wanted, place, built, watch)
    built.file_bytes = place.out.stat().st_size
    return built


def _make(work: Path, found: Path, wanted: Wanted, place: Place, built: Built, watch: _Watch) -> None:
    tree, root, card = work / "tree", work / "root.ext4", work / "card.img"
    with watch.part("runtime", built):
        place.cache.mkdir(parents=True, exist_ok=True)
        runtime.make(tree, ARCHITECTURE, place.cache)
        runtime.files("board", tree)
        runtime.settle(tree, place.epoch)
    identity = uuid.uuid5(_NAMESPACE, f"fedless image {place.epoch}")
    with watch.part("root file system", built):
        spec = rootfs.Spec(
            str(found), str(tree), str(work), str(root), place.epoch, str(identity), wanted.ssh_key, wanted.edge_toml,
            tuple(str(path.absolute()) for path in place.data),
        )  # fmt: skip
        spec.write(work / "spec.json")
        wrapper = [] if os.geteuid() == 0 else ["fakeroot", "--"]
        run([*wrapper, sys.executable, "-m", "fedless.image.rootfs", str(work / "spec.json")])
    with watch.part("boot partition", built):
        _boot(work / "boot", wanted)
        disk.fat(work / "boot", work / "boot.vfat", place.epoch)
    with watch.part("card", built):
        built.card_bytes = disk.assemble(work / "boot.vfat", root, card, place.epoch & 0xFFFFFFFF)
        built.digests = {name: digest(path) for name, path in (("boot", work / "boot.vfat"), ("root", root))}
    if place.out.suffix == ".xz":
        with watch.part("xz", built):
            disk.compress(card, place.out, place.preset)
    else:
        card.replace(place.out)


def _boot(folder: Path, wanted: Wanted) -> None:
    names = sorted(path.name for path in folder.iterdir())
    kernels, initrds = (
        [name for name in names if name.startswith(start)] for start in ("vmlinuz-", "initrd.img-")
    )
    if not kernels or not initrds:
        raise LocalError(
            Code.STATE_CORRUPT,
            "The base has no kernel for the boot partition.",
            fix="Make a new one: --fresh.",
        )
    for name, text in boot.texts(wanted, kernels[-1], initrds[-1]).items():
        (folder / name).write_text(text, encoding="utf-8")


def digest(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Watch:
    """Tells when a part begins and how long it took."""

    def __init__(self, observe: Callable[[str], None]) -> None:
        self._observe = observe
        self._name, self._built, self._began = "", Built(Path()), 0.0

    def part(self, name: str, built: Built) -> _Watch:
        self._name, self._built = name, built
        return self

    def __enter__(self) -> None:
        self._began = time.monotonic()
        self._observe(f"{self._name} ...")

    def __exit__(self, *_: object) -> None:
        took = time.monotonic() - self._began
        self._built.seconds[self._name] = round(took, 1)
        self._observe(f"{self._name}: {took:.0f} s")
