"""Keeps a process to itself, as its `Confinement` says, with what the machine and its user allow.

In two parts. `separate` makes namespaces and mounts, which needs root, before the user changes;
`restrict` comes last and needs nobody's permission: it takes rights from the process for good.

Rule: what cannot be done is left out and said, as a note; nothing of it keeps a program from
starting. But once mounts have begun, an error is an error: half of them would hide what is needed.
"""

from __future__ import annotations

import errno
import glob
import os
import platform
from collections.abc import Iterator, Sequence
from typing import Final

from bedstone.processes import landlock, linux, netns, seccomp, sockets
from bedstone.processes.spec import UNCONFINED, Confinement

PROCESSES: Final = 4096
"""Processes and threads of a user whom nobody shares, where no limit is declared."""
ROOT_KEPT: Final = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 8, 10))
"""What is left of root's: CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP
and NET_BIND_SERVICE: its files, and to become less (capabilities(7))."""

_NAMESPACES: Final = (
    ("mount", linux.CLONE_NEWNS),
    ("ipc", linux.CLONE_NEWIPC),
    ("uts", linux.CLONE_NEWUTS),
)
_TEMPORARY: Final = ("/tmp", "/var/tmp")  # noqa: S108
_SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108
_KERNELS: Final = ("sys", "sysrq-trigger", "irq", "bus", "fs")
"""What of /proc is not about processes."""
_OWN_PROC_SINCE: Final = (5, 8)
"""Before, options of one mount of /proc were those of all."""
_DEVICES: Final = (
    *("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "mqueue"),
    *("dri", "kfd", "nvidia*"),
)
"""What root may write to in /dev: nothing that is a disk, memory or the machine's."""


def separate(given: Confinement) -> list[str]:
    """Namespaces of its own, all or none, and in them what is its own; notes on what came of it."""
    names = ", ".join(name for name, _ in _NAMESPACES)
    flags = 0
    for _, flag in _NAMESPACES:
        flags |= flag
    try:
        linux.unshare(flags)
        # What is mounted later outside is seen, and nothing that is mounted inside is seen outside.
        linux.mount(None, "/", linux.MS_REC | linux.MS_SLAVE)
    except OSError as error:
        return [f"{UNCONFINED}no {names} namespaces of its own: {error.strerror}"]
    notes = [f"own {names} namespaces"]
    kept = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in given.visible}
    try:
        if given.temporary is not None:
            notes.append(_own_temporary(given.temporary))
        for folder in given.hidden:
            if os.path.isdir(folder):  # noqa: PTH112
                _hide(folder, kept)
        if given.root:
            sockets.hide_those_of_root(given.visible)
            notes.append(_own_terminals())
            notes.append(_read_only_elsewhere(given.writable))
    finally:
        for handle in kept.values():
            os.close(handle)
    return notes


def _own_temporary(source: str) -> str:
    for target in _TEMPORARY:
        if os.path.isdir(target):  # noqa: PTH112
            flags = linux.MS_BIND | linux.MS_REC
            linux.mount(source, target, flags)
    if os.path.isdir(_SHARED_MEMORY):  # noqa: PTH112
        flags = linux.MS_NOSUID | linux.MS_NODEV
        linux.mount("shm", _SHARED_MEMORY, flags, "tmpfs", "mode=1777")
    return "own /tmp and shared memory"


def _hide(folder: str, kept: dict[str, int]) -> None:
    """Have it look empty, but for what is kept."""
    flags = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("hidden", folder, flags, "tmpfs", "mode=755,size=1m")
    for path, handle in kept.items():
        if _below(path, (folder,)):
            os.makedirs(path, 0o755, exist_ok=True)  # noqa: PTH103
            linux.mount(f"/proc/self/fd/{handle}", path, linux.MS_BIND | linux.MS_REC)


def _below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _own_terminals() -> str:
    """Pseudo-terminals of its own: root may open those of others."""
    try:
        flags = linux.MS_NOSUID | linux.MS_NOEXEC
        linux.mount("devpts", "/dev/pts", flags, "devpts", "newinstance,ptmxmode=0666,mode=620")
    except OSError as error:
        return f"{UNCONFINED}it opens terminals of others: {error.strerror}"
    return "own terminals"


def _read_only_elsewhere(writable: Sequence[str]) -> str:
    """Have all else read-only: Landlock does not decide on owners, modes and attributes of files.

    But /proc, which is about processes and has its own rules.
    """
    folders = {os.path.realpath(path) for path in writable if os.path.exists(path)}  # noqa: PTH110
    kept = (*folders, "/dev/pts", "/proc")
    try:
        if "/" not in folders:
            for path in sorted(folders):
                linux.mount(path, path, linux.MS_BIND | linux.MS_REC)
            for path in dict.fromkeys(netns.mount_points()):
                if not _below(path, kept):
                    _set_read_only(path)
    except OSError as error:
        return f"{UNCONFINED}it changes owners and modes of files elsewhere: {error.strerror}"
    return "all else read-only"


def _set_read_only(path: str) -> None:
    try:
        linux.set_read_only(path)
    except OSError as error:
        # What another mount covers cannot be named, nor be reached.
        if error.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
            raise


def hide_processes() -> str:
    """A /proc that shows nobody's processes but one's own, and the kernel's settings read-only.

    Needs the mount namespace that `separate` makes, and root. Those it is forked to have it too.
    """
    what = f"{UNCONFINED}it sees processes of others"
    if _release() < _OWN_PROC_SINCE:
        return f"{what}: Linux {platform.release()} is older than 5.8"
    try:
        # 4: only what one could trace. 2 would show everything to root's group.
        flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
        linux.mount("proc", "/proc", flags, "proc", "hidepid=4")
    except OSError as error:
        return f"{what}: {error.strerror}"
    for name in _KERNELS:
        path = f"/proc/{name}"
        if os.path.exists(path):  # noqa: PTH110
            linux.mount(path, path, linux.MS_BIND | linux.MS_REC)
            again = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY
            linux.mount(None, path, again | flags)
    return HIDES


HIDES: Final = "sees no processes of others"


def hides_processes() -> bool:
    """Whether this process is where `hide_processes` has been."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
        return any(" /proc " in line and "hidepid=" in line for line in file)


def restrict(given: Confinement) -> Iterator[str]:
    """Take what it must not do: writing elsewhere, reaching others, most system calls; notes."""
    yield _restrict_writing(given)
    yield filter_calls()


def rehearse() -> None:
    """Have ready what every child needs, whatever it is kept to."""
    seccomp.program()
    landlock.version()
    [*_devices()]


def _restrict_writing(given: Confinement) -> str:
    what = f"{UNCONFINED}it writes wherever its user may"
    known = landlock.version()
    if known < landlock.OLDEST:
        found = f"has version {known}" if known else "has none"
        return f"{what}: this kernel {found}, expected Landlock 2"
    try:
        landlock.restrict((*given.writable, *_devices()), known)
    except OSError as error:
        return f"{what}: {error.strerror}"
    where = f"writes only below {', '.join(given.writable)} (Landlock {known})"
    own = given.alone or given.root
    return where if own else f"{where}, but for modes and times of what its user owns"


def _devices() -> Iterator[str]:
    """What is no file of anybody's. Users have rights on some devices; root has them on disks."""
    yield from ("/proc/self/fd/1", "/proc/self/fd/2")  # its output, wherever that is
    if os.geteuid() != 0:
        yield from ("/dev", "/proc")
        return
    for name in _DEVICES:
        yield from glob.glob(f"/dev/{name}")  # noqa: PTH207
    # Where the kernel's settings are not read-only, nor are its children's files to be written.
    writable = os.access("/proc/sys/kernel/core_pattern", os.W_OK)
    yield "/proc/self" if writable else "/proc"


def filter_calls() -> str:
    """Take most system calls from this process and all that it forks; a note."""
    what = f"{UNCONFINED}its system calls are not filtered"
    program = seccomp.program()
    if program is None:
        return f"{what}: their numbers on {platform.machine()} are not known"
    try:
        linux.filter_calls(program)
    except OSError as error:
        return f"{what}: {error.strerror}"
    return "system calls filtered"


def _release() -> tuple[int, int]:
    major, minor, *_ = platform.release().split(".")
    return int(major), int("".join(filter(str.isdigit, minor)) or 0)
