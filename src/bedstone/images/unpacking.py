"""Unpacks layers to a directory, as their archives say and no further than that directory.

Rules:
- Layers go one over another as the OCI image specification says ("Image Layer Filesystem
  Changeset"): a whiteout hides what lower layers hold and never what its own layer adds, whatever
  the order; a directory over a directory keeps its entries; anything else replaces what was there.
- No path leads out of the directory (`bedstone.images.rooted`); nothing there is ever opened that
  the archive put there, only made.
- Directories are the unpacker's alone until the end; then they get their modes, owners and times.
- As root: owners, devices and all extended attributes. Without: everything belongs to the user,
  devices and what only root may set are left out, and the result says so.
- Extended attributes of overlayfs (`trusted.overlay.*`, `user.overlay.*`) are dropped: in the lower
  directory of an overlay they would be orders to the kernel.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import BinaryIO, Self

from bedstone.errors import InvalidError, UnavailableError, VerificationError
from bedstone.images import digests, tar
from bedstone.images.decompress import LayerStream
from bedstone.images.opening import Opened
from bedstone.images.rooted import NoDirectoryError, Path, Root, proc
from bedstone.images.store import ContentStore
from bedstone.images.tar import Entry

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_ZERO = bytes(1 << 18)
_NAMED = 50
_KINDS = {tar.CHAR: stat.S_IFCHR, tar.BLOCK_DEVICE: stat.S_IFBLK, tar.FIFO: stat.S_IFIFO}
_WRONG = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.EMLINK})


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """What an image may become: bytes of its archives and files, and how many entries."""

    bytes: int = 128 << 30
    entries: int = 5_000_000


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was unpacked.

    Args:
        entries: of all layers together.
        bytes: of the files' content, holes included.
        owners_kept: whether files belong to whom the image says, rather than to the user.
        left_out: what could not be made or set, with the reason, the first of many.
        left_out_count: how many in all.
    """

    entries: int
    bytes: int
    owners_kept: bool
    left_out: tuple[str, ...]
    left_out_count: int


@dataclass(slots=True)
class _Folder:
    """What a directory is to become."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)


def unpack(
    store: ContentStore,
    image: Opened,
    target: FilePath,
    *,
    limits: UnpackLimits | None = None,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> Unpacked:
    """Unpack an image. Blocks; run it in a thread.

    Args:
        store: has its layers.
        image: the image.
        target: an empty directory, or one to be made; what a failure leaves there is useless.
        limits: what it may become.
        tell: is told how many of the layers are unpacked.

    Raises:
        InvalidError: a layer cannot be unpacked, or is larger than the limits.
        NotFoundError: a layer is not in the store.
        VerificationError: a layer's archive is not what the config says.
        UnavailableError: the disk refuses.
    """
    with Unpacker(target, limits) as unpacker:
        for number, (layer, diff_id) in enumerate(image.layers):
            if layer.compression is None:
                raise InvalidError(
                    f"{image.reference.familiar} has a layer of type {layer.media_type!r}"
                )
            tell(number, len(image.layers))
            with store.open(layer.digest) as file:
                unpacker.layer(file, layer.compression, diff_id)
        return unpacker.finish()


class Unpacker:
    """Unpacks layer over layer; a context manager.

    Args:
        target: an empty directory, or one to be made.
        limits: what may become of them.

    Raises:
        InvalidError: `target` is not empty.
        UnavailableError: it cannot be made.
    """

    def __init__(self, target: FilePath, limits: UnpackLimits | None = None) -> None:
        self._limits = limits or UnpackLimits()
        with _told(str(target)):
            target.mkdir(parents=True, exist_ok=True)
            if any(target.iterdir()):
                raise InvalidError(f"got directory {target}, expected an empty one")
            self._root = Root(target.absolute())
        self._folders: dict[Path, _Folder] = {(): _Folder()}
        self._upper: set[Path] = set()
        self._missing: set[Path] = set()  # devices that were left out
        self._entries = 0
        self._bytes = 0
        self._read = 0
        self._owners_kept = os.geteuid() == 0
        self._left_out: list[str] = []
        self._left_out_count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._root.__exit__(None, None, None)

    def layer(self, file: BinaryIO, compression: str, diff_id: str | None = None) -> None:
        """Unpack one layer over those before.

        Args:
            file: the blob.
            compression: `gzip`, `zstd` or `""`.
            diff_id: the digest that its archive must have; None to not look.

        Raises:
            InvalidError, VerificationError, UnavailableError: as `unpack`.
        """
        self._upper.clear()
        algorithm = digests.parts(diff_id)[0] if diff_id else "sha256"
        stream = LayerStream(file, compression, self._limits.bytes - self._read, algorithm)
        for entry in tar.entries(stream):
            self._entries += 1
            self._bytes += entry.size
            if self._entries > self._limits.entries or self._bytes > self._limits.bytes:
                raise InvalidError(
                    f"an image unpacks to more than {self._limits.bytes} bytes "
                    f"or {self._limits.entries} entries"
                )
            with _told(entry.name.decode(errors="replace")[:200]):
                self._put(stream, entry)
        self._read += stream.position
        if diff_id is not None and stream.digest != diff_id:
            raise VerificationError(
                f"a layer unpacks to {stream.digest}, expected {diff_id}",
                hint="its image is put together wrongly; ask who made it",
            )

    def finish(self) -> Unpacked:
        """Give directories their modes, owners and times; raises as `unpack`."""
        self._root.forget()
        for path in sorted(self._folders, key=len, reverse=True):
            with _told(b"/".join(path).decode(errors="replace")):
                self._settle(path, self._folders[path])
        return Unpacked(
            self._entries,
            self._bytes,
            self._owners_kept,
            tuple(self._left_out),
            self._left_out_count,
        )

    # One entry

    def _put(self, stream: LayerStream, entry: Entry) -> None:
        if _WHITEOUT in entry.name and _last(entry.name).startswith(_WHITEOUT):
            self._whiteout(entry.name)
            return
        parent, path, name = self._root.parent(entry.name)
        self._take_made()
        if not name:
            if entry.kind != tar.DIRECTORY:
                raise InvalidError("a layer has an entry for the root that is no directory")
            self._folders[()] = _folder(entry)
        elif entry.kind == tar.DIRECTORY:
            self._directory(parent, (*path, name), entry)
        elif entry.kind == tar.LINK:
            self._link(parent, (*path, name), entry)
        else:
            self._remove(parent, (*path, name))
            self._upper.add((*path, name))
            self._make(stream, parent, (*path, name), entry)

    def _whiteout(self, entry: bytes) -> None:
        try:
            parent, path, name = self._root.parent(entry, make=False)
        except NoDirectoryError:
            return  # nothing is there to be hidden: umoci writes such for a directory made a file
        if name == _OPAQUE:
            self._clear(parent, path)
        elif not name.startswith(_AUFS):  # what AUFS keeps for itself
            hidden = name[len(_WHITEOUT) :]
            if hidden in (b"", b".", b".."):
                raise InvalidError(f"a layer has a whiteout with the name {name!r}")
            self._hide(parent, (*path, hidden))

    def _take_made(self) -> None:
        self._entries += len(self._root.made)
        for made in self._root.made:
            self._folders[made] = _Folder()
            self._upper.add(made)
        self._root.made.clear()

    def _directory(self, parent: int, path: Path, entry: Entry) -> None:
        found = _lstat(path[-1], parent)
        if found is None or not stat.S_ISDIR(found.st_mode):
            self._remove(parent, path)
            os.mkdir(path[-1], 0o700, dir_fd=parent)
        self._folders[path] = _folder(entry)
        self._upper.add(path)

    def _link(self, parent: int, path: Path, entry: Entry) -> None:
        # The directory of the new name must stay open while that of the old is looked for.
        parent = os.dup(parent)
        try:
            source, source_path, source_name = self._root.parent(entry.target)
            self._take_made()
            old = (*source_path, source_name)
            if old in self._missing:
                self._remove(parent, path)
                self._leave_out_device(path, entry)
                return
            found = _lstat(source_name, source) if source_name else None
            if found is None or stat.S_ISDIR(found.st_mode):
                raise InvalidError(
                    f"a layer has a hard link {entry.name[:200]!r} to {entry.target[:200]!r}, "
                    "where no file is"
                )
            if old != path:
                self._remove(parent, path)
                os.link(
                    source_name,
                    path[-1],
                    src_dir_fd=source,
                    dst_dir_fd=parent,
                    follow_symlinks=False,
                )
            self._upper.add(path)
        finally:
            os.close(parent)

    def _make(self, stream: LayerStream, parent: int, path: Path, entry: Entry) -> None:
        """Make what is neither a directory nor another name of a file."""
        name = path[-1]
        match entry.kind:
            case tar.FILE:
                self._file(stream, parent, name, entry)
                return
            case tar.SYMLINK:
                if not entry.target or b"\0" in entry.target:
                    raise InvalidError(f"a layer has a link to {entry.target[:200]!r}")
                os.symlink(entry.target, name, dir_fd=parent)
            case _:
                device = os.makedev(*entry.device) if entry.kind != tar.FIFO else 0
                try:
                    os.mknod(name, _KINDS[entry.kind] | 0o600, device, dir_fd=parent)
                except PermissionError:
                    self._leave_out_device(path, entry)
                    return
        where = f"{proc(parent)}/".encode() + name
        self._own(where, entry.uid, entry.gid)
        self._attributes(where, entry.xattrs, entry.name)
        if entry.kind != tar.SYMLINK:
            os.chmod(name, entry.mode, dir_fd=parent)
        times = (entry.mtime, entry.mtime)
        os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)

    def _file(self, stream: LayerStream, parent: int, name: bytes, entry: Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            for offset, count in entry.extents or [(0, entry.size)]:
                _copy(stream, handle, offset, count)
            os.ftruncate(handle, entry.size)
            # In this order: to write and to change the owner drops set-id bits and capabilities.
            self._own(handle, entry.uid, entry.gid)
            self._attributes(handle, entry.xattrs, entry.name)
            os.fchmod(handle, entry.mode)
            os.utime(handle, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(handle)

    def _settle(self, path: Path, folder: _Folder) -> None:
        handle = self._root.open_directory(path)
        try:
            where = proc(handle).encode()
            if self._owners_kept:
                self._own(where, folder.uid, folder.gid, follow=True)
            self._attributes(where, folder.xattrs, b"/".join(path), follow=True)
            os.chmod(where, folder.mode)  # noqa: PTH101 - the path of a descriptor
            os.utime(where, ns=(folder.mtime, folder.mtime))
        finally:
            os.close(handle)

    def _own(self, where: int | bytes, uid: int, gid: int, *, follow: bool = False) -> None:
        if not self._owners_kept:
            return
        try:
            if isinstance(where, int):
                os.fchown(where, uid, gid)
            else:
                os.chown(where, uid, gid, follow_symlinks=follow)
        except OSError as error:
            # Root of a user namespace has only the users that are mapped into it.
            if error.errno not in (errno.EPERM, errno.EINVAL):
                raise
            self._owners_kept = False

    def _attributes(
        self,
        where: int | bytes,
        xattrs: Mapping[bytes, bytes],
        name: bytes,
        *,
        follow: bool = False,
    ) -> None:
        for key, value in xattrs.items():
            if key.startswith((b"trusted.overlay.", b"user.overlay.")):
                continue
            try:
                if isinstance(where, int):
                    os.setxattr(where, key, value)
                else:
                    os.setxattr(where, key, value, follow_symlinks=follow)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                self._leave_out(
                    f"attribute {key.decode(errors='replace')} of "
                    f"{name.decode(errors='replace')}: {reason}"
                )

    def _leave_out_device(self, path: Path, entry: Entry) -> None:
        self._missing.add(path)
        self._leave_out(f"device {entry.name.decode(errors='replace')}: only root can make it")

    def _leave_out(self, text: str) -> None:
        self._left_out_count += 1
        if len(self._left_out) < _NAMED:
            self._left_out.append(text)

    # What lower layers hold

    def _remove(self, parent: int, path: Path) -> None:
        """Remove whatever has a name, with all that is below."""
        self._missing.discard(path)
        found = _lstat(path[-1], parent)
        if found is None:
            return
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(os.fsdecode(path[-1]), dir_fd=parent)
            self._forget(path)
        else:
            os.unlink(path[-1], dir_fd=parent)

    def _hide(self, parent: int, path: Path) -> None:
        """Remove what has a name, but for what this layer has put there."""
        found = _lstat(path[-1], parent)
        if found is None:
            return
        if not stat.S_ISDIR(found.st_mode):
            if path not in self._upper:
                os.unlink(path[-1], dir_fd=parent)
            return
        handle = os.open(
            path[-1], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent
        )
        try:
            self._clear(handle, path)
        finally:
            os.close(handle)
        if path in self._upper:
            return
        try:
            os.rmdir(path[-1], dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._folders[path] = _Folder()  # this layer puts something into it, unnamed
        else:
            self._forget(path)

    def _clear(self, folder: int, path: Path) -> None:
        with os.scandir(proc(folder)) as found:
            names = [os.fsencode(entry.name) for entry in found]
        for name in names:
            self._hide(folder, (*path, name))

    def _forget(self, path: Path) -> None:
        """A directory is gone: nothing leads through it, and it needs no mode."""
        self._root.forget()
        length = len(path)
        for gone in [one for one in self._folders if one[:length] == path]:
            del self._folders[gone]
        self._upper = {one for one in self._upper if one[:length] != path}


def _last(name: bytes) -> bytes:
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    return parts[-1] if parts else b""


def _folder(entry: Entry) -> _Folder:
    return _Folder(entry.mode, entry.uid, entry.gid, entry.mtime, entry.xattrs)


def _copy(stream: LayerStream, handle: int, offset: int, count: int) -> None:
    """Write content where it belongs; zeros are left as holes."""
    while count:
        data = stream.some(count)
        if not data:
            raise InvalidError("a layer ends in the middle of a file")
        if data != _ZERO[: len(data)]:
            view = memoryview(data)
            at = offset
            while view:
                written = os.pwrite(handle, view, at)
                at += written
                view = view[written:]
        offset += len(data)
        count -= len(data)


def _lstat(name: bytes, folder: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


@contextmanager
def _told(what: str) -> Iterator[None]:
    """What the file system refuses, in our words."""
    try:
        yield
    except OverflowError as error:
        raise InvalidError(f"a layer has an entry that cannot be made: {what}: {error}") from error
    except OSError as error:
        text = f"{what}: {error.strerror}"
        if error.errno in _WRONG:
            raise InvalidError(f"a layer has an entry that cannot be made: {text}") from error
        raise UnavailableError(
            f"cannot unpack {text}", hint="free space on the disk, or choose another"
        ) from error
