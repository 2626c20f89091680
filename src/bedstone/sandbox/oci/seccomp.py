"""The system calls that a box may make, as a filter of OCI.

Those of `bedstone.processes.calls`, and what a capability which it was given is useless without.
The refusal is EPERM, and ENOSYS for `clone3`. A box that writes to files of this machine may give
no file a set-user-id or set-group-id bit: its root is the owner of root's files there.
"""

from __future__ import annotations

import platform
from typing import Any, Final

from bedstone.processes.calls import (
    ALLOWED,
    CLONE_NAMESPACES,
    CREATING,
    FAMILIES,
    MODES,
    OPENS,
    PERSONALITIES,
    SET_ID,
)

WITH_CAPABILITY: Final[dict[str, tuple[str, ...]]] = {
    "CAP_SYS_CHROOT": ("chroot",),
    "CAP_SYS_TIME": ("settimeofday", "stime", "clock_settime", "clock_settime64", "clock_adjtime"),
    "CAP_SYS_PTRACE": ("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd"),
    "CAP_SYS_NICE": ("get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"),
    "CAP_SYS_ADMIN": (
        "mount", "umount", "umount2", "unshare", "setns", "pivot_root", "fsopen", "fsmount",
        "fsconfig", "fspick", "move_mount", "open_tree", "mount_setattr", "sethostname",
        "setdomainname",
    ),
}  # fmt: skip
"""Calls that a capability is useless without; whoever declared it gets both."""

_CHECKED: Final = frozenset({*MODES, *OPENS, "openat2"})
_ARCHITECTURES: Final = {
    "x86_64": ["SCMP_ARCH_X86_64"],
    "aarch64": ["SCMP_ARCH_AARCH64"],
    "riscv64": ["SCMP_ARCH_RISCV64"],
}


def profile(
    capabilities: tuple[str, ...],
    machine: str = platform.machine(),
    *,
    sentry: bool = False,
    set_id: bool = True,
) -> dict[str, Any]:
    """The filter as OCI's `linux.seccomp` (runtime-spec, config-linux.md), for these capabilities.

    Only the machine's own architecture is there: a 32-bit program is refused every call.

    With `sentry`, a kernel in user space answers to `clone3`: its runtime may know no refusal but
    EPERM, after which libraries do not fall back to `clone`, and no thread could be started.
    Without `set_id`, no file gets such a bit.
    """
    allowed = [name for name in ALLOWED if set_id or name not in _CHECKED]
    extra = [call for name in capabilities for call in WITH_CAPABILITY.get(name, ())]
    calls: list[dict[str, Any]] = [
        {"names": [*allowed, *extra], "action": "SCMP_ACT_ALLOW"},
        *({"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [_equal(0, family)]}
          for family in FAMILIES),
        *({"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [_equal(0, value)]}
          for value in PERSONALITIES),
        {"names": ["clone3"], "action": "SCMP_ACT_ALLOW"} if sentry else
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ]  # fmt: skip
    if "CAP_SYS_ADMIN" in capabilities:
        calls.append({"names": ["clone"], "action": "SCMP_ACT_ALLOW"})
    else:
        calls.append(_without("clone", 0, CLONE_NAMESPACES))
    if not set_id:
        calls += [_without(name, mode, SET_ID) for name, mode in MODES.items()]
        for name, (flags, mode) in OPENS.items():
            calls += [_without(name, flags, CREATING), _without(name, mode, SET_ID)]
        calls.append({"names": ["openat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": _ARCHITECTURES.get(machine, []),
        "syscalls": calls,
    }


def _without(name: str, index: int, bits: int) -> dict[str, Any]:
    """The call is allowed if its argument has none of the bits."""
    masked = {"index": index, "value": bits, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [masked]}


def _equal(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}
