"""Mounts that a box's root is made of: overlays, and views of folders with other owners.

A view maps owners (idmapped mounts, kernel 5.12 and later): what belongs to user 0 on the disk
belongs to the box's root user in the box, and the other way round, while the box's user is nobody
in particular on this machine. Nothing on the disk is changed for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

UNMAPPABLE = (errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP)
"""What `view` raises where owners cannot be mapped."""

_libc = ctypes.CDLL(None, use_errno=True)

# Numbers of system calls that are the same on every architecture (they were added after 2019).
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_RESOLVE_NO_LINKS = 0x02 | 0x04  # RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS
_RESOLVE_IN_ROOT = 0x10
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_NOSUID = 0x2
_MOUNT_ATTR_NODEV = 0x4
_MOUNT_ATTR_IDMAP = 0x100000
_MS_PRIVATE = 1 << 18
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
_MNT_DETACH = 2
_HOLDER = """
import ctypes, os
os.write(1, bytes([ctypes.CDLL(None).unshare(0x10000000) != 0]))
os.read(0, 1)
"""
_kept: dict[tuple[int, int], int] = {}
"""Descriptors of the user namespaces that were used last: all views of one box need the same."""
_keeping = threading.Lock()
_MOST = 4


class _Attributes(ctypes.Structure):
    """struct mount_attr, mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def mount(kind: str, source: str, target: Path, flags: int, data: str) -> None:
    """Put a new file system at `target`. Raises OSError."""
    _check(
        _libc.mount(
            source.encode(),
            os.fsencode(target),
            kind.encode(),
            ctypes.c_ulong(flags),
            os.fsencode(data),
        ),
        f"mount {kind} on {target}",
    )


def unmount(target: Path) -> None:
    """Unmount what is there, and what is below it; nothing happens where nothing is mounted."""
    while _libc.umount2(os.fsencode(target), _MNT_DETACH) == 0:
        pass


def mounted_below(folder: Path) -> list[str]:
    """Every mount point below a folder, as /proc/self/mountinfo (proc(5)) has it."""
    inside = f"{os.path.realpath(folder)}/"
    points = [
        re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split(" ")[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return [point for point in points if point.startswith(inside)]


def overlay(lower: Path, upper: Path, work: Path, target: Path) -> None:
    """Mount an overlay; `upper` takes the writes. Raises OSError."""
    for path in (lower, upper, work):
        if set(str(path)) & set(",:\\"):
            raise OSError(
                0, f"an overlay cannot be made of {path}: it has one of `,:\\` in its name"
            )
    mount(
        "overlay",
        "overlay",
        target,
        MS_NOSUID | MS_NODEV,
        f"lowerdir={lower},upperdir={upper},workdir={work}",
    )


def open_exactly(path: str | Path) -> int:
    """A descriptor of what is at `path`, if no part of the path is a symbolic link (openat2).

    Whoever may write to one of its folders could otherwise lead a mount somewhere else.

    Raises:
        OSError: nothing is there, or a part is a link (ELOOP).
    """
    how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_LINKS)
    return _check(
        _libc.syscall(
            _OPENAT2,
            _AT_FDCWD,
            os.fsencode(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        f"open {path}",
    )


def open_inside(root: Path, path: str) -> int:
    """A descriptor of what is at `path` for whoever has `root` as its root; no link leads out.

    Raises:
        OSError: nothing is there.
    """
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        how = (ctypes.c_uint64 * 3)(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
        size = ctypes.c_size_t(ctypes.sizeof(how))
        name = os.fsencode(path)
        return _check(
            _libc.syscall(_OPENAT2, folder, name, ctypes.byref(how), size), f"open {path}"
        )
    finally:
        os.close(folder)


def view(source: Path, target: Path, *, owner: int | None, size: int, readonly: bool) -> None:
    """Show a folder or file at `target`, owned as the box with that first user id sees it.

    Args:
        source: what is shown, with nothing that is mounted below it.
        target: where; it is there.
        owner: this machine's user id that is 0 in the box; None shows the owners as they are.
        size: how many user ids the box has.
        readonly: whether it cannot be written to.

    Raises:
        OSError: the kernel or the file system has no such mounts.
    """
    with viewed(source, owner=owner, size=size, readonly=readonly) as tree:
        attach(tree, target)


@contextlib.contextmanager
def viewed(source: Path, *, owner: int | None, size: int, readonly: bool) -> Iterator[int]:
    """What `view` mounts, not attached anywhere. Raises OSError."""
    origin = open_exactly(source)
    try:
        tree = clone(origin, "")
    finally:
        os.close(origin)
    try:
        wanted = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (_MOUNT_ATTR_RDONLY if readonly else 0)
        with contextlib.ExitStack() as stack:
            attributes = _Attributes(attr_set=wanted, propagation=_MS_PRIVATE)
            if owner is not None:
                attributes.userns_fd = stack.enter_context(user_namespace(owner, size))
                attributes.attr_set |= _MOUNT_ATTR_IDMAP
            _check(
                _libc.syscall(
                    _MOUNT_SETATTR,
                    tree,
                    b"",
                    ctypes.c_uint(_AT_EMPTY_PATH),
                    ctypes.byref(attributes),
                    ctypes.c_size_t(ctypes.sizeof(attributes)),
                ),
                f"view of {source}",
            )
        yield tree
    finally:
        os.close(tree)


def clone(folder: int, path: str) -> int:
    """A copy of one mount, not attached anywhere, as a descriptor; `path` below `folder`."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (0 if path else _AT_EMPTY_PATH)
    return _check(
        _libc.syscall(_OPEN_TREE, folder, os.fsencode(path), ctypes.c_uint(flags)),
        f"open_tree {path}",
    )


def attach(tree: int, target: str | Path) -> None:
    """Mount what `clone` gave."""
    _check(
        _libc.syscall(
            _MOVE_MOUNT,
            tree,
            b"",
            _AT_FDCWD,
            os.fsencode(target),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        ),
        f"move_mount {target}",
    )


@contextlib.contextmanager
def user_namespace(owner: int, size: int) -> Iterator[int]:
    """The descriptor of a user namespace where `owner` is 0, and which has `size` users."""
    with _keeping:
        kept = _kept.pop((owner, size), None)
        if kept is None:
            kept = _make_namespace(f"0 {owner} {size}")
        _kept[owner, size] = kept
        if len(_kept) > _MOST:
            os.close(_kept.pop(next(iter(_kept))))
        mine = os.dup(kept)
    try:
        yield mine
    finally:
        os.close(mine)


def _make_namespace(mapping: str) -> int:
    """A user namespace; the program that is in it first need not stay.

    A program of its own and no fork: this process may have threads that hold locks.
    """
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={},
    ) as holder:
        assert holder.stdin is not None  # noqa: S101 - it was made with pipes
        assert holder.stdout is not None  # noqa: S101
        try:
            if holder.stdout.read(1) != b"\0":
                raise OSError(0, "no user namespace can be made")
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{holder.pid}/{name}").write_text(mapping)
            return os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            holder.kill()
