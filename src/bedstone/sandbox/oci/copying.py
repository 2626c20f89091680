"""Copies files into and out of a box, from within the box's own root.

A process of its own (`main`) builds the box's mounts in a mount namespace, makes the box's root its
root, and becomes the box's root user. From then on every path, and every symbolic link that the box
makes or changes meanwhile, can only lead to what the box has anyway. It stays outside the box's
namespaces, so that nothing in the box sees it or can signal it, and reads nothing of the root but
the files asked for: no module, no locale, no user database (as others did, CVE-2019-14271).

Only the standard library is used, all of it imported before the root is entered.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import posixpath
import stat
import sys
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from bedstone.sandbox import mounts
from bedstone.sandbox.alone import standard_python

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_JOINED: Final = (("user", _CLONE_NEWUSER), ("mnt", _CLONE_NEWNS))
_MS_REC_PRIVATE: Final = 0x4000 | 1 << 18
_MS_REMOUNT_READONLY: Final = 0x20 | 0x1000 | 0x1
_AT_FDCWD: Final = -100
# CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID: what restoring owners and modes takes.
_CAPABILITIES: Final = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4
_BLOCK: Final = 1 << 16
ATTRIBUTE: Final = "SCHILY.xattr."


class Refusal(Exception):  # noqa: N818 - it is an answer, not a failure
    """What the caller is told: an error's code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def main() -> None:
    """Copy as the JSON object of the first argument says; tar on standard input or output.

    Fields: `mode` (`in` or `out`), `path`, `root`, `readonly`, `binds` (pairs of place and target),
    `first_id`; of a box without root instead of all but the first two `pid`, one of its processes.
    Ends with status 1 and `{"code", "message"}` on standard error if it could not.
    """
    wanted = json.loads(sys.argv[1])
    for encoding in ("ascii", "latin-1", "utf-8"):
        "".encode(encoding)
    try:
        if "pid" in wanted:
            join(wanted["pid"])
        else:
            enter(wanted["root"], wanted["binds"], wanted["first_id"], readonly=wanted["readonly"])
        if wanted["mode"] == "in":
            unpack(sys.stdin.buffer, wanted["path"])
        else:
            pack(sys.stdout.buffer, wanted["path"])
            sys.stdout.buffer.flush()
    except Refusal as refusal:
        _fail(refusal.code, str(refusal))
    except tarfile.TarError as error:
        _fail("invalid", f"not a tar archive: {error}")
    except OSError as error:
        _fail("unavailable", f"{error.filename or 'copying'}: {error.strerror or error}")


def _fail(code: str, message: str) -> None:
    sys.stderr.write(json.dumps({"code": code, "message": message}))
    sys.stderr.flush()
    os._exit(1)


def enter(root: str, binds: list[list[str]], first_id: int | None, *, readonly: bool) -> None:
    """Make `root` with its mounts the root of this process, and become its root user."""
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.ExitStack() as stack:
        user = None
        if first_id is not None:
            user = stack.enter_context(mounts.user_namespace(first_id, 65536))
            user = os.dup(user)
    trees = [(mounts.clone(_AT_FDCWD, place), target) for place, target in binds]
    _check(libc.unshare(_CLONE_NEWNS), "unshare")
    _check(libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None), "mount /")
    if readonly:
        flags = ctypes.c_ulong(_MS_REMOUNT_READONLY)
        _check(libc.mount(None, os.fsencode(root), None, flags, None), f"remount {root}")
    os.chroot(root)
    os.chdir("/")
    _import_no_more()
    for tree, target in sorted(trees, key=lambda item: item[1]):
        with contextlib.suppress(OSError):  # its target is not there: the box never saw it
            mounts.attach(tree, target)
        os.close(tree)
    if user is not None:
        _check(libc.setns(user, _CLONE_NEWUSER), "setns")
        os.close(user)
    os.setgroups([])
    _become_root(libc)


def join(pid: int) -> None:
    """Enter the users and the mounts of a box that belongs to the user of this process."""
    places = [(f"/proc/{pid}/ns/{kind}", number) for kind, number in _JOINED]
    opened = [(os.open(place, os.O_RDONLY | os.O_CLOEXEC), number) for place, number in places]
    libc = ctypes.CDLL(None, use_errno=True)
    _import_no_more()
    for descriptor, number in opened:
        _check(libc.setns(descriptor, number), "setns")
        os.close(descriptor)
    os.chdir("/")
    _become_root(libc)


def _import_no_more() -> None:
    """The files at the places of modules are the box's from here on."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()


def _become_root(libc: ctypes.CDLL) -> None:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)(_CAPABILITIES, _CAPABILITIES, 0, 0, 0, 0)
    _check(libc.capset(header, sets), "capset")
    os.umask(0o022)


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)


def unpack(stream: BinaryIO, folder: str) -> None:
    """Unpack a tar stream below `folder`; owners are numbers, set-user-id bits are kept out."""
    if not os.path.isdir(folder):  # noqa: PTH112 - pathlib resolves nothing better
        raise Refusal("not_found", f"{folder} is not a folder of the box")
    with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8") as archive:
        folders = []
        for member in archive:
            place = _place(folder, member.name)
            if place is None:
                continue
            _unpack(archive, member, place, folder)
            set_attributes(place, member)
            if member.isdir():
                folders.append((place, member.mtime))
        for place, mtime in reversed(folders):
            with contextlib.suppress(OSError):
                os.utime(place, (mtime, mtime), follow_symlinks=False)


def _place(folder: str, name: str) -> str | None:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refusal("invalid", f"the archive has a member named {name!r}")
    return posixpath.join(folder, *parts) if parts else None


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, place: str, folder: str) -> None:
    os.makedirs(posixpath.dirname(place), exist_ok=True)  # noqa: PTH103
    if member.isdir():
        if os.path.islink(place) or not os.path.isdir(place):  # noqa: PTH112, PTH114
            _remove(place)
            os.mkdir(place)  # noqa: PTH102
    else:
        _remove(place)
    if member.islnk():
        target = _place(folder, member.linkname)
        if target is None:
            raise Refusal("invalid", f"the archive links {member.name!r} to nothing")
        os.link(target, place, follow_symlinks=False)
        return
    if not member.isdir():
        _make(archive, member, place)
    os.chown(place, member.uid, member.gid, follow_symlinks=False)
    if not member.issym():
        os.chmod(place, member.mode & 0o1777)  # noqa: PTH101
        os.utime(place, (member.mtime, member.mtime), follow_symlinks=False)


def set_attributes(place: str, member: tarfile.TarInfo) -> None:
    """Those of users alone: others have a meaning for the kernel. Not every file system has any."""
    for key, value in member.pax_headers.items():
        name = key.removeprefix(ATTRIBUTE)
        if name != key and name.startswith("user.") and (member.isreg() or member.isdir()):
            with contextlib.suppress(OSError):
                os.setxattr(place, name, value.encode("utf-8", "surrogateescape"))


def attributes(place: str | int) -> dict[str, str]:
    """The extended attributes of a file or folder, as the PAX headers that GNU tar has for them."""
    found = {}
    with contextlib.suppress(OSError):
        for name in os.listxattr(place):
            if name.startswith("user."):
                value = os.getxattr(place, name)
                found[f"{ATTRIBUTE}{name}"] = value.decode("utf-8", "surrogateescape")
    return found


def _make(archive: tarfile.TarFile, member: tarfile.TarInfo, place: str) -> None:
    if member.issym():
        os.symlink(member.linkname, place)  # noqa: PTH211
    elif member.isfifo():
        os.mkfifo(place, 0o600)
    elif member.isreg():
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        source = archive.extractfile(member)
        with os.fdopen(os.open(place, flags, 0o600), "wb") as file:
            while source is not None and (block := source.read(_BLOCK)):
                file.write(block)
    else:
        raise Refusal("invalid", f"the archive has a device or the like: {member.name!r}")


def _remove(place: str) -> None:
    try:
        os.unlink(place)  # noqa: PTH108
    except FileNotFoundError:
        return
    except IsADirectoryError:
        os.rmdir(place)  # noqa: PTH106


def pack(stream: BinaryIO, path: str) -> None:
    """Write a tar stream of `path`, whose members begin with its last component."""
    try:
        os.lstat(path)
    except OSError as error:
        raise Refusal("not_found", f"{path}: {error.strerror}") from error
    top = posixpath.basename(path.rstrip("/")) or "."
    seen: dict[tuple[int, int], str] = {}
    with tarfile.open(
        fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8"
    ) as archive:
        for place, name in _walk(path, top):
            # What vanishes or changes meanwhile is left out: the box goes on.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                _pack(archive, place, name, seen)


def _walk(path: str, top: str) -> Iterator[tuple[str, str]]:
    yield path, top
    if os.path.islink(path) or not os.path.isdir(path):  # noqa: PTH112, PTH114
        return
    with contextlib.suppress(OSError):
        for child in sorted(os.listdir(path)):  # noqa: PTH208
            yield from _walk(posixpath.join(path, child), f"{top}/{child}")


_TYPES: Final[dict[int, bytes]] = {
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
    stat.S_IFREG: tarfile.REGTYPE,
}


def _pack(
    archive: tarfile.TarFile, place: str, name: str, seen: dict[tuple[int, int], str]
) -> None:
    found = os.lstat(place)
    kind = _TYPES.get(stat.S_IFMT(found.st_mode))
    if kind is None:
        return  # sockets and devices mean nothing elsewhere
    member = tarfile.TarInfo(name)
    member.mode = stat.S_IMODE(found.st_mode)
    member.uid, member.gid = found.st_uid, found.st_gid
    member.mtime = int(found.st_mtime)
    member.type = kind
    if kind == tarfile.SYMTYPE:
        member.linkname = os.readlink(place)  # noqa: PTH115
    if kind == tarfile.DIRTYPE:
        member.pax_headers = attributes(place)
    if kind != tarfile.REGTYPE:
        archive.addfile(member)
        return
    inode = (found.st_dev, found.st_ino)
    if inode in seen:
        member.type, member.linkname = tarfile.LNKTYPE, seen[inode]
        archive.addfile(member)
        return
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return
        member.size = found.st_size
        member.pax_headers = attributes(descriptor)
        archive.addfile(member, _Exactly(file))
        if found.st_nlink > 1:
            seen[inode] = name


class _Exactly(io.RawIOBase):
    """A file that has the size it had: what was cut off since reads as zeros."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(size).ljust(max(size, 0), b"\0")


def command(wanted: dict[str, Any]) -> tuple[str, ...]:
    """The command line that does it."""
    return (*standard_python(__name__), json.dumps(wanted))
