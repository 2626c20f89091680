"""Namespaces that outlive the process that made them: networks, and users to own networks.

A namespace is kept by a bind mount of /proc/PID/ns/… over a file, as `ip netns` does. A forked
helper creates it, so that the supervisor itself never leaves its own, and waits until it is kept.
The folder is a shared mount, so that a process with a private mount namespace sees namespaces that
are made after it has started.

A network may belong to a user namespace: whoever has rights in that may enter the network, and has
none outside (user_namespaces(7)).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from bedstone.errors import UnavailableError
from bedstone.processes import linux

_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_MADE = "made"


def create_netns(path: Path, userns: Path | None = None) -> None:
    """Make a network namespace with its loopback up, at `path`; nothing to do if it is there.

    Args:
        path: where it is kept.
        userns: the user namespace that owns it; else the supervisor's own.
    """

    def make() -> None:
        if userns is not None:
            linux.setns(str(userns), linux.CLONE_NEWUSER)
        linux.unshare(linux.CLONE_NEWNET)
        _loopback_up()

    _keep(path, "net", make, hint="run as root, with CAP_SYS_ADMIN, for enforced identities")


def create_userns(path: Path, first: int, count: int) -> None:
    """Make a user namespace at `path`; nothing to do if it is there.

    Its root is the user `first`. The other `count` - 1 from there on have the same numbers inside.
    """

    def give(pid: int) -> None:
        for kind in ("uid", "gid"):
            text = f"0 {first} 1\n{first + 1} {first + 1} {count - 1}\n"
            Path(f"/proc/{pid}/{kind}_map").write_text(text)

    hint = "run as root, and see that /proc/sys/user/max_user_namespaces is not 0"
    _keep(path, "user", lambda: linux.unshare(linux.CLONE_NEWUSER), give, hint=hint)


def _keep(
    path: Path,
    kind: str,
    make: Callable[[], None],
    give: Callable[[int], None] = lambda _pid: None,
    *,
    hint: str,
) -> None:
    """Keep a namespace that a child makes; `give` does to the child's what only we may."""
    if is_kept(path):
        return
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    ours, theirs = socket.socketpair()
    pid = 0
    try:
        # os.path.ismount can't tell: a folder bound to itself keeps its device and inode.
        if str(path.parent) not in mount_points():
            linux.mount(str(path.parent), str(path.parent), linux.MS_BIND)
            linux.mount(None, str(path.parent), linux.MS_SHARED | linux.MS_REC)
        pid = os.fork()
        if pid == 0:
            ours.close()  # whose end tells the child that it may go
            _make(make, theirs)
        theirs.close()
        message = ours.recv(4096).decode(errors="replace")
        if message != _MADE:
            raise _unavailable(kind, message or "the helper failed", hint)
        give(pid)
        path.touch(mode=0o600)
        linux.mount(f"/proc/{pid}/ns/{kind}", str(path), linux.MS_BIND)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise _unavailable(kind, error.strerror or str(error), hint) from error
    finally:
        ours.close()
        theirs.close()
        if pid:
            os.waitpid(pid, 0)


def delete_netns(path: Path) -> None:
    """Let go of the namespace at `path`; it ends with the last process in it."""
    try:
        if is_kept(path):
            linux.umount(str(path))
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UnavailableError(
            f"cannot delete the network namespace {path.name}: {error}"
        ) from error


def is_kept(path: Path) -> bool:
    """Whether a namespace is mounted there: it is then on the kernel's nsfs."""
    try:
        return path.stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return False


def unmount_below(folder: Path) -> None:
    """Unmount everything of ours at or below `folder`, deepest first."""
    prefix = str(folder)
    points = [p for p in mount_points() if p == prefix or p.startswith(prefix + "/")]
    for point in sorted(points, key=len, reverse=True):
        try:
            linux.umount(point)
        except OSError:
            continue


def _make(make: Callable[[], None], link: socket.socket) -> NoReturn:
    """The child's part: make it, say so, and stay until it is kept."""
    try:
        make()
        link.send(_MADE.encode())
        link.recv(1)
    except BaseException as error:  # noqa: BLE001 - a forked helper must not return
        link.send(str(error).encode()[:1000] or b"failed")
        os._exit(1)
    os._exit(0)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh", b"lo", 0).ljust(40, b"\0")
        answer = fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        flags = struct.unpack("16sh", answer[:18])[1] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags).ljust(40, b"\0"))


def _unavailable(kind: str, reason: str, hint: str) -> UnavailableError:
    what = "network" if kind == "net" else kind
    return UnavailableError(f"{what} namespaces are not available: {reason}", hint=hint)


def mount_points() -> list[str]:
    """Where something is mounted, as often as it is."""
    # proc(5): field 5 is the mount point; space, tab, newline, backslash are octal escapes.
    return [
        line.split(" ")[4].encode().decode("unicode_escape")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
