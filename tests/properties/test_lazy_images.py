"""Trees of any shape, written as EROFS and read back by the kernel and by erofs-utils.

Layers of any entries give the tree that a simple model of the rules gives.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.images.lazy import erofs, kernel
from bedstone.images.lazy.layers import read_layer
from bedstone.images.lazy.mounting import best
from bedstone.images.lazy.tree import CHUNK, HOLE, Inode, Merger, directory, walk
from bedstone.testing.layers import Entry, entry, folder, tar

NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"-", b".a", b"...", b"\xff\xfe"]),
    st.binary(min_size=1, max_size=255).filter(
        lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
    ),
)
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.long" + "g" * 200, "trusted.t", "security.t"]),
    st.binary(max_size=2000),
    max_size=3,
)


@st.composite
def inodes(draw: st.DrawFn, depth: int = 0) -> Inode:
    """A file of any kind; contents are chunk numbers for `addresses` to give out."""
    kinds = [stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK]
    kind = draw(st.sampled_from(kinds if depth > 2 else [*kinds, stat.S_IFDIR, stat.S_IFDIR]))
    inode = Inode(
        kind | draw(st.integers(0, 0o7777)),
        draw(st.integers(0, 2**32 - 2)),
        draw(st.integers(0, 2**32 - 2)),
        draw(st.integers(-(2**33), 2**40)),
        draw(st.integers(0, 999_999_999)),
    )
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        inode.xattrs = draw(XATTRS)
    match kind:
        case stat.S_IFREG:
            inode.size = draw(st.sampled_from([0, 1, 4096, CHUNK, CHUNK + 1, 3 * CHUNK, 10**12]))
            if inode.size == 10**12:
                inode.size = draw(st.integers(0, 20 * CHUNK))
            count = -(-inode.size // CHUNK)
            inode.chunks = draw(
                st.lists(st.sampled_from([HOLE, 0, 1, 2]), min_size=count, max_size=count)
            )
        case stat.S_IFLNK:
            inode.target = draw(st.binary(min_size=1, max_size=4095).filter(lambda it: 0 not in it))
        case stat.S_IFCHR:
            inode.device = draw(st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)))
        case stat.S_IFDIR:
            inode.children = draw(st.dictionaries(NAMES, inodes(depth + 1), max_size=4))
    return inode


@st.composite
def trees(draw: st.DrawFn) -> Inode:
    root = directory(draw(st.integers(0, 0o7777)))
    root.children = draw(st.dictionaries(NAMES, inodes(), max_size=6))
    for number in range(draw(st.sampled_from([0, 0, 300]))):
        root.children[b"many-%05d" % number] = Inode(stat.S_IFREG | 0o644)
    files = [(path, it) for path, it in walk(root) if path and not it.is_directory]
    if files:
        for number in range(draw(st.integers(0, 3))):
            root.children[b"hard-%d" % number] = draw(st.sampled_from(files))[1]
    return root


CONTENT = [bytes([65 + it]) * CHUNK for it in range(3)]
DEVICE = b"".join(CONTENT)
ADDRESSES = [it * CHUNK // erofs.BLOCK for it in range(3)]


def written(root: Inode) -> bytes:
    return erofs.write(root, ADDRESSES, len(DEVICE) // erofs.BLOCK)


@pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="needs Debian's erofs-utils")
@settings(max_examples=40)
@given(trees())
def test_erofs_utils_find_no_fault(root: Inode) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        image, device = Path(scratch, "image"), Path(scratch, "device")
        image.write_bytes(written(root))
        device.write_bytes(DEVICE)
        done = subprocess.run(
            ["fsck.erofs", f"--device={device}", str(image)], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(best()[0] != "erofs", reason=best()[1])
@settings(max_examples=60)
@given(trees())
def test_the_kernel_shows_the_tree_that_was_written(root: Inode) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        image, device, target = (Path(scratch, name) for name in ("image", "device", "target"))
        image.write_bytes(written(root))
        device.write_bytes(DEVICE)
        target.mkdir()
        kernel.mount(str(image), target, "erofs", kernel.MS_RDONLY, f"device={device}")
        try:
            compare(os.fsencode(target), root)
        finally:
            kernel.unmount(target)


def compare(top: bytes, root: Inode) -> None:
    """Every fact of every file; and no file more."""
    same: dict[int, set[int]] = {}
    names = [path for path, _ in walk(root)]
    for path, inode in walk(root):
        there = os.path.join(top, path)  # noqa: PTH118 (bytes)
        found = os.lstat(there)
        assert found.st_mode == inode.mode
        assert (found.st_uid, found.st_gid) == (inode.uid, inode.gid)
        assert found.st_mtime_ns == inode.mtime * 10**9 + inode.nsec
        shown = {
            key: os.getxattr(there, key, follow_symlinks=False)
            for key in os.listxattr(there, follow_symlinks=False)
        }
        assert shown == inode.xattrs
        same.setdefault(id(inode), set()).add(found.st_ino)
        match stat.S_IFMT(inode.mode):
            case stat.S_IFREG:
                with open(there, "rb") as file:  # noqa: PTH123 (bytes)
                    assert file.read() == b"".join(
                        bytes(CHUNK) if it == HOLE else CONTENT[it] for it in inode.chunks
                    )[: inode.size].ljust(inode.size, b"\0")
            case stat.S_IFLNK:
                assert os.readlink(there) == inode.target  # noqa: PTH115 (bytes)
            case stat.S_IFCHR:
                assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == inode.device
            case stat.S_IFDIR:
                assert sorted(os.listdir(there)) == sorted(inode.children)  # noqa: PTH208 (bytes)
                assert found.st_nlink == 2 + sum(
                    child.is_directory for child in inode.children.values()
                )
                continue
        assert found.st_nlink == sum(it is inode for _, it in walk(root))
    assert len(names) == len(set(names))
    assert all(len(numbers) == 1 for numbers in same.values())
    assert len(set().union(*same.values())) == len(same)


PATHS = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)


@st.composite
def layers(draw: st.DrawFn) -> list[Entry]:
    """Files, directories and whiteouts over few names, so that they meet."""
    found: dict[str, Entry] = {}
    for path in draw(st.lists(PATHS, max_size=6, unique=True)):
        parents = [path.rsplit("/", it)[0] for it in range(1, path.count("/") + 1)]
        if any(parent in found and not found[parent][0].isdir() for parent in parents):
            continue
        if any(known.startswith(path + "/") for known in found):
            continue
        kind = draw(st.sampled_from(["file", "folder", "hide", "opaque"]))
        head, _, name = path.rpartition("/")
        prefix = head + "/" if head else ""
        match kind:
            case "file":
                found[path] = entry(path, draw(st.binary(max_size=3)))
            case "folder":
                found[path] = folder(path, draw(st.sampled_from([0o700, 0o755])))
            case "hide":
                found[f"{prefix}.wh.{name}"] = entry(f"{prefix}.wh.{name}")
            case "opaque":
                found[path] = folder(path)
                found[f"{path}/.wh..wh..opq"] = entry(f"{path}/.wh..wh..opq")
    # Parents first, as archives are; whiteouts anywhere.
    order = draw(st.permutations(list(found.values())))
    return sorted(order, key=lambda it: not it[0].isdir())


Model = dict[str, str]


def over(lower: Model, layer: list[Entry]) -> Model:
    """The rules, told by whole layers: hide first, then add."""
    seen = dict(lower)
    for info, _ in layer:
        head, _, name = info.name.rpartition("/")
        if name == ".wh..wh..opq":
            seen = {path: it for path, it in seen.items() if not path.startswith(head + "/")}
        elif name.startswith(".wh."):
            gone = f"{head}/{name[4:]}" if head else name[4:]
            seen = {
                path: it
                for path, it in seen.items()
                if path != gone and not path.startswith(gone + "/")
            }
    for info, content in layer:
        if "/.wh." in "/" + info.name:
            continue  # it makes nothing, its directory neither
        if info.isdir():
            if not seen.get(info.name, "d").startswith("d"):
                del seen[info.name]
            seen[info.name] = f"d{info.mode:o}"
            head = info.name.rpartition("/")[0]
        else:
            seen = {path: it for path, it in seen.items() if not path.startswith(info.name + "/")}
            seen[info.name] = "f" + content.hex()
            head = info.name.rpartition("/")[0]
        while head:
            seen.setdefault(head, "d755")
            head = head.rpartition("/")[0]
    return seen


class Kept:
    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def chunk(self, content: bytes, offset: int | None) -> int:
        self.chunks.append(content)
        return len(self.chunks) - 1


@settings(max_examples=200)
@given(st.lists(layers(), min_size=1, max_size=4))
def test_layers_give_the_tree_of_the_rules(stack: list[list[Entry]]) -> None:
    expected: Model = {}
    merger, sink = Merger(), Kept()
    for layer in stack:
        lower = expected
        # A layer whose file stands where it needs a directory is refused: not the model's matter.
        for info, _ in layer:
            parts = info.name.split("/")[:-1]
            heads = ["/".join(parts[: it + 1]) for it in range(len(parts))]
            if any(lower.get(head, "d").startswith("f") for head in heads):
                return
        expected = over(lower, layer)
        read_layer(io.BytesIO(tar(layer)), merger, sink)
    shown = {
        path.decode(): f"d{stat.S_IMODE(inode.mode):o}"
        if inode.is_directory
        else "f"
        + b"".join(
            bytes(inode.size) if it == HOLE else sink.chunks[it] for it in inode.chunks
        ).hex()
        for path, inode in walk(merger.root)
        if path
    }
    assert shown == expected
