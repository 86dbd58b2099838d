"""Debian for a board as one tarball, made by mmdebstrap and kept by what it is made of.

The dear part of an image: its maintainer scripts run emulated. It holds nothing of ours and nothing secret, so that it
serves every image until the list of packages changes or `fresh` asks for newer ones. The mirror is the one that this
machine's apt is configured with, or the caller's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from fedless.image.run import demand, run
from fedless.protocol.errors import Code, LocalError

BINFMT = Path("/proc/sys/fs/binfmt_misc")
TIMEOUT_S = 6 * 3600.0
SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Recipe:
    """What the base is made of: `packages.json` of `files`, read by `recipe`."""

    suite: str
    include: tuple[str, ...]
    leave_out: tuple[str, ...]
    keep: tuple[str, ...]

    @property
    def digest(self) -> str:
        """16 hex digits that change when the recipe does."""
        text = json.dumps([self.suite, self.include, self.leave_out, self.keep])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipe() -> Recipe:
    """The image's own."""
    values = json.loads(resources.files("fedless.image").joinpath("files/packages.json").read_text("utf-8"))
    return Recipe(SUITE, tuple(values["include"]), tuple(values["leave_out"]), tuple(values["keep"]))


def cache_folder() -> Path:
    """Where bases are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedless" / "image"


def mirrors() -> tuple[str, str]:
    """The archive and its security archive that this machine's apt is configured with.

    Raises `LocalError` CONFIG_INVALID where it has no Debian archive.
    """
    form = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    lines = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]).splitlines()
    found = {label: uri for origin, label, uri in (line.split("|") for line in lines) if origin == "Debian"}
    if "Debian" not in found:
        raise LocalError(
            Code.CONFIG_INVALID, "This machine's apt has no Debian archive.",
            fix="Run `apt-get update`, or name one: --mirror URL.",
        )  # fmt: skip
    return found["Debian"], found.get("Debian-Security", "")


def sources(suite: str, archive: str, security: str) -> str:
    """apt's list: the suite with its updates, newer kernels from backports (a Pi 5's network needs one)."""
    signed = f"[signed-by={KEYRING}]" if Path(KEYRING).exists() else ""
    parts = "main non-free-firmware"
    lines = [
        f"deb {signed} {archive} {name} {parts}" for name in (suite, f"{suite}-updates", f"{suite}-backports")
    ]
    if security:
        lines.append(f"deb {signed} {security} {suite}-security {parts}")
    return "\n".join(lines) + "\n"


def find(cache: Path, wanted: Recipe) -> Path | None:
    """A base that was made before."""
    path = cache / f"base-{wanted.digest}.tar"
    return path if path.is_file() else None


def make(
    cache: Path, wanted: Recipe, mirror: tuple[str, str], epoch: int, observe: Callable[[str], None]
) -> Path:
    """Make it: hours at worst, mostly of emulated scripts. Raises `LocalError` with what is missing or went wrong."""
    demand("mmdebstrap", "arch-test", "apt-get")
    _demand_emulation()
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / f"base-{wanted.digest}.tar"
    building, log = target.with_suffix(".new"), target.with_suffix(".log")
    log.unlink(missing_ok=True)
    observe(f"making Debian {wanted.suite} for arm64: half an hour to hours; {log} tells how far it is")
    try:
        run(
            command(wanted, building),
            given=sources(wanted.suite, *mirror),
            epoch=epoch,
            timeout_s=TIMEOUT_S,
            log=log,
        )
        building.replace(target)
    except LocalError as error:
        raise LocalError(error.code, error.detail, fix=_advice(error.detail)) from None
    finally:
        building.unlink(missing_ok=True)
    return target


def command(wanted: Recipe, target: Path) -> list[str]:
    """mmdebstrap's command line; apt's list comes on standard input."""
    return [
        "mmdebstrap", "--arch=arm64", "--variant=apt", "--format=tar",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in wanted.leave_out),
        *(f"--dpkgopt=path-include={pattern}" for pattern in wanted.keep),
        f"--include={','.join(wanted.include)}",
        '--setup-hook=mkdir -p "$1/boot/firmware"',
        '--customize-hook=rm -f "$1"/etc/ssh/ssh_host_*',
        "", str(target), "-",
    ]  # fmt: skip


def _demand_emulation() -> None:
    if os.uname().machine == "aarch64" or (BINFMT / "qemu-aarch64").exists():
        return
    raise LocalError(
        Code.NOT_INSTALLED, "This machine cannot run arm64 programs: Debian's set-up scripts have to be emulated.",
        fix="As root: apt-get install qemu-user-static; without systemd also: mount -t binfmt_misc binfmt_misc "
        f"{BINFMT} && cat /usr/lib/binfmt.d/qemu-aarch64.conf > {BINFMT}/register",
    )  # fmt: skip


def _advice(said: str) -> str:
    if os.geteuid() != 0 and ("subuid" in said or "unshare" in said or "newuidmap" in said):
        user = os.environ.get("USER", "YOU")
        return (
            "Without root it needs a range of user ids: as root, `usermod --add-subuids 100000-165535 "
            f"--add-subgids 100000-165535 {user}` and `apt-get install uidmap`; or run it as root."
        )
    return ""
