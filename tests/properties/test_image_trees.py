"""The two ways to merge layers, to a directory and to a tree in memory, make the same tree."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bedstone.errors import InvalidError
from bedstone.images.lazy.layers import read_layer
from bedstone.images.lazy.tree import HOLE, Merger, walk
from bedstone.images.unpacking import Unpacker
from bedstone.testing.layers import Entry, entry, folder, hardlink, symlink, tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")

_PATHS = st.sampled_from(
    [
        *("a", "b", "a/b", "a/b/c", "b/c", "c/a", "a/../b", "/b", "./a/", "../a"),
        *("c/../../a", "a/b/../c", "d/e/f", "d/e", "d"),
    ]
)
_HIDDEN = st.sampled_from(
    [
        *(".wh.a", ".wh.b", "a/.wh.b", "a/.wh.c", "a/b/.wh.c", "d/.wh.e", "d/e/.wh.f", "b/.wh.c"),
        *(".wh..wh..opq", "a/.wh..wh..opq", "d/.wh..wh..opq", "d/e/.wh..wh..opq"),
        ".wh..wh.plnk",
    ]
)
_TARGETS = st.sampled_from(["b", "a", "/a", "../a", "/d/e", "..", "none", "a/b", "."])
_MODES = st.sampled_from([0o755, 0o700, 0o4711, 0o1777])


@st.composite
def _entries(draw: st.DrawFn) -> Entry:
    match draw(st.integers(0, 7)):
        case 0 | 1:
            content = draw(st.sampled_from([b"", b"x", b"more"]))
            owner = draw(st.sampled_from([(0, 0), (5, 6)]))
            return entry(draw(_PATHS), content, mode=draw(_MODES), owner=owner, mtime="7.5")
        case 2 | 3:
            return folder(draw(_PATHS), draw(_MODES))
        case 4:
            return symlink(draw(_PATHS), draw(_TARGETS))
        case 5:
            return hardlink(draw(_PATHS), draw(_PATHS))
        case _:
            return entry(draw(_HIDDEN))


class _Chunks:
    """Keeps chunks by their numbers."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    def chunk(self, content: bytes, offset: int | None) -> int:
        self.contents.append(content)
        return len(self.contents) - 1


def in_memory(layers: list[bytes]) -> dict[str, Any]:
    merger, chunks = Merger(), _Chunks()
    for layer in layers:
        read_layer(io.BytesIO(layer), merger, chunks)
    found: dict[str, Any] = {}
    for path, inode in walk(merger.root):
        content: Any = inode.target
        if stat.S_ISREG(inode.mode):
            content = b"".join(
                b"\0" if number == HOLE else chunks.contents[number] for number in inode.chunks
            )
        time = inode.mtime * 1_000_000_000 + inode.nsec
        found[path.decode()] = [inode.mode, inode.uid, inode.gid, time, content, id(inode)]
    return named(found)


def on_disk(root: Path, layers: list[bytes]) -> dict[str, Any]:
    with Unpacker(root) as unpacker:
        for layer in layers:
            unpacker.layer(io.BytesIO(layer), "")
        unpacker.finish()
    found: dict[str, Any] = {}
    for path in [root, *root.rglob("*")]:
        state = path.lstat()
        content = b""
        if stat.S_ISREG(state.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(state.st_mode):
            content = os.fsencode(path.readlink())
        name = "" if path == root else str(path.relative_to(root))
        time = state.st_mtime_ns
        found[name] = [state.st_mode, state.st_uid, state.st_gid, time, content, state.st_ino]
    return named(found)


def named(found: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Inodes as the names that they have; numbers differ."""
    names: dict[int, list[str]] = {}
    for name, facts in sorted(found.items()):
        names.setdefault(facts[-1], []).append(name)
    return {name: (*facts[:-1], names[facts[-1]]) for name, facts in found.items()}


def attempt(make: Any, *arguments: Any) -> Any:
    try:
        return make(*arguments)
    except InvalidError:
        return "refused"


@settings(max_examples=250)
@given(st.lists(st.lists(_entries(), max_size=6), min_size=1, max_size=3))
@example([[entry("a/b/c", b"1")], [entry("a", b"file"), entry("a/b/.wh.c"), entry("a/.wh.b")]])
@example([[folder("a")], [entry("none/.wh.x")]])
def test_both_make_the_same_tree(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[Entry]]
) -> None:
    layers = [tar(part) for part in parts]
    root = tmp_path_factory.mktemp("tree") / "root"
    assert attempt(on_disk, root, layers) == attempt(in_memory, layers)
