"""The names of Linux's capabilities: capabilities(7), as of Linux 6.12."""

from __future__ import annotations

from typing import Final

KNOWN: Final = frozenset(
    f"CAP_{name}"
    for name in (
        "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE",
        "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER",
        "KILL", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN",
        "NET_BIND_SERVICE", "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP",
        "SETUID", "SYSLOG", "SYS_ADMIN", "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE",
        "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG",
        "WAKE_ALARM",
    )
)  # fmt: skip


def capability(text: str) -> str:
    """A name as container engines take it: any case, with or without `CAP_`.

    Raises:
        ValueError: Linux has none of that name.
    """
    name = f"CAP_{text.upper().removeprefix('CAP_')}"
    if name not in KNOWN:
        raise ValueError(f"no capability named {text!r}")
    return name
