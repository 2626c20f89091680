"""The file tree of an image: OCI layers, the lowest first, merged into one.

Rules (OCI image specification, "Image Layer Filesystem Changeset"):
- A whiteout hides what lower layers hold, never what its own layer adds, whatever the order.
- A directory over a directory keeps the entries and takes the new attributes; any other entry
  replaces what stood there.
- A path is looked up inside the image: symbolic links among its parents are followed within the
  root, and `..` never leaves it. Nothing on the host is touched.
- Extended attributes of overlayfs (`trusted.overlay.*`, `user.overlay.*`) are dropped: in a lower
  directory of an overlay they would be orders to the kernel.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

from bedstone.errors import InvalidError

CHUNK = 256 * 1024
"""Bytes of file content in one chunk; the last of a file is shorter."""

HOLE = -1
"""In place of a chunk's number: these bytes are all zero, and stored nowhere."""

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_LINKS = 40  # as the kernel's MAXSYMLINKS


@dataclass(slots=True, eq=False)
class Inode:
    """One file of any kind. Hard links are one `Inode` under several names.

    Attributes:
        mode: as in `st_mode`, with the kind.
        mtime: seconds since the epoch; `nsec` the nanoseconds beyond.
        xattrs: full name to value.
        size: bytes of a regular file.
        chunks: of a regular file: a chunk's number, or HOLE, for each CHUNK bytes.
        target: of a symbolic link.
        device: of a device node, (major, minor).
        children: of a directory, by name.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    nsec: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    size: int = 0
    chunks: Sequence[int] = ()
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    children: dict[bytes, Inode] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        """Whether it has children."""
        return stat.S_ISDIR(self.mode)


def directory(mode: int = 0o755) -> Inode:
    """An empty directory of root's."""
    return Inode(stat.S_IFDIR | mode)


def walk(root: Inode) -> Iterator[tuple[bytes, Inode]]:
    """Every name below `root`, parents first and sorted, with its inode; the root's is empty."""
    waiting: list[tuple[bytes, Inode]] = [(b"", root)]
    while waiting:
        path, inode = waiting.pop()
        yield path, inode
        below = sorted(inode.children.items(), key=itemgetter(0), reverse=True)
        waiting += [(path + b"/" + name if path else name, child) for name, child in below]


class Merger:
    """Merges layers into `root`: `begin_layer`, then the entries in the layer's own order."""

    def __init__(self) -> None:
        self.root = directory()
        self._fresh: set[tuple[int, bytes]] = set()  # names that this layer has set

    def begin_layer(self) -> None:
        """What follows is of the next layer up."""
        self._fresh.clear()

    def add(self, path: bytes, inode: Inode) -> None:
        """Put one entry, or carry out the whiteout that its name says.

        Raises:
            InvalidError: its parent is not a directory, or it names no file.
        """
        if _WHITEOUT in path and (last := _names(path)[-1:]) and last[0].startswith(_WHITEOUT):
            self._whiteout(path)
            return
        parent, name = self._place(path)
        if not name:
            if not inode.is_directory:
                raise InvalidError(f"a layer's entry {path!r} names the root, and is no directory")
            self._take(self.root, inode)
        else:
            self._put(parent, name, inode)

    def _whiteout(self, path: bytes) -> None:
        try:
            parent, name = self._place(path, make=False)
        except _NoDirectoryError:
            return  # nothing is there to be hidden: umoci writes such for a directory made a file
        if name == _OPAQUE:
            self._clear(parent)
        else:
            self._hide(parent, name[len(_WHITEOUT) :])

    def link(self, path: bytes, target: bytes) -> None:
        """A hard link at `path` to what is at `target` now; a symbolic link is not followed.

        Raises:
            InvalidError: there is nothing at `target`, or a directory.
        """
        place, last = self._place(target)
        inode = place.children.get(last)
        if inode is None or inode.is_directory:
            raise InvalidError(f"a layer's hard link {path!r} leads to {target!r}, no file there")
        parent, name = self._place(path)
        if not name:
            raise InvalidError(f"a layer's hard link {path!r} names no file")
        self._put(parent, name, inode)

    def _put(self, parent: Inode, name: bytes, inode: Inode) -> None:
        if len(name) > 255:
            raise InvalidError(f"a layer's entry has a name of {len(name)} bytes, at most 255")
        there = parent.children.get(name)
        if there is not None and there.is_directory and inode.is_directory:
            self._take(there, inode)
        else:
            parent.children[name] = inode
        self._fresh.add((id(parent), name))

    @staticmethod
    def _take(there: Inode, inode: Inode) -> None:
        there.mode, there.uid, there.gid = inode.mode, inode.uid, inode.gid
        there.mtime, there.nsec, there.xattrs = inode.mtime, inode.nsec, inode.xattrs

    def _hide(self, parent: Inode, name: bytes) -> None:
        there = parent.children.get(name)
        if there is None:
            return
        fresh = (id(parent), name) in self._fresh
        if there.is_directory:
            self._clear(there)
            if there.children and not fresh:
                self._take(there, directory())  # this layer puts something into it, unnamed
                return
        if not fresh:
            del parent.children[name]

    def _clear(self, parent: Inode) -> None:
        """Hide below `parent` what this layer did not set, however deep."""
        for name in list(parent.children):
            self._hide(parent, name)

    def _place(self, path: bytes, *, make: bool = True) -> tuple[Inode, bytes]:
        """The directory that an entry goes into, made if it is missing, and the entry's name."""
        parts = _names(path)
        if not parts:
            return self.root, b""
        if parts[-1] == b"..":
            raise InvalidError(f"a layer's entry {path!r} ends in '..'")
        return self._enter(parts[:-1], path, make=make), parts[-1]

    def _enter(self, parts: list[bytes], path: bytes, *, make: bool) -> Inode:
        trail = [self.root]
        waiting = parts[::-1]
        followed = 0
        while waiting:
            part = waiting.pop()
            if part == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            here = trail[-1]
            child = here.children.get(part)
            if child is None and not make:
                raise _NoDirectoryError(f"a layer's entry {path!r} is in no directory")
            if child is None:
                child = here.children[part] = directory()
                self._fresh.add((id(here), part))
            if child.is_directory:
                trail.append(child)
            elif stat.S_ISLNK(child.mode):
                followed += 1
                if followed > _LINKS:
                    raise InvalidError(f"a layer's entry {path!r} goes round in symbolic links")
                if child.target.startswith(b"/"):
                    del trail[1:]
                links = [it for it in child.target.split(b"/") if it not in (b"", b".")]
                waiting.extend(reversed(links))
            else:
                raise _NoDirectoryError(
                    f"a layer's entry {path!r} has a file among its directories"
                )
        return trail[-1]


class _NoDirectoryError(InvalidError):
    """What should be a directory is none."""


def _names(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")]
