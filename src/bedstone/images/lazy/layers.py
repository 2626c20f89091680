"""Reads a layer's tar stream into a `Merger`; what becomes of file content is the sink's.

The attributes are those that an unpack as root would give: pax records for times to the
nanosecond, long names, extended attributes (`SCHILY.xattr.*`) and sparse files of GNU tar.
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol, cast

from bedstone.errors import InvalidError
from bedstone.images.lazy.erofs import storable
from bedstone.images.lazy.tree import CHUNK, HOLE, Inode, Merger

_BLOCK = 1 << 18
_ZERO = bytes(CHUNK)
_KINDS = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
_UNSOUND = (tarfile.TarError, EOFError, OverflowError)
_XATTR = "SCHILY.xattr."


class Stream(Protocol):
    """A layer's tar, read once from its beginning."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end only."""
        ...


class Sink(Protocol):
    """Where content goes."""

    def chunk(self, content: bytes, offset: int | None) -> int:
        """Take one chunk, not all zero, and give it a number; the same content may get the same.

        Args:
            content: 1 to CHUNK bytes.
            offset: where they stand in the uncompressed layer; None if not in one piece there.
        """
        ...


def read_layer(stream: Stream, merger: Merger, sink: Sink) -> None:
    """Merge one layer.

    Args:
        stream: the layer's tar, uncompressed; it is read once, from its beginning.
        merger: takes the entries.
        sink: takes the content of regular files.

    Raises:
        InvalidError: it is no tar, or has an entry that a tree cannot have.
    """
    merger.begin_layer()
    try:
        with tarfile.open(
            fileobj=cast("BinaryIO", stream), mode="r|", encoding="utf-8", bufsize=_BLOCK
        ) as archive:
            for member in archive:
                _merge(archive, member, merger, sink)
                archive.members = []  # type: ignore[attr-defined] # a layer can have a million
    except _UNSOUND as error:
        raise InvalidError(f"a layer cannot be read: {error}") from error


def _merge(archive: tarfile.TarFile, member: tarfile.TarInfo, merger: Merger, sink: Sink) -> None:
    path = _bytes(member.name)
    if member.islnk():
        merger.link(path, _bytes(member.linkname))
        return
    kind = _KINDS.get(member.type, stat.S_IFREG if member.isreg() else 0)
    if not kind:
        raise InvalidError(f"a layer's entry {member.name!r} is of unknown kind {member.type!r}")
    inode = Inode(stat.S_IMODE(member.mode) | kind, member.uid, member.gid)
    inode.mtime, inode.nsec = _time(member)
    inode.xattrs = {
        name.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape")
        for name, value in member.pax_headers.items()
        if value  # in pax, no value says that there is no such record
        and name.startswith(_XATTR)
        and _kept(name.removeprefix(_XATTR))
    }
    match kind:
        case stat.S_IFREG:
            inode.size = member.size
            inode.chunks = [*_chunks(archive, member, sink)] if member.size else ()
        case stat.S_IFLNK:
            inode.mode = stat.S_IFLNK | 0o777
            inode.target = _bytes(member.linkname)
        case stat.S_IFCHR | stat.S_IFBLK:
            inode.device = (member.devmajor, member.devminor)
    merger.add(path, inode)


def _chunks(archive: tarfile.TarFile, member: tarfile.TarInfo, sink: Sink) -> Iterator[int]:
    source = archive.extractfile(member)
    if source is None:
        raise InvalidError(f"a layer's file {member.name!r} has no content")
    sparse: Sequence[tuple[int, int]] | None = getattr(member, "sparse", None)
    for at in range(0, member.size, CHUNK):
        content = source.read(min(CHUNK, member.size - at))
        if len(content) != min(CHUNK, member.size - at):
            raise InvalidError(f"a layer ends within its file {member.name!r}")
        if content == _ZERO[: len(content)]:
            yield HOLE
        else:
            yield sink.chunk(content, None if sparse else member.offset_data + at)


def _kept(name: str) -> bool:
    return storable(name) and not name.startswith(("trusted.overlay.", "user.overlay."))


def _time(member: tarfile.TarInfo) -> tuple[int, int]:
    """Seconds and nanoseconds; tarfile's own float has no room for both."""
    text = member.pax_headers.get("mtime")
    if text is None:
        return int(member.mtime), 0
    whole, _, fraction = text.partition(".")
    try:
        seconds, nanoseconds = int(whole), int(fraction[:9].ljust(9, "0"))
    except ValueError:
        raise InvalidError(f"a layer's entry {member.name!r} has the time {text[:40]!r}") from None
    if whole.startswith("-") and nanoseconds:
        return seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
