"""The Linux calls that Python 3.11 has no function for.

Each raises OSError with the call's name. ctypes is loaded on import, before any fork, so that a
forked child only calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Mapping, Sequence

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
_PR_SET_MM = 35
_PR_SET_MM_MAP = 14
PR_SET_CHILD_SUBREAPER = 36
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITIES = 64
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MNT_DETACH = 2
_MOUNT_SETATTR = 442  # the same on every machine
_MOUNT_ATTR_RDONLY = 1
_AT_FDCWD = -100

_MAP_FIELDS = (
    *("start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack"),
    *("arg_start", "arg_end", "env_start", "env_end"),
)
"""The addresses in `struct prctl_mm_map`, in its order."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sbrk.restype = ctypes.c_void_p
_libc.sbrk.argtypes = [ctypes.c_long]
_prctl = ctypes.CDLL(None, use_errno=True).prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process that takes one argument, with prctl."""
    _check(_prctl(option, value, 0, 0, 0), f"prctl({option})")


_barred = [0]
"""What this process, or the one that it was forked from, has barred: a bit each."""


def bar_capabilities(kept: int = 0) -> None:
    """Let no program that is run from here on gain a capability; without CAP_SETPCAP do nothing.

    Args:
        kept: those that it may, a bit each.
    """
    try:
        for capability in range(_CAPABILITIES):
            if not (kept | _barred[0]) >> capability & 1:
                prctl(PR_CAPBSET_DROP, capability)
                _barred[0] |= 1 << capability
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):  # EINVAL: past the kernel's last one
            raise


def drop_capabilities(kept: int = 0) -> None:
    """Give up every capability, those that a program would inherit included (capabilities(7)).

    Args:
        kept: those of root's that stay, a bit each.
    """
    with contextlib.suppress(OSError):  # a kernel before 4.3 has none that are ambient
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if kept:
        _check(_libc.capget(header, data), "capget")
    low, high = kept & 0xFFFFFFFF, kept >> 32
    # Effective, permitted and inheritable of the first 32, then of the others.
    data[:] = [data[0] & low, data[1] & low, 0, data[3] & high, data[4] & high, 0]
    _check(_libc.capset(header, data), "capset")


def filter_calls(program: bytes) -> None:
    """Let a filter decide on every system call from here on; needs no new privileges to be set.

    Args:
        program: an array of `struct sock_filter`.
    """
    code = ctypes.create_string_buffer(program, len(program))
    described = _Program(len(program) // 8, ctypes.addressof(code))
    mode, zero = ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.c_ulong(0)
    result = _libc.prctl(_PR_SET_SECCOMP, mode, ctypes.byref(described), zero, zero)
    _check(result, "prctl(PR_SET_SECCOMP)")


class _Program(ctypes.Structure):
    """`struct sock_fprog` of <linux/filter.h>."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def unshare(flags: int) -> None:
    """Leave the namespaces that `flags` name."""
    _check(_libc.unshare(flags), "unshare")


def setns(path: str, kind: int) -> None:
    """Enter the namespace that is kept at `path`."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(handle, kind), f"setns {path}")
    finally:
        os.close(handle)


def mount(
    source: str | None, target: str, flags: int, kind: str | None = None, data: str | None = None
) -> None:
    """Mount a file system of that kind; or without a kind bind, remount, or set propagation."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    result = _libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])
    _check(result, f"mount {target}")


def umount(target: str) -> None:
    """Unmount, detaching what is busy."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def set_read_only(target: str) -> None:
    """Make a mount read-only, and leave its other flags as they are (mount_setattr(2), 5.12)."""
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    path = ctypes.c_char_p(target.encode())
    here, flags = ctypes.c_long(_AT_FDCWD), ctypes.c_ulong(0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    number = ctypes.c_long(_MOUNT_SETATTR)
    result = _libc.syscall(number, here, path, flags, ctypes.byref(attributes), size)
    _check(result, f"mount_setattr {target}")


class _Map(ctypes.Structure):
    """`struct prctl_mm_map` of <linux/prctl.h>."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in _MAP_FIELDS),
        ("auxv", ctypes.c_void_p),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    ]


_title: list[ctypes.Array[ctypes.c_char]] = []
"""The memory that /proc/self/cmdline and environ show; it must stay."""


def retitle(argv: Sequence[str], env: Mapping[str, str]) -> bool:
    """Have /proc/self/cmdline and environ show these, as after an exec; whether that was possible.

    A kernel without CONFIG_CHECKPOINT_RESTORE cannot.
    """
    arguments = b"".join(os.fsencode(word) + b"\0" for word in argv)
    variables = b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items())
    buffer = ctypes.create_string_buffer(arguments + variables)
    start = ctypes.addressof(buffer)
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
        text = file.read()
    fields = text[text.rindex(b")") + 1 :].split()  # from the third on, as proc(5) counts
    names = ("start_code", "end_code", "start_stack", "start_data", "end_data", "start_brk")
    numbers = (int(fields[n - 3]) for n in (26, 27, 28, 45, 46, 47))
    values = dict(zip(names, numbers, strict=True)) | {"brk": _libc.sbrk(0)}
    values |= {"arg_start": start, "arg_end": start + len(arguments)}
    values |= {"env_start": start + len(arguments), "env_end": start + len(buffer) - 1}
    layout = _Map(**values, auxv=None, auxv_size=0, exe_fd=0xFFFFFFFF)
    size = ctypes.c_ulong(ctypes.sizeof(layout))
    zero = ctypes.c_ulong(0)
    option = ctypes.c_ulong(_PR_SET_MM_MAP)
    if _libc.prctl(_PR_SET_MM, option, ctypes.byref(layout), size, zero) != 0:
        return False
    _title[:] = [buffer]
    return True
