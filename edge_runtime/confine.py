"""An instance locks itself in: limits, capabilities, Landlock and the system-call filter, in this order.

Called by `trainer` and by the fork server's children after their imports and before a function's own code runs; there
is no way back. Needs no privilege and no program. `sandbox` adds namespaces around the process. Whatever the kernel
lacks is left out and told: `apply` returns what is in force, `available` is what `doctor` shows.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_runtime import seccomp

LIMITS, CAPABILITIES, LANDLOCK, SECCOMP = "limits", "capabilities", "landlock", "seccomp"
MAX_THREADS = 64
MAX_FILES = 256
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_EXECUTE, _READ_FILE, _READ_FOLDER = 1 << 0, 1 << 2, 1 << 3
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_NEWEST_FILE_RIGHTS = (1 << 16) - 1
_BIND_AND_CONNECT = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS = 0b11
_NETWORK_SINCE, _SCOPES_SINCE, _TRUNCATE_SINCE = 4, 6, 3


@dataclass(frozen=True)
class Confinement:
    """What an instance may do.

    `memory_mb` bounds private memory (0: unbounded), `cpu_s` processor time (0: unbounded), `file_mb` each file that
    it writes. `read` and `write` are the only paths that Landlock leaves open; files that are open already stay so.
    """

    memory_mb: int
    cpu_s: int
    file_mb: int = 0
    network: bool = False
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


def apply(wanted: Confinement) -> tuple[str, ...]:
    """This process: be confined from now on. Returns the mechanisms in force, of those that `available` names."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    landlocked = _landlock(libc, wanted)  # before the filter, which refuses what it needs
    _limit(wanted)
    force = [LIMITS]
    if _drop_capabilities(libc):
        force.append(CAPABILITIES)
    if landlocked:
        force.append(LANDLOCK)
    if _filter(libc, network=wanted.network):
        force.append(SECCOMP)
    return tuple(force)


def available() -> tuple[str, ...]:
    """What this kernel would put in force."""
    libc = ctypes.CDLL(None, use_errno=True)
    force = [LIMITS, CAPABILITIES]
    if _landlock_version(libc) > 0:
        force.append(LANDLOCK)
    if os.uname().machine in seccomp.ARCHITECTURES and Path("/proc/sys/kernel/seccomp").exists():
        force.append(SECCOMP)
    return tuple(force)


def _limit(wanted: Confinement) -> None:
    """Never above what is set already. Core dumps would hold the user's data."""
    if wanted.memory_mb:
        _set(resource.RLIMIT_DATA, wanted.memory_mb << 20)
    if wanted.cpu_s:
        _set(resource.RLIMIT_CPU, wanted.cpu_s)
    _set(resource.RLIMIT_FSIZE, wanted.file_mb << 20)
    _set(resource.RLIMIT_CORE, 0)
    _set(resource.RLIMIT_NOFILE, MAX_FILES)


def _set(which: int, limit: int) -> None:
    _, hard = resource.getrlimit(which)
    bound = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(which, (bound, bound))


def _drop_capabilities(libc: ctypes.CDLL) -> bool:
    """All of them, for agents that run as root; version 3 of the header, two words each of three sets."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    return bool(libc.capset(header, ctypes.create_string_buffer(24)) == 0)


def _filter(libc: ctypes.CDLL, *, network: bool) -> bool:
    code = seccomp.program(os.uname().machine, os.getpid(), network=network)
    if not code:
        return False
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) == 0)


def _landlock_version(libc: ctypes.CDLL) -> int:
    """The kernel's Landlock ABI; 0 or below: none."""
    return int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_FLAG))


def _landlock(libc: ctypes.CDLL, wanted: Confinement) -> bool:
    version = _landlock_version(libc)
    if version <= 0:
        return False
    rights = _FILE_RIGHTS.get(version, _NEWEST_FILE_RIGHTS)
    network = _BIND_AND_CONNECT if version >= _NETWORK_SINCE and not wanted.network else 0
    scopes = _ABSTRACT_SOCKETS_AND_SIGNALS if version >= _SCOPES_SINCE else 0
    size = 24 if version >= _SCOPES_SINCE else 16 if version >= _NETWORK_SINCE else 8
    attributes = ctypes.create_string_buffer(struct.pack("=QQQ", rights, network, scopes))
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        _open_paths(libc, ruleset, wanted.read, _READ_FILE | _READ_FOLDER)
        _open_paths(libc, ruleset, wanted.write, rights & ~_EXECUTE)
        _open_paths(libc, ruleset, ("/dev/null", "/dev/zero", "/dev/urandom"), _READ_FILE | _WRITE_FILE)
        _open_paths(
            libc, ruleset, ("/proc/self", "/proc/cpuinfo", "/proc/meminfo"), _READ_FILE | _READ_FOLDER
        )
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def _open_paths(libc: ctypes.CDLL, ruleset: int, paths: Iterable[str], rights: int) -> None:
    """Leave `rights` beneath each path that exists; a file takes no rights of folders."""
    for path in paths:
        try:
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            folder = os.path.isdir(path)  # noqa: PTH112
            granted = rights if folder else rights & (_READ_FILE | _WRITE_FILE | _TRUNCATE)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", granted, descriptor))
            libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        finally:
            os.close(descriptor)
