"""The filter's jumps, on an interpreter of its own: what is refused, and that nothing else is."""

from __future__ import annotations

import errno
import struct

import pytest

from edge_runtime import seccomp

ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
X86, ARM = "x86_64", "aarch64"
PID = 4711


def verdict(
    machine: str, number: int, *arguments: int, network: bool = False, architecture: int | None = None
) -> int:
    """Run the program as the kernel would on one system call."""
    if architecture is None:
        architecture = seccomp.ARCHITECTURES[machine][0]
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    code = seccomp.program(machine, PID, network=network)
    steps = [struct.unpack_from("=HBBI", code, at) for at in range(0, len(code), 8)]
    at = accumulator = 0
    while True:
        kind, yes, no, value = steps[at]
        at += 1
        if kind == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif kind == 0x54:
            accumulator &= value
        elif kind == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
            at += yes if holds[kind] else no


@pytest.mark.parametrize("machine", [X86, ARM])
def test_listed_calls_are_refused_and_all_others_pass(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][1]
    refused = {numbers[column] for numbers in (seccomp.CALLS | seccomp.NETWORK_CALLS).values()}
    judged = {seccomp._CLONE, seccomp._CLONE3, seccomp._MMAP, seccomp._PRLIMIT, seccomp._TGKILL}
    special = {numbers[column] for numbers in judged}
    for number in range(600):
        if number not in special:
            expected = ERROR | errno.EPERM if number in refused else ALLOW
            assert verdict(machine, number) == expected, number


@pytest.mark.parametrize("machine", [X86, ARM])
def test_threads_may_start_and_processes_may_not(machine: str) -> None:
    column = seccomp.ARCHITECTURES[machine][1]
    thread, process = 0x3D0F00, 0x4111
    assert verdict(machine, seccomp._CLONE[column], thread) == ALLOW
    assert verdict(machine, seccomp._CLONE[column], process) == ERROR | errno.EPERM
    assert verdict(machine, seccomp._CLONE3[column]) == ERROR | errno.ENOSYS


def test_signals_reach_nobody_else() -> None:
    tgkill = seccomp._TGKILL[0]
    assert verdict(X86, tgkill, PID, PID, 6) == ALLOW
    assert verdict(X86, tgkill, PID + 1, PID + 1, 9) == ERROR | errno.EPERM


def test_shared_anonymous_memory_is_refused_and_private_is_not() -> None:
    mmap, shared, private, anonymous = seccomp._MMAP[0], 0x01, 0x02, 0x20
    assert verdict(X86, mmap, 0, 4096, 3, shared | anonymous) == ERROR | errno.ENOMEM
    assert verdict(X86, mmap, 0, 4096, 3, private | anonymous) == ALLOW
    assert verdict(X86, mmap, 0, 4096, 1, shared) == ALLOW


def test_limits_may_be_read_and_not_raised() -> None:
    prlimit = seccomp._PRLIMIT[0]
    assert verdict(X86, prlimit, 0, 2, 0, 0x7FFF00001000) == ALLOW
    assert verdict(X86, prlimit, 0, 2, 0x7FFF00000000, 0) == ERROR | errno.EPERM
    assert verdict(X86, prlimit, 0, 2, 0x1000, 0) == ERROR | errno.EPERM


def test_network_is_open_only_where_declared() -> None:
    for numbers in seccomp.NETWORK_CALLS.values():
        assert verdict(X86, numbers[0], network=True) == ALLOW
        assert verdict(X86, numbers[0]) == ERROR | errno.EPERM


def test_another_architectures_numbers_end_the_process() -> None:
    assert verdict(X86, 0, architecture=0x40000003) == KILL
    assert verdict(X86, 0x40000000 | 41, network=True) == ERROR | errno.EPERM


def test_unknown_machine_has_no_filter() -> None:
    assert seccomp.program("riscv64", PID, network=False) == b""
