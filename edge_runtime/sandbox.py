"""The namespaces around an instance or a fork server: bubblewrap's command line, and whether it works here.

An empty, read-only root with what Python needs, the function's own files and its declared data, all read-only; a
private `/tmp` of bounded size; no home, no other process, no network unless declared. The process inside then locks
itself in further (`confine`). Where bubblewrap is missing or user namespaces are forbidden, `confine` alone remains:
`doctor` says so, and which of its mechanisms the kernel has.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.disk import write_whole

PROGRAM = "bwrap"
NAMESPACES, SECCOMP, LANDLOCK = "namespaces", "seccomp", "landlock"
SCRATCH = "/tmp"  # noqa: S108 - the sandbox's own, an empty tmpfs
PROBE_FILE = "sandbox.json"
_PACKAGES = ("site-packages", "dist-packages")
_NOBODY = "65534"
_PROBE_S = 10.0


@dataclass(frozen=True)
class Space:
    """What is visible inside: `read` paths (read-only, at the same place), `scratch_mb` of `/tmp`, the network."""

    read: tuple[str, ...] = ()
    scratch_mb: int = 16
    network: bool = False


@dataclass(frozen=True)
class Level:
    """Which mechanisms hold here. `why_not` says what bubblewrap answered if it does not work."""

    mechanisms: tuple[str, ...]
    why_not: str = ""

    @property
    def namespaces(self) -> bool:
        """Whether instances run inside bubblewrap."""
        return NAMESPACES in self.mechanisms

    @property
    def full(self) -> bool:
        """Whether a function can neither read this device's files nor reach the network: namespaces and the filter."""
        return self.namespaces and SECCOMP in self.mechanisms


def command(inner: Sequence[str], space: Space, *, ends_with_parent: bool = True) -> list[str]:
    """`inner` inside the namespaces. Open descriptors and the environment go through.

    `ends_with_parent` kills all of it when the *thread* that started it ends.
    """
    arguments = [
        PROGRAM,
        "--unshare-user",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
    ]
    arguments += [] if space.network else ["--unshare-net"]
    arguments += ["--uid", _NOBODY, "--gid", _NOBODY, "--hostname", "function", "--chdir", "/"]
    arguments += ["--die-with-parent"] if ends_with_parent else []
    for folder in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        arguments += _system_folder(Path(folder))
    arguments += ["--size", str(max(space.scratch_mb, 1) << 20), "--tmpfs", SCRATCH]  # a path may lie beneath
    visible = (*runtime_paths(), *system_paths(network=space.network), *space.read)
    for path in _outermost(visible):
        arguments += [
            "--ro-bind-try",
            path,
            path,
        ]  # data that is missing is told by the instance, with its code
    arguments += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", "--remount-ro", "/"]
    return [*arguments, "--", *inner]


def confinement(space: Space, memory_mb: int, cpu_s: int, level: Level) -> dict[str, object]:
    """What the process inside does to itself: the fields of `confine.Confinement`.

    Without a `/tmp` of bounded size it may write nothing at all.
    """
    inside = level.namespaces
    return {
        "memory_mb": memory_mb,
        "cpu_s": cpu_s,
        "file_mb": space.scratch_mb if inside else 0,
        "network": space.network,
        "read": [*runtime_paths(), *system_paths(network=space.network), *space.read],
        "write": [SCRATCH] if inside else [],
    }


def runtime_paths() -> tuple[str, ...]:
    """What Python, numpy and the runtime are read from: programs and libraries, no one's data."""
    package = Path(__file__).parent
    own = [package, package.parent / "fedless"]
    environment = Path(sys.executable).parent.parent
    prefixes = {Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.base_exec_prefix)}
    if (environment / "pyvenv.cfg").exists():  # without `site`, sys.prefix does not tell
        prefixes.add(environment)
    named = {Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    # Of sys.path only folders of packages: it may begin with whatever folder someone happened to start us in.
    packages = {Path(entry) for entry in sys.path if os.path.basename(entry) in _PACKAGES}  # noqa: PTH119
    extra = {path for path in named - {package.parent} | packages if path.exists()}
    wanted = [Path("/usr"), *prefixes, *own, *extra]
    return tuple(
        _outermost([form for path in wanted for form in (str(path.absolute()), str(path.resolve()))])
    )


def system_paths(*, network: bool) -> tuple[str, ...]:
    """Further files that libraries read, where they exist."""
    always = ("/etc/ld.so.cache", "/etc/localtime", "/sys/devices/system/cpu")
    names = (
        "/etc/resolv.conf",
        "/etc/hosts",
        "/etc/nsswitch.conf",
        "/etc/ssl",
        "/etc/ca-certificates",
        "/etc/gai.conf",
    )
    return tuple(path for path in (always + names if network else always) if os.path.exists(path))  # noqa: PTH110


def probe() -> Level:
    """Try it: about 30 ms."""
    from edge_runtime import confine  # noqa: PLC0415  (ctypes, which a start does not need)

    own = confine.available()
    if shutil.which(PROGRAM) is None:
        return Level(own, f"{PROGRAM} is not installed.")
    trial = command(["/usr/bin/env", "true"], Space())
    try:
        done = subprocess.run(
            trial, capture_output=True, timeout=_PROBE_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Level(own, f"{PROGRAM} does not run: {type(error).__name__}.")
    if done.returncode != 0:
        return Level(
            own, done.stderr.decode(errors="replace").strip()[-300:] or f"exit status {done.returncode}"
        )
    return Level((NAMESPACES, *own))


def level(state: Path) -> Level:
    """What holds on this device since it was started: probed once per boot, remembered in the state directory."""
    boot = _boot()
    path = state / PROBE_FILE
    try:
        values = json.loads(path.read_bytes())
        if values["boot"] == boot and values["program"] == shutil.which(PROGRAM):
            return Level(tuple(values["mechanisms"]), values["why_not"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not probed since the start, or by another version
    found = probe()
    values = {
        "boot": boot,
        "program": shutil.which(PROGRAM),
        "mechanisms": list(found.mechanisms),
        "why_not": found.why_not,
    }
    write_whole(path, json.dumps(values).encode(), sync=False)
    return found


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _system_folder(folder: Path) -> list[str]:
    """`/lib` is a link into `/usr` on merged systems, a folder of its own elsewhere."""
    if folder.is_symlink():
        return ["--symlink", str(folder.readlink()), str(folder)]
    return ["--ro-bind", str(folder), str(folder)] if folder.is_dir() else []


def _outermost(paths: Sequence[str]) -> list[str]:
    """Without those that lie in another one, which would be mounted twice."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(Path(path).is_relative_to(other) for other in kept):
            kept.append(path)
    return kept
