"""Network namespaces that outlive the process that made them, as `ip netns` makes them.

A namespace is kept by a bind mount of /proc/self/ns/net over a file. A forked helper creates it, so
that the supervisor itself never leaves its own namespace. The folder is a shared mount, so that a
process with a private mount namespace sees namespaces that are made after it has started.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from pathlib import Path

from bedstone.errors import UnavailableError
from bedstone.processes import linux

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def create_netns(path: Path) -> None:
    """Make a network namespace with its loopback up, at `path`; nothing to do if it is there."""
    if is_netns(path):
        return
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    try:
        # os.path.ismount can't tell: a folder bound to itself keeps its device and inode.
        if str(path.parent) not in _mount_points():
            linux.mount(str(path.parent), str(path.parent), linux.MS_BIND)
            linux.mount(None, str(path.parent), linux.MS_SHARED | linux.MS_REC)
        path.touch(mode=0o600)
    except OSError as error:
        raise _unavailable(error.strerror or str(error)) from error
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _create(path, write)
    os.close(write)
    with os.fdopen(read, "rb") as report:
        message = report.read().decode(errors="replace")
    os.waitpid(pid, 0)
    if message:
        path.unlink(missing_ok=True)
        raise _unavailable(message)


def delete_netns(path: Path) -> None:
    """Let go of the namespace at `path`; it ends with the last process in it."""
    try:
        if is_netns(path):
            linux.umount(str(path))
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"cannot delete the network namespace {path.name}: {error}"
        ) from error


def is_netns(path: Path) -> bool:
    """Whether a namespace is mounted there: it is then on the kernel's nsfs."""
    try:
        return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return False


def unmount_below(folder: Path) -> None:
    """Unmount everything of ours at or below `folder`, deepest first."""
    prefix = str(folder)
    points = [p for p in _mount_points() if p == prefix or p.startswith(prefix + "/")]
    for point in sorted(points, key=len, reverse=True):
        try:
            linux.umount(point)
        except OSError:
            continue


def _create(path: Path, report: int) -> None:
    try:
        linux.unshare(linux.CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            request = struct.pack("16sh", b"lo", 0).ljust(40, b"\0")
            answer = fcntl.ioctl(control, _SIOCGIFFLAGS, request)
            flags = struct.unpack("16sh", answer[:18])[1] | _IFF_UP
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags).ljust(40, b"\0"))
        linux.mount("/proc/self/ns/net", str(path), linux.MS_BIND)
    except BaseException as error:  # noqa: BLE001 - a forked helper must not return
        os.write(report, str(error).encode()[:1000] or b"failed")
        os._exit(1)
    os._exit(0)


def _unavailable(reason: str) -> UnavailableError:
    return UnavailableError(
        f"network namespaces are not available: {reason}",
        hint="run as root, with CAP_SYS_ADMIN, for enforced identities",
    )


def _mount_points() -> list[str]:
    """Where something is mounted, as often as it is."""
    # proc(5): field 5 is the mount point; space, tab, newline, backslash are octal escapes.
    return [
        line.split(" ")[4].encode().decode("unicode_escape")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
