"""A fork whose child is not this process's own, but its parent's: one fork where it took two.

It does what fork(3) does, with CLONE_PARENT besides (clone(2)), which no library has a function
for. It does without the C library's handlers for forks (pthread_atfork(3)), which guard locks that
other threads might hold: so it is for a process with one thread only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from dataclasses import dataclass
from functools import cache
from typing import Final

_CLONE_PARENT: Final = 0x00008000
_CLONE_CHILD_CLEARTID: Final = 0x00200000
_CLONE_CHILD_SETTID: Final = 0x01000000
_PR_GET_TID_ADDRESS: Final = 40

_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock, as a fork must
_libc.syscall.restype = ctypes.c_long


@dataclass(frozen=True, slots=True)
class _Calls:
    """Numbers of a machine; `last` says whether `clone` takes the thread's number last."""

    clone: int
    get_robust_list: int
    set_robust_list: int
    last: bool


_MACHINES: Final = {
    "x86_64": _Calls(56, 274, 273, last=False),
    "aarch64": _Calls(220, 100, 99, last=True),
}


@cache
def _thread() -> tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t] | None:
    """Where this thread's number and robust mutexes are kept (set_tid_address(2))."""
    number, head, size = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t()
    zero = ctypes.c_ulong(0)
    if _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(number), zero, zero, zero) != 0:
        return None  # a kernel without CONFIG_CHECKPOINT_RESTORE
    calls = _MACHINES[platform.machine()]
    found = (ctypes.byref(head), ctypes.byref(size))
    if _libc.syscall(ctypes.c_long(calls.get_robust_list), ctypes.c_long(0), *found) != 0:
        return None
    return number, head, size


def available() -> bool:
    """Whether `fork` can do it here."""
    return platform.machine() in _MACHINES and _thread() is not None


def fork() -> int:
    """Fork; 0 in the child, whose parent is this process's parent, else its pid.

    Raises:
        OSError: as os.fork does.
    """
    calls, thread = _MACHINES[platform.machine()], _thread()
    if thread is None:
        raise NotImplementedError
    number, head, size = thread
    flags = _CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD
    none = ctypes.c_long(0)
    order = (none, number) if calls.last else (number, none)
    arguments = (ctypes.c_long(calls.clone), ctypes.c_long(flags), none, none, *order)
    ctypes.pythonapi.PyOS_BeforeFork()
    pid = int(_libc.syscall(*arguments))
    if pid == 0:
        _libc.syscall(ctypes.c_long(calls.set_robust_list), head, size)
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    code = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, os.strerror(code))
    return pid
