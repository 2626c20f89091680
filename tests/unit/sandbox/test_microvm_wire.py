"""Frames and archives between host and guest: whatever is cut, changed or hostile."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedstone.errors import InvalidError, UnavailableError
from bedstone.sandbox.microvm import archive, guest, wire
from bedstone.sandbox.microvm.wire import Decoder, Frame, Kind

FRAMES = st.lists(
    st.builds(Frame, st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=300))
)


@given(FRAMES, st.integers(1, 50))
def test_frames_survive_any_cut(frames: list[Frame], size: int) -> None:
    data = b"".join(wire.encode(frame.kind, frame.id, frame.payload) for frame in frames)
    decoder = Decoder()
    got = []
    for start in range(0, len(data), size):
        got += decoder.feed(data[start : start + size])
    assert got == frames


@given(st.binary(max_size=200))
def test_random_bytes_give_frames_or_a_clear_error(data: bytes) -> None:
    try:
        frames = Decoder().feed(data)
    except UnavailableError:
        return
    assert sum(len(frame.payload) + 9 for frame in frames) <= len(data)


@pytest.mark.parametrize("length", [0, 4, wire.MAX_PAYLOAD + 6, 2**32 - 1])
def test_a_length_that_no_frame_has_is_refused_at_once(length: int) -> None:
    with pytest.raises(UnavailableError):
        Decoder().feed(length.to_bytes(4, "little") + bytes(5))


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def collect(stream: AsyncIterator[bytes]) -> bytes:
    async def all_of_it() -> bytes:
        return b"".join([part async for part in stream])

    return asyncio.run(all_of_it())


def tar_of(*members: tuple[tarfile.TarInfo, bytes], dialect: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid, info.mtime = kind, link, 0o640, 7, 12345
    return info


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_each_dialect_comes_back_through_records(dialect: int) -> None:
    long = "d/" + "n" * 90 + "\udcff"  # a byte that is no UTF-8
    data = tar_of(
        (member("d", tarfile.DIRTYPE), b""),
        (member(long), b"x" * 1500),
        (member("d/link", tarfile.SYMTYPE, "../else"), b""),
        (member("./empty"), b""),
        dialect=dialect,
    )
    records = collect(archive.to_records(pieces(data, 700)))
    back = collect(archive.to_tar(pieces(records, 333)))
    with tarfile.open(fileobj=io.BytesIO(back)) as tar:
        assert tar.getnames() == ["d", long, "d/link", "empty"]
        info = tar.getmember(long)
        assert (info.mode, info.uid, info.mtime, info.size) == (0o640, 7, 12345, 1500)
        content = tar.extractfile(info)
        assert content is not None
        assert content.read() == b"x" * 1500
        assert tar.getmember("d/link").linkname == "../else"


@pytest.mark.parametrize(
    "bad",
    [
        tar_of((member("../x"), b"")),
        tar_of((member("a/../../x"), b"")),
        tar_of((member("x", tarfile.LNKTYPE, "../../etc/passwd"), b"")),
        tar_of((member("dev", tarfile.CHRTYPE), b"")),
        tar_of((member("pipe", tarfile.FIFOTYPE), b"")),
        tar_of((member("cut"), b"x" * 5000))[:2000],
        b"no archive at all" * 100,
    ],
)
def test_an_archive_with_what_cannot_be_there_is_refused(bad: bytes) -> None:
    with pytest.raises(InvalidError):
        collect(archive.to_records(pieces(bad, 512)))


def test_an_archive_s_source_that_fails_is_what_is_reported() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield tar_of((member("cut"), b"x" * 5000))[:2000]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        collect(archive.to_records(failing()))


@given(st.data())
def test_records_of_a_hostile_guest_give_a_clear_error(data: st.DataObject) -> None:
    good = collect(archive.to_records(pieces(tar_of((member("a"), b"hello")), 999)))
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        back = collect(archive.to_tar(pieces(bytes(changed), 64)))
    except UnavailableError:
        return
    with tarfile.open(fileobj=io.BytesIO(back)) as tar:
        assert all(not name.startswith(("/", "..")) for name in tar.getnames())


def test_an_initial_file_system_is_a_cpio_archive() -> None:
    data = guest.cpio({"a": (0o040755, b""), "a/b": (0o100644, b"hello")})
    assert data.startswith(b"070701")
    assert len(data) % 4 == 0
    assert data.count(b"070701") == 3
    assert b"a/b\0" in data
    assert b"hello" in data


def test_a_module_says_what_it_needs() -> None:
    assert guest.dependencies(b"x\0license=GPL\0depends=virtio,virtio_ring\0name=y\0") == [
        "virtio",
        "virtio_ring",
    ]
    assert guest.dependencies(b"x\0depends=\0") == []
    assert guest.dependencies(b"") == []


@pytest.mark.parametrize(("parent", "status"), [("os.getppid()", 0), ("1 << 30", 125)])
def test_a_machine_whose_parent_died_before_it_began_ends_at_once(parent: str, status: int) -> None:
    """It would run on for ever, since the signal of its parent's death was sent before."""
    code = "import os; from bedstone.sandbox.microvm.monitor import confine; "
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}confine(None, {parent}, unshare=False)"], check=False
    )
    assert ended.returncode == status
