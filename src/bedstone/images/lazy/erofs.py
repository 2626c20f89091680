"""Writes EROFS metadata: everything of a file system but the content of its regular files.

The layout is that of the kernel's `fs/erofs/erofs_fs.h`: blocks of 4 KiB, extended inodes, and
regular files whose chunks are on the first extra device, at the addresses that the caller gives.
The kernel mounts the image with `device=` naming that device.

Invariants:
- The same tree and addresses give the same bytes.
- An inode comes soon after the directory that names it first, so that listing a directory and
  looking at each entry reads few blocks.
"""

from __future__ import annotations

import stat
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from bedstone.errors import InvalidError
from bedstone.images.lazy.tree import CHUNK, HOLE, Inode

BLOCK = 4096
_SLOT = 32  # an inode's number counts these
_FIRST = BLOCK // _SLOT  # the root's: the first inode stands in the second block
_MAGIC = 0xE0F5E1E2
_CHUNKED, _DEVICE_TABLE = 0x4, 0x8
_PLAIN, _INLINE, _CHUNK_BASED = 0, 2, 4
_CHUNK_FORMAT = 0x20 | (CHUNK // BLOCK).bit_length() - 1  # chunk indexes, and log2 of blocks
_DEVICE_SLOT = 1152 // 128  # right behind the superblock
_NOTHING = 0xFFFFFFFF

# Longest prefix first: the two ACL names are whole names.
_PREFIXES = (
    ("system.posix_acl_default", 3),
    ("system.posix_acl_access", 2),
    ("security.", 6),
    ("trusted.", 4),
    ("user.", 1),
)
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


def storable(name: str) -> bool:
    """Whether EROFS has a place for an extended attribute of this name."""
    return any(name.startswith(prefix) for prefix, _ in _PREFIXES)


def write(
    root: Inode, addresses: Sequence[int], blocks: int, *, uuid: bytes = bytes(16), label: str = ""
) -> bytes:
    """The metadata image of the tree.

    Args:
        root: the root directory.
        addresses: of each chunk, the block of the device where it begins.
        blocks: how many blocks the device has, below 2³².
        uuid: of the file system, 16 bytes.
        label: its volume name, at most 15 bytes.

    Raises:
        InvalidError: an inode cannot be expressed.
    """
    nodes = _lay_out(root)
    end = _place(nodes)
    image = bytearray(end)
    numbers = {id(node.inode): node.number for node in nodes}
    for node in nodes:
        _put(image, node, numbers, addresses)
    _superblock(image, len(nodes), blocks, uuid, label)
    return bytes(image)


@dataclass(slots=True, eq=False)
class _Node:
    """An inode with its place: `number` counts slots, `block` is that of its data if not inline."""

    inode: Inode
    parent: _Node | None
    links: int
    xattrs: bytes
    size: int
    layout: int
    number: int = 0
    block: int = 0

    @property
    def inside(self) -> int:
        """Bytes that follow the inode and its extended attributes."""
        if self.layout == _CHUNK_BASED:
            return 8 * len(self.inode.chunks)
        return self.size if self.layout == _INLINE else 0


def _lay_out(root: Inode) -> list[_Node]:
    """Every inode once, breadth first, with how many names it has."""
    first = _node(root, None)
    nodes, seen = [first], {id(root): first}
    for node in nodes:  # grows as it goes
        if not node.inode.is_directory:
            continue
        for name in sorted(node.inode.children):
            child = node.inode.children[name]
            known = seen.get(id(child))
            if known is None:
                known = seen[id(child)] = _node(child, node)
                nodes.append(known)
            elif child.is_directory:
                raise InvalidError("a directory of the image has two names")
            else:
                known.links += 1
            if child.is_directory:
                node.links += 1
    return nodes


def _node(inode: Inode, parent: _Node | None) -> _Node:
    xattrs = _xattrs(inode)
    size, layout = 0, _PLAIN
    match stat.S_IFMT(inode.mode):
        case stat.S_IFREG:
            expected = -(-inode.size // CHUNK)
            if len(inode.chunks) != expected:
                raise InvalidError(
                    f"a file of {inode.size} bytes has {len(inode.chunks)} chunks, not {expected}"
                )
            size, layout = inode.size, _CHUNK_BASED if inode.chunks else _PLAIN
        case stat.S_IFDIR:
            size = _directory_size(inode)
        case stat.S_IFLNK:
            size = len(inode.target)
            if not 0 < size < BLOCK:
                raise InvalidError(f"a symbolic link's target has {size} bytes, expected 1 to 4095")
    if layout == _PLAIN and 0 < size <= BLOCK - 64 - len(xattrs):
        layout = _INLINE  # it fits a block together with its inode
    links = 2 if inode.is_directory else 1
    return _Node(inode, parent, links, xattrs, size, layout)


def _place(nodes: list[_Node]) -> int:
    """Give each inode its number and each plain one its blocks; returns the image's bytes."""
    at = _FIRST * _SLOT
    for node in nodes:
        at = -(-at // _SLOT) * _SLOT
        if node.layout == _INLINE:
            # The kernel wants the tail in one block; with its inode there, one read gets both.
            whole = 64 + len(node.xattrs) + node.inside
            if at % BLOCK + whole > BLOCK:
                at = -(-at // BLOCK) * BLOCK
        node.number = at // _SLOT
        at += 64 + len(node.xattrs)
        if node.layout == _CHUNK_BASED:
            at = -(-at // 8) * 8
        at += node.inside
    block = -(-at // BLOCK)
    for node in nodes:
        if node.layout == _PLAIN and node.size and not stat.S_ISREG(node.inode.mode):
            node.block = block
            block += -(-node.size // BLOCK)
    return block * BLOCK


def _put(image: bytearray, node: _Node, numbers: dict[int, int], addresses: Sequence[int]) -> None:
    inode, at = node.inode, node.number * _SLOT
    kind = stat.S_IFMT(inode.mode)
    special = node.block
    if node.layout == _CHUNK_BASED:
        special = _CHUNK_FORMAT
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        major, minor = inode.device
        special = (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12
    struct.pack_into(
        "<HHHHQIIIIqII16x",
        image,
        at,
        1 | node.layout << 1,
        (len(node.xattrs) - 12) // 4 + 1 if node.xattrs else 0,
        inode.mode,
        0,
        node.size,
        special,
        node.number & 0xFFFFFFFF,
        inode.uid,
        inode.gid,
        inode.mtime,
        inode.nsec,
        node.links,
    )
    after = at + 64 + len(node.xattrs)
    image[at + 64 : after] = node.xattrs
    if node.layout == _CHUNK_BASED:
        after = -(-after // 8) * 8
        for position, chunk in enumerate(inode.chunks):
            fields = (0, _NOTHING) if chunk == HOLE else (1, addresses[chunk])
            struct.pack_into("<HHI", image, after + 8 * position, 0, *fields)
        return
    content = inode.target
    if inode.is_directory:
        content = _entries(node, numbers)
    start = after if node.layout == _INLINE else node.block * BLOCK
    image[start : start + len(content)] = content


def _names(inode: Inode) -> list[bytes]:
    return sorted([b".", b"..", *inode.children])


def _pages(names: list[bytes]) -> list[list[bytes]]:
    """The names of each block of a directory."""
    pages: list[list[bytes]] = [[]]
    used = 0
    for name in names:
        need = 12 + len(name)
        if used + need > BLOCK:
            pages.append([])
            used = 0
        pages[-1].append(name)
        used += need
    return pages


def _directory_size(inode: Inode) -> int:
    pages = _pages(_names(inode))
    return (len(pages) - 1) * BLOCK + sum(12 + len(name) for name in pages[-1])


def _entries(node: _Node, numbers: dict[int, int]) -> bytes:
    blocks = []
    for names in _pages(_names(node.inode)):
        entries, heap = bytearray(), bytearray()
        begin = 12 * len(names)
        for name in names:
            match name:
                case b".":
                    inode = node.inode
                case b"..":
                    inode = (node.parent or node).inode
                case _:
                    inode = node.inode.children[name]
            kind = _TYPES[stat.S_IFMT(inode.mode)]
            entries += struct.pack("<QHBx", numbers[id(inode)], begin + len(heap), kind)
            heap += name
        blocks.append(bytes(entries + heap))
    last = blocks.pop()
    return b"".join(it.ljust(BLOCK, b"\0") for it in blocks) + last


def _xattrs(inode: Inode) -> bytes:
    """The header and entries that stand behind the inode, or nothing."""
    entries = bytearray()
    for name, value in sorted(inode.xattrs.items()):
        found = next((it for it in _PREFIXES if name.startswith(it[0])), None)
        if found is None:
            raise InvalidError(f"an image's extended attribute {name!r} has no place in EROFS")
        prefix, index = found
        rest = name[len(prefix) :].encode("utf-8", "surrogateescape")
        if len(rest) > 255 or len(value) > 65535:
            raise InvalidError(f"an image's extended attribute {name[:64]!r} is too large")
        entries += struct.pack("<BBH", len(rest), index, len(value)) + rest + value
        entries += bytes(-len(entries) % 4)
    if not entries:
        return b""
    if len(entries) // 4 + 1 > 0xFFFF:
        raise InvalidError("an image's file has more extended attributes than EROFS can hold")
    return bytes(12) + bytes(entries)


def _superblock(image: bytearray, inodes: int, blocks: int, uuid: bytes, label: str) -> None:
    struct.pack_into(
        "<IIIBBHQQIIII16s16sI",
        image,
        1024,
        _MAGIC,
        0,  # checksum, below
        0x1,  # which there is
        12,
        0,
        _FIRST,
        inodes,
        0,
        0,
        len(image) // BLOCK,
        0,  # inode numbers count from the image's start
        0,
        uuid,
        label.encode()[:15],
        _CHUNKED | _DEVICE_TABLE,
    )
    struct.pack_into("<HH", image, 1024 + 86, 1, _DEVICE_SLOT)
    struct.pack_into("<II", image, _DEVICE_SLOT * 128 + 64, blocks, 0)
    struct.pack_into("<I", image, 1024 + 4, _crc32c(image[1024:BLOCK]))


def _table() -> array[int]:
    table = array("I")
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _table()


def _crc32c(data: bytes | bytearray) -> int:
    """CRC-32C from all ones, without the final inversion, as the superblock has it."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC[(value ^ byte) & 0xFF]
    return value
