"""Unpacking layers: what archives say, what layers hide, and attempts to leave the directory."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.errors import InvalidError, UnavailableError, VerificationError
from bedstone.images import digests, tar
from bedstone.images.decompress import LayerStream
from bedstone.images.unpacking import Unpacked, Unpacker, UnpackLimits

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root can make devices and give files away")
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", **more: Any) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    info.mtime = 1_000_000_000
    xattrs = more.pop("xattrs", {})
    for key, value in more.items():
        setattr(info, key, value)
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs.items()}
    return info, data


def folder(name: str, mode: int = 0o755, **more: Any) -> Entry:
    return entry(name, type=tarfile.DIRTYPE, mode=mode, **more)


def symlink(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hardlink(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def archive(entries: Iterable[Entry], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for info, data in entries:
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def unpack(target: Path, *layers: Iterable[Entry] | bytes, **options: Any) -> Unpacked:
    with Unpacker(target, **options) as unpacker:
        for layer in layers:
            data = layer if isinstance(layer, bytes) else archive(layer)
            unpacker.layer(io.BytesIO(data), "", digests.of(data))
        return unpacker.finish()


def names(target: Path) -> set[str]:
    return {str(path.relative_to(target)) for path in target.rglob("*")}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "outer" / "root"


def test_files_are_as_the_archive_says(target: Path) -> None:
    unpacked = unpack(
        target,
        [
            folder("./", mode=0o750, mtime=5),
            folder("etc", mode=0o500),
            entry("etc/passwd", b"root", mode=0o640, mtime=1234567890.25),
            entry("/usr/bin/su", b"su", mode=0o4755),
            symlink("bin", "usr/bin"),
            hardlink("etc/again", "etc/passwd"),
            entry("fifo", type=tarfile.FIFOTYPE, mode=0o600),
            entry("etc/marked", b"x", xattrs={"user.mark": "value"}),
        ],
    )
    assert unpacked.left_out == ()
    assert unpacked.owners_kept == ROOT
    found = (target / "etc/passwd").stat()
    assert (target / "etc/passwd").read_bytes() == b"root"
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert found.st_mtime_ns == 1234567890_250000000
    assert found.st_nlink == 2
    assert stat.S_IMODE((target / "usr/bin/su").stat().st_mode) == 0o4755
    assert (target / "bin").readlink() == Path("usr/bin")
    assert stat.S_ISFIFO((target / "fifo").stat().st_mode)
    assert os.getxattr(target / "etc/marked", "user.mark") == b"value"
    assert stat.S_IMODE((target / "etc").stat().st_mode) == 0o500
    assert (target / "etc").stat().st_mtime == 1_000_000_000
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    assert target.stat().st_mtime == 5
    assert stat.S_IMODE((target / "usr").stat().st_mode) == 0o755


@needs_root
def test_owners_and_devices_are_kept_as_root(target: Path) -> None:
    unpacked = unpack(
        target,
        [
            folder("home/ann", uid=1000, gid=1001),
            entry("home/ann/file", b"x", uid=70000, gid=2_000_000, mode=0o2755),
            entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
            entry("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=300),
        ],
    )
    assert unpacked.owners_kept
    assert ((target / "home/ann").stat().st_uid, (target / "home/ann").stat().st_gid) == (
        1000,
        1001,
    )
    found = (target / "home/ann/file").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (70000, 2_000_000, 0o2755)
    null = (target / "null").stat()
    assert stat.S_ISCHR(null.st_mode)
    assert null.st_rdev == os.makedev(1, 3)
    assert (target / "disk").stat().st_rdev == os.makedev(8, 300)


@needs_root
def test_without_root_owners_are_the_users_and_that_is_said() -> None:
    """In another process, which is nobody, and below no directory of root's alone."""
    data = archive(
        [
            folder("etc", mode=0o500, uid=0),
            entry("etc/passwd", b"root", uid=0, mode=0o400),
            entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
            hardlink("zero", "null"),
            entry("cap", b"x", xattrs={"security.capability": "x", "trusted.x": "y"}),
        ]
    )
    program = """
import io, os, sys
from pathlib import Path
from bedstone.images.unpacking import Unpacker
data = sys.stdin.buffer.read()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with Unpacker(Path(sys.argv[1])) as unpacker:
    unpacker.layer(io.BytesIO(data), "")
    unpacker.layer(io.BytesIO(data), "")
    done = unpacker.finish()
print(done.owners_kept, done.left_out_count, *done.left_out, sep="\\n")
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chown(place, 65534, 65534)
        command = [sys.executable, "-c", program, f"{place}/root"]
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        kept, count, *left_out = done.stdout.decode().splitlines()
        assert kept == "False"
        assert int(count) == 8
        assert left_out[0].startswith("device null: only root")
        assert left_out[1].startswith("device zero: only root")
        assert "attribute security.capability of cap" in left_out[2]
        found = Path(place, "root/etc/passwd").stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (65534, 0o400)
        assert not Path(place, "root/null").exists()


# Layers over layers


def test_whiteouts_hide_lower_layers_and_nothing_else(target: Path) -> None:
    unpack(
        target,
        [entry("a/gone", b"1"), entry("a/stays", b"1"), entry("b/c/d", b"1"), entry("top", b"1")],
        [
            entry("a/new", b"2"),
            entry("a/.wh.gone"),
            entry("a/.wh.new"),  # in its own layer: hides nothing there
            entry(".wh.b"),
            entry(".wh.never-was"),
        ],
    )
    assert names(target) == {"a", "a/stays", "a/new", "top"}


def test_a_whiteout_before_what_replaces_it(target: Path) -> None:
    unpack(target, [entry("a/x", b"1")], [entry(".wh.a"), entry("a", b"file")])
    assert (target / "a").read_bytes() == b"file"


@pytest.mark.parametrize("first", [True, False])
def test_an_opaque_directory_hides_all_of_lower_layers(target: Path, *, first: bool) -> None:
    opaque = entry("a/.wh..wh..opq")
    added = [folder("a"), entry("a/new", b"2"), entry("a/deep/new", b"2")]
    unpack(
        target,
        [entry("a/old", b"1"), entry("a/deep/old", b"1"), entry("a/other/x", b"1")],
        [added[0], opaque, *added[1:]] if first else [*added, opaque],
    )
    assert names(target) == {"a", "a/new", "a/deep", "a/deep/new"}


def test_a_whiteout_where_nothing_is_hides_nothing_and_makes_nothing(target: Path) -> None:
    unpack(
        target,
        [entry("a/b/c", b"1")],
        [entry("a", b"a file now"), entry("a/.wh.b"), entry("a/b/.wh.c"), entry("no/.wh.x")],
    )
    assert names(target) == {"a"}


def test_an_entry_below_a_file_is_refused(target: Path) -> None:
    with pytest.raises(InvalidError, match="no directory"):
        unpack(target, [entry("a", b"1"), entry("a/b", b"2")])


def test_an_opaque_root(target: Path) -> None:
    unpack(target, [entry("a/b", b"1")], [entry(".wh..wh..opq"), entry("c", b"2")])
    assert names(target) == {"c"}


def test_what_aufs_kept_for_itself_is_left_out(target: Path) -> None:
    unpack(target, [entry("a", b"1"), entry(".wh..wh.plnk", b""), folder(".wh..wh.orph")])
    assert names(target) == {"a"}


@pytest.mark.parametrize("name", [".wh.", ".wh..", "a/.wh..", ".wh..."])
def test_a_whiteout_of_no_name_or_of_a_parent_is_refused(target: Path, name: str) -> None:
    with pytest.raises(InvalidError, match="whiteout"):
        unpack(target, [entry("a/b", b"1")], [entry(name)])


def test_kinds_replace_each_other_and_directories_merge(target: Path) -> None:
    unpack(
        target,
        [folder("d", mode=0o700), entry("d/x", b"1"), entry("f", b"1"), symlink("l", "d")],
        [folder("d", mode=0o711), folder("f"), entry("f/in", b"2"), entry("l", b"file")],
        [entry("d", b"now a file")],
        [folder("d"), symlink("d/y", "x")],
    )
    assert names(target) == {"d", "d/y", "f", "f/in", "l"}
    assert stat.S_IMODE((target / "d").stat().st_mode) == 0o755
    assert (target / "l").read_bytes() == b"file"


def test_a_file_over_one_with_two_names_leaves_the_other(target: Path) -> None:
    unpack(
        target,
        [entry("a", b"old"), hardlink("b", "a")],
        [entry("a", b"new"), hardlink("c", "b"), hardlink("b", "b")],
    )
    assert (target / "a").read_bytes() == b"new"
    assert (target / "b").read_bytes() == b"old"
    assert (target / "b").stat().st_ino == (target / "c").stat().st_ino


def test_entries_go_through_links_of_lower_layers(target: Path) -> None:
    unpack(
        target,
        [folder("usr/lib"), symlink("lib", "/usr/lib"), symlink("up", "../../usr")],
        [entry("lib/x.so", b"1"), entry("up/lib/y.so", b"2"), entry("gone/../usr/z", b"3")],
    )
    assert (target / "lib").is_symlink()
    assert {"usr/lib/x.so", "usr/lib/y.so", "usr/z"} <= names(target)


def test_entries_behind_a_link_that_leads_nowhere_go_where_it_leads(target: Path) -> None:
    unpack(target, [symlink("a", "/b/c"), entry("a/x", b"1")])
    assert (target / "b/c/x").read_bytes() == b"1"


# Attempts to leave


ESCAPES: list[list[Entry]] = [
    [entry("../outside", b"evil")],
    [entry("/../../outside", b"evil")],
    [entry("a/../../outside", b"evil")],
    [symlink("a", ".."), entry("a/outside", b"evil")],
    [symlink("a", "../.."), entry("a/outer/outside", b"evil")],
    [symlink("a", "OUTER"), entry("a/outside", b"evil")],
    [symlink("a", "OUTER/outside"), entry("a", b"evil")],
    [symlink("a", "b"), symlink("b", "OUTER"), entry("a/outside", b"evil")],
    [folder("a"), symlink("a/b", "../../.."), entry("a/b/outer/outside", b"evil")],
    [hardlink("a", "../outside"), entry("a", b"evil")],
    [hardlink("a", "OUTER/outside"), entry("a", b"evil")],
    [symlink("l", "OUTER"), hardlink("a", "l/outside"), entry("a", b"evil")],
    [symlink("l", "OUTER/outside"), hardlink("a", "l"), entry("a", b"evil")],
    [symlink("l", ".."), entry("l/.wh.outside")],
    [symlink("l", ".."), entry("l/.wh..wh..opq")],
    [symlink("l", "OUTER"), entry("l/.wh.outside")],
    [entry("../.wh.outside")],
    [entry(".wh./../outside")],
    [folder("l"), entry("l/x", b""), symlink("l", ".."), entry("l/outside", b"evil")],
    [symlink("/proc", "/proc"), entry("/proc/self/root/OUTER/outside", b"evil")],
    [folder("..", mode=0o777)],
    [symlink("l", ".."), folder("l", mode=0o777)],
    [symlink("a", "a"), entry("a/outside", b"evil")],
    [entry("outside\0/x", b"evil")],
]


@pytest.mark.parametrize("number", range(len(ESCAPES)))
@pytest.mark.parametrize("together", [True, False])
def test_nothing_leaves_the_directory(target: Path, number: int, *, together: bool) -> None:
    outer = target.parent
    outer.mkdir()
    (outer / "outside").write_bytes(b"good")
    before = outer.stat()
    entries = []
    for info, data in ESCAPES[number]:
        info.name = info.name.replace("OUTER", str(outer))
        info.linkname = info.linkname.replace("OUTER", str(outer))
        entries.append((info, data))
    layers = [entries] if together else [[one] for one in entries]
    with contextlib.suppress(InvalidError):
        unpack(target, *layers)
    assert (outer / "outside").read_bytes() == b"good"
    assert (outer / "outside").stat().st_nlink == 1
    assert {path.name for path in outer.iterdir()} == {"outside", "root"}
    assert outer.stat().st_mode == before.st_mode
    assert {path.name for path in outer.parent.iterdir()} == {"outer"}


def test_nothing_is_written_through_what_the_archive_put_there(
    target: Path, tmp_path: Path
) -> None:
    """A FIFO or a device in the place of a file would block, or worse."""
    unpack(target, [entry("p", type=tarfile.FIFOTYPE)], [entry("p", b"data"), symlink("s", "p")])
    assert (target / "p").read_bytes() == b"data"


_NAMES = st.sampled_from(
    [
        b"a",
        b"b",
        b"..",
        b".",
        b"a/b",
        b"/a",
        b"a/../b",
        b"../a",
        b".wh.a",
        b".wh..wh..opq",
        b"a/.wh.b",
    ]
)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
            _NAMES,
            _NAMES,
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_whatever_a_layer_holds_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bytes, bytes, bytes, bool]]
) -> None:
    outer = tmp_path_factory.mktemp("outer")
    layers: list[list[Entry]] = [[]]
    for kind, name, other, cut in steps:
        layers[-1].append(entry(name.decode(), type=kind, linkname=other.decode()))
        if cut:
            layers.append([])
    with contextlib.suppress(InvalidError, UnavailableError):
        unpack(outer / "root", *layers)
    assert [path.name for path in outer.iterdir()] == ["root"]


# Archives of others


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_compressions(target: Path, compression: str) -> None:
    data = archive([entry("big", bytes(range(256)) * 4000), entry("zero", bytes(1 << 20))])
    half = len(data) // 2
    blob = {
        "": lambda: data,
        "gzip": lambda: gzip.compress(data[:half]) + gzip.compress(data[half:]),
        # Between frames one that is to be skipped, as zstd:chunked has it.
        "zstd": lambda: (
            zstd.compress(data[:half])
            + b"\x50\x2a\x4d\x18\x05\0\0\0index"
            + zstd.compress(data[half:])
            + b"\x51\x2a\x4d\x18\0\0\0\0"
        ),
    }[compression]()
    with Unpacker(target) as unpacker:
        unpacker.layer(io.BytesIO(blob), compression, digests.of(data))
        unpacker.finish()
    assert (target / "big").read_bytes() == bytes(range(256)) * 4000
    assert (target / "zero").stat().st_size == 1 << 20
    assert (target / "zero").stat().st_blocks * 512 < 1 << 19  # zeros take no room


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_blob_that_is_cut_or_no_such_thing_is_refused(target: Path, compression: str) -> None:
    data = archive([entry("big", os.urandom(300_000))])
    blob = gzip.compress(data) if compression == "gzip" else zstd.compress(data)
    for number, wrong in enumerate((blob[:-100_000], b"no such thing" * 100, blob[:20])):
        with Unpacker(target / str(number)) as unpacker, pytest.raises(InvalidError):
            unpacker.layer(io.BytesIO(wrong), compression)


def test_an_archive_that_is_not_what_the_config_says_is_refused(target: Path) -> None:
    data = archive([entry("a", b"1")])
    with Unpacker(target) as unpacker, pytest.raises(VerificationError, match="unpacks to"):
        unpacker.layer(io.BytesIO(data), "", digests.of(b"other"))


def test_what_stands_after_the_end_counts_for_the_digest(target: Path) -> None:
    data = archive([entry("a", b"1")]) + b"and more"
    with Unpacker(target) as unpacker:
        unpacker.layer(io.BytesIO(data), "", digests.of(data))


def test_bombs_are_stopped(target: Path) -> None:
    bomb = gzip.compress(archive([entry("zero", bytes(50_000_000))]), 9)
    assert len(bomb) < 100_000
    with (
        Unpacker(target / "1", UnpackLimits(bytes=10_000_000)) as unpacker,
        pytest.raises(InvalidError, match="more than 10000000"),
    ):
        unpacker.layer(io.BytesIO(bomb), "gzip")
    many = [entry(str(number)) for number in range(20)]
    with pytest.raises(InvalidError, match="entries"):
        unpack(target / "2", many, limits=UnpackLimits(entries=10))


def test_depth_is_bounded(target: Path) -> None:
    with pytest.raises(InvalidError, match="deep"):
        unpack(target / "1", [entry("a/" * 2000 + "b", b"")])
    chain = [symlink("l", "a/" * 200)]
    with pytest.raises(InvalidError, match="deep"):
        unpack(target / "2", [*chain, entry("l/" + "a/" * 200 + "x", b"")])
    unpack(target / "3", [entry("a/" * 250 + "b", b"")], [entry(".wh.a")])
    assert names(target / "3") == set()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_format(target: Path, form: int) -> None:
    long = "/".join(["d" * 60] * (2 if form == tarfile.USTAR_FORMAT else 5)) + "/file"
    unpack(target, archive([entry(long, b"1"), entry("ü", b"2")], form))
    assert (target / long).read_bytes() == b"1"
    assert (target / "ü").read_bytes() == b"2"


def test_numbers_of_gnu(target: Path) -> None:
    info = entry("a", b"1", mtime=-5, uid=3_000_000 if ROOT else 0)
    unpack(target, archive([info], tarfile.GNU_FORMAT))
    assert (target / "a").stat().st_mtime == -5
    if ROOT:
        assert (target / "a").stat().st_uid == 3_000_000


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_of_gnu_tar(target: Path, tmp_path: Path, form: str) -> None:
    place = tmp_path / "sparse"
    with place.open("wb") as file:
        for number in range(40):  # more than the header and one block of extents hold
            file.seek(number * 200_000)
            file.write(f"part {number}".encode() * 1000)
        file.truncate(20_000_000)
    options = ["--format=gnu"] if form == "gnu" else ["--format=pax", f"--sparse-version={form}"]
    data = subprocess.run(
        ["tar", "-C", tmp_path, "-cS", *options, "-f", "-", "sparse"],
        check=True,
        capture_output=True,
    ).stdout
    assert len(data) < 3_000_000
    unpack(target, data)
    assert (target / "sparse").read_bytes() == place.read_bytes()
    assert (target / "sparse").stat().st_blocks * 512 < 3_000_000


def broken(change: Any) -> bytes:
    data = bytearray(archive([entry("file", b"content")], tarfile.GNU_FORMAT))
    change(data)
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 2000,
        b"\1" * 512,
        broken(lambda data: data.__setitem__(slice(156, 157), b"Z")),
        broken(lambda data: data.__setitem__(slice(124, 136), b"777777777777")),
        broken(lambda data: data.__setitem__(slice(124, 136), b"\xff" * 12)),
        broken(lambda data: data.__setitem__(slice(124, 136), b"not a number")),
        broken(lambda data: data.__setitem__(slice(108, 116), b"\x80" + b"\xff" * 7)),
        broken(lambda data: data.__setitem__(slice(136, 148), b"\x80" + b"\x7f" * 11)),
        archive([entry("file", b"x" * 5000)])[:3000],
    ],
)
def test_what_is_no_archive_is_refused(target: Path, data: bytes) -> None:
    with pytest.raises(InvalidError):
        unpack(target, data)


def pax(text: bytes, size: int | None = None) -> bytes:
    header = bytearray(archive([entry("x", text)], tarfile.GNU_FORMAT)[:512])
    header[156:157] = b"x"
    header[124:136] = b"%011o\0" % (len(text) if size is None else size)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + text + bytes(-len(text) % 512) + archive([entry("file", b"1")])


@pytest.mark.parametrize(
    "data",
    [
        pax(b"", size=1 << 40),
        pax(b"5 a=b\n"),
        pax(b"9999 a=b\n"),
        pax(b"x a=b\n"),
        pax(b"6 ab\n"),
        pax(b"1" * 2000),
        pax(b"11 size=-1\n"),
        pax(b"26 GNU.sparse.map=0,9,5,9\n"),
        pax(b"26 GNU.sparse.map=0,9,5,x\n"),
        pax(b"18 uid=4294967295\n"),
    ],
)
def test_extended_headers_that_are_wrong_are_refused(target: Path, data: bytes) -> None:
    with pytest.raises(InvalidError):
        unpack(target, data)


def test_a_header_for_all_entries_changes_none(target: Path) -> None:
    data = bytearray(pax(b"15 path=evil/x\n"))
    data[156:157] = b"g"
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    unpack(target, bytes(data))
    assert names(target) == {"file"}


@settings(max_examples=150)
@given(st.binary(max_size=1500), st.integers(0, 511), st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, place: int, fix: bool) -> None:  # noqa: FBT001
    whole = bytearray(archive([entry("file", b"content")], tarfile.GNU_FORMAT))
    whole[place : place + len(data)] = data
    if fix:
        whole[148:156] = b"        "
        whole[148:156] = b"%06o\0 " % sum(whole[:512])
    stream = LayerStream(io.BytesIO(bytes(whole)), "", 1 << 20)
    with contextlib.suppress(InvalidError):
        for found in tar.entries(stream):
            stream.skip(found.stored)


def test_a_directory_that_is_not_empty_is_refused(target: Path) -> None:
    target.mkdir(parents=True)
    (target / "mine").write_bytes(b"x")
    with pytest.raises(InvalidError, match="expected an empty one"):
        Unpacker(target)


def test_a_full_disk_is_told(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UnavailableError, match="No space left"):
        unpack(target, [entry("a", b"1")])


def test_orders_to_overlayfs_are_dropped(target: Path) -> None:
    unpack(target, [entry("a", b"1", xattrs={"user.overlay.opaque": "y", "user.ok": "1"})])
    assert os.listxattr(target / "a") == ["user.ok"]
