from __future__ import annotations

import errno
import struct

import pytest

from bedstone.errors import InvalidError
from bedstone.images.lazy import fuse

TREE = fuse.Tree([fuse.File("device", 10_000), fuse.File("other", 5)])


def asked(op: int, node: int = 1, body: bytes = b"") -> fuse.Request:
    head = struct.pack("<IIQQIIIHH", 40 + len(body), op, 77, node, 0, 0, 0, 0, 0)
    return fuse.request(head + body)


def answered(op: int, node: int = 1, body: bytes = b"") -> tuple[int, bytes]:
    """The errno and the body of an answer, whose head is checked."""
    answer = TREE.answer(asked(op, node, body))
    assert isinstance(answer, list)
    whole = b"".join(answer)
    length, number, unique = struct.unpack_from("<IiQ", whole)
    assert (length, unique) == (len(whole), 77)
    return -number, whole[16:]


def read(offset: int, size: int, node: int = 2) -> fuse.ReadFile | list[bytes | memoryview] | None:
    return TREE.answer(
        asked(fuse.Op.READ, node, struct.pack("<QQIIQII", 0, offset, size, *[0] * 4))
    )


def test_init_agrees_on_what_both_know() -> None:
    body = struct.pack("<IIIII44x", 7, 45, 131072, 0xFFFFFFFF, 0xFFFFFFFF)
    answer, can = fuse.init(asked(fuse.Op.INIT, 0, body))
    assert len(answer) == 64
    assert can
    major, minor, readahead, flags = struct.unpack_from("<IIII", answer)
    assert (major, minor, readahead) == (7, 39, 131072)
    assert flags & 1 << 22
    assert not flags & 1 << 16, "a write-back cache is for who writes"


def test_init_of_an_old_kernel() -> None:
    with pytest.raises(InvalidError, match=r"7\.26"):
        fuse.init(asked(fuse.Op.INIT, 0, struct.pack("<IIII", 7, 26, 0, 0)))
    _, can = fuse.init(asked(fuse.Op.INIT, 0, struct.pack("<IIII", 7, 31, 0, 0)))
    assert not can


def test_names_are_found_in_the_root_only() -> None:
    number, entry = answered(fuse.Op.LOOKUP, 1, b"device\0")
    assert (number, len(entry), struct.unpack_from("<Q", entry)[0]) == (0, 128, 2)
    assert answered(fuse.Op.LOOKUP, 1, b"none\0")[0] == errno.ENOENT
    assert answered(fuse.Op.LOOKUP, 2, b"device\0")[0] == errno.ENOENT


def test_attributes() -> None:
    number, body = answered(fuse.Op.GETATTR, 2)
    assert (number, len(body)) == (0, 104)
    assert struct.unpack_from("<QQ", body, 16) == (2, 10_000)
    assert answered(fuse.Op.GETATTR, 9)[0] == errno.ENOENT
    assert answered(fuse.Op.STATFS)[0] == 0
    assert len(answered(fuse.Op.STATFS)[1]) == 80


def test_reads_end_with_the_file() -> None:
    assert read(0, 4096) == fuse.ReadFile("device", 0, 4096)
    assert read(8192, 4096) == fuse.ReadFile("device", 8192, 1808)
    assert read(10_000, 4096) == fuse.reply(77)
    assert read(1 << 40, 4096) == fuse.reply(77)
    assert read(0, 4096, 3) == fuse.ReadFile("other", 0, 5)
    assert read(0, 4096, 1) == fuse.refusal(77, errno.ENOENT)


def test_a_directory_is_listed_by_pieces() -> None:
    names, offset = [], 0
    while True:
        body = struct.pack("<QQIIQII", 0, offset, 64, *[0] * 4)
        _, listed = answered(fuse.Op.READDIR, 1, body)
        if not listed:
            break
        at = 0
        while at < len(listed):
            node, offset, length, _ = struct.unpack_from("<QQII", listed, at)
            names.append((node, listed[at + 24 : at + 24 + length]))
            at += (24 + length + 7) // 8 * 8
    assert names == [(1, b"."), (1, b".."), (2, b"device"), (3, b"other")]


def test_what_is_not_known_is_refused_and_what_awaits_nothing_gets_nothing() -> None:
    for op in (9, 16, 22, 46, 999):
        assert answered(op)[0] == errno.ENOSYS
    for op in (fuse.Op.FORGET, fuse.Op.BATCH_FORGET, fuse.Op.INTERRUPT):
        assert TREE.answer(asked(op)) is None


@pytest.mark.parametrize("data", [b"", b"short", bytes(40), struct.pack("<I", 99) + bytes(50)])
def test_what_is_no_request_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        fuse.request(data)
