from __future__ import annotations

import io
import stat

import pytest

from bedstone.errors import InvalidError
from bedstone.images.lazy.layers import read_layer
from bedstone.images.lazy.tree import CHUNK, HOLE, Inode, Merger, walk
from bedstone.testing.layers import Entry, entry, folder, hardlink, symlink, tar


class Kept:
    """A sink that keeps content."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.offsets: list[int | None] = []

    def chunk(self, content: bytes, offset: int | None) -> int:
        self.chunks.append(content)
        self.offsets.append(offset)
        return len(self.chunks) - 1

    def content(self, inode: Inode) -> bytes:
        return b"".join(self.chunks[it] for it in inode.chunks)


def merged(*layers: list[Entry]) -> tuple[dict[bytes, Inode], Kept]:
    merger, sink = Merger(), Kept()
    for layer in layers:
        read_layer(io.BytesIO(tar(layer)), merger, sink)
    return dict(walk(merger.root)), sink


def names(*layers: list[Entry]) -> list[bytes]:
    return [path for path in merged(*layers)[0] if path]


def test_layers_lie_over_each_other() -> None:
    tree, sink = merged(
        [folder("a"), entry("a/one", b"1"), entry("a/two", b"2")],
        [entry("a/two", b"new", mode=0o600, owner=(5, 6))],
    )
    assert sorted(tree) == [b"", b"a", b"a/one", b"a/two"]
    assert sink.content(tree[b"a/two"]) == b"new"
    assert tree[b"a/two"].mode == stat.S_IFREG | 0o600
    assert (tree[b"a/two"].uid, tree[b"a/two"].gid) == (5, 6)


def test_a_whiteout_hides_a_lower_file_and_directory() -> None:
    base = [folder("a"), entry("a/one"), folder("b"), entry("b/x")]
    assert names(base, [entry("a/.wh.one"), entry(".wh.b")]) == [b"a"]


def test_a_whiteout_leaves_what_its_own_layer_adds_whatever_the_order() -> None:
    base = [folder("a"), entry("a/old"), folder("a/sub"), entry("a/sub/old")]
    first = [entry(".wh.a"), folder("a"), entry("a/new")]
    last = [folder("a"), entry("a/new"), entry(".wh.a")]
    assert names(base, first) == names(base, last) == [b"a", b"a/new"]


def test_an_opaque_directory_shows_its_own_layer_only_however_deep() -> None:
    base = [folder("a"), entry("a/old"), folder("a/sub"), entry("a/sub/old")]
    first = [folder("a"), entry("a/.wh..wh..opq"), entry("a/sub/new")]
    last = [folder("a"), entry("a/sub/new"), entry("a/.wh..wh..opq")]
    assert names(base, first) == names(base, last) == [b"a", b"a/sub", b"a/sub/new"]


def test_a_whiteout_of_nothing_is_nothing() -> None:
    assert names([entry(".wh.none"), entry("x/.wh.none"), entry("y")]) == [b"y"]


def test_a_directory_over_a_directory_keeps_its_entries_and_takes_the_attributes() -> None:
    tree, _ = merged([folder("a"), entry("a/x")], [folder("a", mode=0o700)])
    assert tree[b"a"].mode == stat.S_IFDIR | 0o700
    assert b"a/x" in tree


@pytest.mark.parametrize("over", [entry("a", b"file"), symlink("a", "b")])
def test_other_kinds_replace_each_other(over: Entry) -> None:
    assert names([folder("a"), entry("a/x")], [over]) == [b"a"]
    assert names([over], [folder("a"), entry("a/x")]) == [b"a", b"a/x"]


def test_parents_follow_symbolic_links_within_the_image() -> None:
    base = [folder("usr/lib"), symlink("lib", "usr/lib"), symlink("up", "/../../usr")]
    shown = names(base, [entry("lib/x"), entry("up/y"), entry("../../z")])
    assert {b"usr/lib/x", b"usr/y", b"z"} <= set(shown)


def test_a_loop_of_symbolic_links_is_refused() -> None:
    with pytest.raises(InvalidError, match="goes round"):
        merged([symlink("a", "b"), symlink("b", "a"), entry("a/x")])


def test_a_file_among_the_parents_is_refused() -> None:
    with pytest.raises(InvalidError, match="file among"):
        merged([entry("a"), entry("a/x")])


def test_hard_links_are_one_file_also_over_layers() -> None:
    tree, _ = merged([entry("a", b"1")], [hardlink("b", "a")], [entry("a", b"2")])
    assert tree[b"a"] is not tree[b"b"]
    tree, _ = merged([entry("a", b"1")], [hardlink("d/b", "a")])
    assert tree[b"a"] is tree[b"d/b"]


@pytest.mark.parametrize("target", ["none", "d", "."])
def test_a_hard_link_to_no_file_is_refused(target: str) -> None:
    with pytest.raises(InvalidError, match="no file there"):
        merged([folder("d"), hardlink("b", target)])


def test_a_file_is_cut_into_chunks_and_zeros_are_holes() -> None:
    content = b"a" * CHUNK + bytes(CHUNK) + b"b" * 10
    tree, sink = merged([entry("x", content), entry("z", bytes(5))])
    assert list(tree[b"x"].chunks) == [0, HOLE, 1]
    assert sink.chunks == [b"a" * CHUNK, b"b" * 10]
    assert list(tree[b"z"].chunks) == [HOLE]


def test_a_chunk_says_where_it_is_in_the_tar() -> None:
    layer = tar([entry("x", b"hello"), entry("y", b"w" * (CHUNK + 3))])
    sink = Kept()
    read_layer(io.BytesIO(layer), Merger(), sink)
    for content, offset in zip(sink.chunks, sink.offsets, strict=True):
        assert offset is not None
        assert layer[offset : offset + len(content)] == content


def test_times_are_exact_to_the_nanosecond() -> None:
    tree, _ = merged(
        [entry("a", mtime="1700000000.123456789"), entry("b", mtime="-1.25"), entry("c")]
    )
    times = [(tree[name].mtime, tree[name].nsec) for name in (b"a", b"b", b"c")]
    assert times == [(1700000000, 123456789), (-2, 750000000), (0, 0)]


def test_extended_attributes_come_along_but_not_orders_to_overlayfs() -> None:
    given = {
        "user.a": b"1",
        "security.capability": bytes(range(20)),
        "trusted.overlay.redirect": b"/etc",
        "user.overlay.opaque": b"y",
        "com.apple.quarantine": b"x",
    }
    tree, _ = merged([entry("x", xattrs=given)])
    assert dict(tree[b"x"].xattrs) == {"user.a": b"1", "security.capability": bytes(range(20))}


@pytest.mark.parametrize("data", [b"no tar" * 200, tar([entry("x", b"1" * 5000)])[:2000]])
def test_what_is_no_whole_tar_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        read_layer(io.BytesIO(data), Merger(), Kept())
