"""*Pure.* The system-call filter of an instance, as a classic BPF program.

Built and loaded by `confine`, in the instance, when all imports are done and before the first byte of a function's own
code runs. An instance needs no new process, no program, no socket and no shared memory; so whatever it does, it stays
one process with its threads, which one signal ends and one limit bounds. Numbers: Linux's `asm/unistd_64.h` (x86-64)
and `asm-generic/unistd.h` (arm64). Refused calls fail with an error number: a function that tries gets an exception.
"""

from __future__ import annotations

import errno
import struct

_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT = 0x15, 0x35, 0x45
_KILL, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE = 0, 4
_X32 = 0x40000000
_CLONE_THREAD = 0x00010000
_SHARED_AND_ANONYMOUS = 0x01 | 0x20

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""By `os.uname().machine`: the audit architecture, and the column of the tables below."""
NONE = -1
CALLS: dict[str, tuple[int, int]] = {
    # new programs and processes
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, NONE), "vfork": (58, NONE),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kill": (62, 129), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274), "ioprio_set": (251, 30),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # owners, modes and times of files, which Landlock leaves open
    "chmod": (90, NONE), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, NONE), "lchown": (94, NONE), "fchown": (93, 55), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, NONE), "utimes": (235, NONE),
    "futimesat": (261, NONE), "utimensat": (280, 88),
    # the kernel itself
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "syslog": (103, 116), "personality": (135, 92), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "fanotify_init": (300, 262), "capset": (126, 91),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266),
    "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
    # memory that RLIMIT_DATA does not count, and the limits themselves
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "mq_open": (240, 180), "mlock": (149, 228), "mlock2": (325, 284),
    "mlockall": (151, 230), "setrlimit": (160, 164),
}  # fmt: skip
"""Refused with EPERM: name -> number on x86-64 and on arm64."""
NETWORK_CALLS: dict[str, tuple[int, int]] = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
}  # fmt: skip
"""Refused with EPERM unless the function's manifest declares the network."""
_CLONE, _CLONE3, _MMAP, _PRLIMIT, _TGKILL = (56, 220), (435, 435), (9, 222), (302, 261), (234, 131)


def program(machine: str, pid: int, *, network: bool) -> bytes:
    """The filter for the process `pid` on `machine`, an array of `struct sock_filter`; empty for unknown machines.

    A call by another architecture's numbers ends the process.
    """
    known = ARCHITECTURES.get(machine)
    if known is None:
        return b""
    architecture, column = known
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_IF_EQUAL, architecture, yes=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        code += _refuse(_IF_AT_LEAST, _X32, errno.EPERM)
    refused = CALLS if network else CALLS | NETWORK_CALLS
    for numbers in refused.values():
        if numbers[column] != NONE:
            code += _refuse(_IF_EQUAL, numbers[column], errno.EPERM)
    code += _refuse(
        _IF_EQUAL, _CLONE3[column], errno.ENOSYS
    )  # its flags lie in memory; libc then calls clone
    code += _when(_CLONE[column], _unless(_IF_ANY_BIT, 0, _CLONE_THREAD))
    code += _when(_TGKILL[column], _unless(_IF_EQUAL, 0, pid))
    code += _when(_MMAP[column], _shared_memory())
    code += _when(_PRLIMIT[column], _new_limit())
    code.append(_step(_RETURN, _ALLOW))
    return b"".join(code)


def _step(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, yes, no, value)


def _refuse(test: int, value: int, number: int) -> list[bytes]:
    """The accumulator passes the test: that error."""
    return [_step(test, value, no=1), _step(_RETURN, _ERROR | number)]


def _when(number: int, body: list[bytes]) -> list[bytes]:
    """Only for this call; a body always returns."""
    return [_step(_IF_EQUAL, number, no=len(body)), *body]


def _argument(index: int, *, high: bool = False) -> bytes:
    """Load half of an argument; both machines are little-endian."""
    return _step(_LOAD, 16 + 8 * index + (4 if high else 0))


def _unless(test: int, index: int, value: int) -> list[bytes]:
    """EPERM unless the argument passes the test."""
    return [
        _argument(index),
        _step(test, value, yes=1),
        _step(_RETURN, _ERROR | errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]


def _shared_memory() -> list[bytes]:
    """Anonymous shared mappings are not private memory, so no limit would count them."""
    return [
        _argument(3),
        _step(_AND, _SHARED_AND_ANONYMOUS),
        *_refuse(_IF_EQUAL, _SHARED_AND_ANONYMOUS, errno.ENOMEM),
        _step(_RETURN, _ALLOW),
    ]


def _new_limit() -> list[bytes]:
    """Limits may be read (no new limit is given), not set."""
    return [
        _argument(2),
        _step(_IF_EQUAL, 0, no=2),
        _argument(2, high=True),
        _step(_IF_EQUAL, 0, yes=1),
        _step(_RETURN, _ERROR | errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]
