"""Reads the tar archives of layers: POSIX.1-2001 (pax), ustar, and what GNU tar adds.

Python's own `tarfile` is not used here: it reads headers of any size into memory, which is right
for archives of friends. This reader bounds whatever it keeps, and knows bytes only.

Source: POSIX.1-2017 `pax`, "ustar Interchange Format"; GNU tar manual, "Storing Sparse Files".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bedstone.errors import InvalidError
from bedstone.images.decompress import LayerStream

BLOCK = 512
_SPECIAL_BYTES = 1 << 20
"""Bytes of the largest extended header or long name, as Go's archive/tar has it."""
_EXTENTS = 1 << 20
_LAST_OWNER = (1 << 32) - 2
"""The one after it means "leave the owner" to chown(2)."""
_ZERO = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."

FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_FILES = (b"0", b"\0", b"7", b"S")
_WITHOUT_CONTENT = (LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO)


@dataclass(slots=True)
class Entry:
    """One entry.

    Attributes:
        name: as it stands there: with `..`, slashes and whatever else.
        kind: FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY or FIFO.
        mode: the permission bits, with set-id and sticky bits.
        mtime: nanoseconds since the epoch.
        size: bytes of the file, its holes included.
        target: of a link: what it names, from the root; of a symbolic link: what it says.
        device: major and minor number.
        xattrs: extended attributes, by their full names.
        extents: of a sparse file: offset and bytes of what is stored, in order; else None.
        stored: bytes of content in the archive.
    """

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict)
    extents: list[tuple[int, int]] | None = None
    stored: int = 0


def entries(stream: LayerStream) -> Iterator[Entry]:
    """The entries of an archive. The content of each is read before the next, or passed by.

    Raises:
        InvalidError: it is no tar archive that a layer may be.
    """
    special: dict[bytes, bytes] = {}
    while (header := _header(stream)) is not None:
        kind = header[156:157]
        if kind in (b"x", b"g", b"L", b"K"):
            data = _special(stream, header)
            match kind:
                case b"x":
                    special.update(_records(data))
                case b"L":
                    special.setdefault(b"path", data.split(b"\0")[0])
                case b"K":
                    special.setdefault(b"linkpath", data.split(b"\0")[0])
            continue  # "g" speaks of all entries: git's archives put a comment there
        entry = _entry(stream, header, special)
        special = {}
        start = stream.position
        yield entry
        read = stream.position - start
        stream.skip(entry.stored - read + -entry.stored % BLOCK)
    stream.finish()


def _header(stream: LayerStream) -> bytes | None:
    """The next header; None at the end, which is a block of zeros or that of the stream."""
    first = stream.some(BLOCK)
    if not first:
        return None
    header = first if len(first) == BLOCK else first + stream.exactly(BLOCK - len(first))
    if header == _ZERO:
        return None
    said = _number(header[148:156], "checksum")
    plain = sum(header) - sum(header[148:156]) + 8 * 32
    # Some old writers took bytes for signed.
    if said != plain and said != plain - 256 * sum(
        byte > 127 for byte in header[:148] + header[156:]
    ):
        raise InvalidError("a layer is no tar archive: the checksum of a header is wrong")
    return header


def _special(stream: LayerStream, header: bytes) -> bytes:
    size = _number(header[124:136], "size")
    if size > _SPECIAL_BYTES:
        raise InvalidError(f"a layer has an extended header of {size} bytes")
    data = stream.exactly(size)
    stream.skip(-size % BLOCK)
    return data


def _records(data: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: `LENGTH KEYWORD=VALUE` and a line feed."""
    found: dict[bytes, bytes] = {}
    extents: list[bytes] = []
    while data:
        text, blank, _ = data[:24].partition(b" ")
        length = int(text) if text.isdigit() else 0
        record = data[len(text) + 1 : length]
        keyword, equals, value = record.partition(b"=")
        if not blank or not equals or length > len(data) or not value.endswith(b"\n"):
            raise InvalidError("a layer has a pax header that cannot be read")
        value = value[:-1]
        if keyword in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            extents.append(value)  # format 0.0 repeats the two
        elif value:
            found[keyword] = value
        else:
            found.pop(keyword, None)
        data = data[length:]
    if extents:
        found[b"GNU.sparse.map"] = b",".join(extents)
    return found


def _entry(stream: LayerStream, header: bytes, special: Mapping[bytes, bytes]) -> Entry:
    kind = header[156:157]
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        name = prefix + b"/" + name
    name = special.get(b"GNU.sparse.name", special.get(b"path", name))
    size = _decimal(special, b"size", _number(header[124:136], "size"))
    entry = Entry(
        name,
        FILE if kind in _FILES else kind,
        _number(header[100:108], "mode") & 0o7777,
        _decimal(special, b"uid", _number(header[108:116], "owner")),
        _decimal(special, b"gid", _number(header[116:124], "group")),
        _time(special.get(b"mtime"), header),
        size,
        special.get(b"linkpath", _text(header[157:257])),
        xattrs={
            keyword[len(_XATTR) :]: value
            for keyword, value in special.items()
            if keyword.startswith(_XATTR)
        },
    )
    if max(entry.uid, entry.gid) > _LAST_OWNER:
        raise InvalidError(f"a layer has an entry with owner {entry.uid}, group {entry.gid}")
    if kind == b"\0" and name.endswith(b"/"):
        entry.kind = DIRECTORY  # of Unix V7
    if entry.kind in _WITHOUT_CONTENT:
        entry.size = 0
    elif entry.kind != FILE:
        raise InvalidError(f"a layer has an entry of unknown kind {kind!r}: {name[:200]!r}")
    if entry.kind in (CHAR, BLOCK_DEVICE):
        entry.device = _number(header[329:337], "device"), _number(header[337:345], "device")
    entry.stored = entry.size
    _sparse(stream, header, special, entry)
    return entry


def _sparse(
    stream: LayerStream, header: bytes, special: Mapping[bytes, bytes], entry: Entry
) -> None:
    """Find out which parts of a file are stored."""
    if header[156:157] == b"S":
        entry.extents = _old_extents(stream, header)
        entry.size = _number(header[483:495], "size")
    elif special.get(b"GNU.sparse.major") == b"1":
        entry.extents, used = _extents_in_front(stream)
        entry.stored -= used
        entry.size = _decimal(special, b"GNU.sparse.realsize", entry.size)
    elif text := special.get(b"GNU.sparse.map"):
        numbers = [_digits(number) for number in text.split(b",")]
        entry.extents = list(zip(numbers[::2], numbers[1::2], strict=False))
        if len(numbers) % 2:
            raise InvalidError("a layer has a sparse file with a map that cannot be read")
        entry.size = _decimal(special, b"GNU.sparse.size", entry.size)
    else:
        return
    end = 0
    for offset, count in entry.extents:
        if offset < end or count < 0:
            raise InvalidError("a layer has a sparse file whose parts overlap")
        end = offset + count
    if end > entry.size or sum(count for _, count in entry.extents) != entry.stored:
        raise InvalidError("a layer has a sparse file whose parts do not make it up")


def _old_extents(stream: LayerStream, header: bytes) -> list[tuple[int, int]]:
    """GNU's old format: four in the header, 21 in each block that follows."""
    found = _pairs(header[386:482])
    more = header[482]
    while more:
        block = stream.exactly(BLOCK)
        found += _pairs(block[:504])
        more = block[504]
        if len(found) > _EXTENTS:
            raise InvalidError("a layer has a sparse file of too many parts")
    return found


def _pairs(data: bytes) -> list[tuple[int, int]]:
    return [
        (_number(offset, "offset"), _number(count, "size"))
        for offset, count in struct.iter_unpack("12s12s", data)
        if offset[0]
    ]


def _extents_in_front(stream: LayerStream) -> tuple[list[tuple[int, int]], int]:
    """Format 1.0: decimal numbers, one a line, in blocks before the content."""
    text = stream.exactly(BLOCK)
    used = BLOCK
    count = _digits(text.split(b"\n", 1)[0])
    if count > _EXTENTS:
        raise InvalidError("a layer has a sparse file of too many parts")
    pieces = [text]
    lines = text.count(b"\n")
    while lines < 1 + 2 * count:
        text = stream.exactly(BLOCK)
        used += BLOCK
        if b"\n" not in text:
            raise InvalidError("a layer has a sparse file with a map that cannot be read")
        lines += text.count(b"\n")
        pieces.append(text)
    numbers = [_digits(line) for line in b"".join(pieces).split(b"\n")[1 : 1 + 2 * count]]
    return list(zip(numbers[::2], numbers[1::2], strict=True)), used


def _text(data: bytes) -> bytes:
    return data.split(b"\0", 1)[0]


def _number(data: bytes, what: str) -> int:
    """Octal digits, or base 256 where the first bit is set."""
    if data[0] & 0x80:
        value = int.from_bytes(bytes([data[0] & 0x7F]) + data[1:], "big")
        bits = 8 * len(data) - 1
        value = value - (1 << bits) if value >> (bits - 1) else value
        if what != "time" and not 0 <= value < 1 << 63:
            raise InvalidError(f"a layer has an entry with {what} {value}")
        return value
    text = data.split(b"\0", 1)[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise InvalidError(f"a layer has an entry with {what} {text!r}") from None


def _digits(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise InvalidError(f"a layer has {text[:40]!r} where a number should be")
    return int(text)


def _decimal(special: Mapping[bytes, bytes], keyword: bytes, default: int) -> int:
    text = special.get(keyword)
    return default if text is None else _digits(text)


def _time(text: bytes | None, header: bytes) -> int:
    """Nanoseconds since the epoch."""
    if text is None:
        return _number(header[136:148], "time") * 1_000_000_000
    sign = -1 if text.startswith(b"-") else 1
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if fraction and not fraction.isdigit():
        raise InvalidError(f"a layer has an entry with time {text[:40]!r}")
    return sign * (_digits(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0")))
