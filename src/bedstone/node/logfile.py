"""One log file: written by its process alone, bounded by the node, readable by time.

A process appends to its file through a descriptor of its own, so the node may not rename it away.
The file is bounded by punching a hole over its oldest part (fallocate(2)): the bytes before the
hole's end cease to take room, no offset moves, and no line that is being written can be lost. Where
a file system cannot do that, the file is copied to `NAME.1` and cut, as logrotate's `copytruncate`.

Beside a file lies its index, `NAME.idx`: lines `TIME OFFSET`, each saying how long the file was at
that time. So a line was written before the first entry whose offset reaches its end.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bedstone.model.messages import LogLine

KEEP = 20 << 20
"""Bytes that are kept when a file is bounded."""
LIMIT = 30 << 20
"""Bytes beyond which it is."""
LONGEST_LINE = 64 << 10
_BLOCK = 4096
_FALLOC_KEEP_SIZE = 0x01
_FALLOC_PUNCH_HOLE = 0x02

_libc = ctypes.CDLL(None, use_errno=True)


def index_path(path: Path) -> Path:
    """Where a log's index is."""
    return path.with_name(path.name + ".idx")


def data_start(path: Path) -> int:
    """Offset of the first byte that is still there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError:
        return 0  # empty, or a file system without holes
    finally:
        os.close(descriptor)


def note(path: Path, now: float, size: int) -> None:
    """Add to the index that the file has `size` bytes now."""
    descriptor = os.open(
        index_path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        os.write(descriptor, f"{now:.3f} {size}\n".encode())
    finally:
        os.close(descriptor)


def bound(path: Path, limit: int = LIMIT, keep: int = KEEP) -> bool:
    """Give back the room of the oldest part of a file that has grown too large."""
    size = path.stat().st_size
    start = data_start(path)
    if size - start <= limit:
        return False
    end = (size - keep) // _BLOCK * _BLOCK
    if not _punch(path, end):
        shutil.copyfile(path, path.with_name(path.name + ".1"))
        os.truncate(path, 0)
        index_path(path).unlink(missing_ok=True)
        return True
    times, offsets = read_index(path)
    first = bisect_left(offsets, end)
    draft = path.with_name(path.name + ".idx.new")
    with draft.open("w") as file:
        file.writelines(
            f"{at:.3f} {offset}\n"
            for at, offset in zip(times[first:], offsets[first:], strict=True)
        )
    draft.replace(index_path(path))
    return True


def _punch(path: Path, end: int) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        mode = _FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE
        result = _libc.fallocate(
            descriptor, mode, ctypes.c_longlong(0), ctypes.c_longlong(max(0, end))
        )
        if result == 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def read_index(path: Path) -> tuple[list[float], list[int]]:
    """Times and offsets of the index, both rising; damaged lines are left out."""
    times: list[float] = []
    offsets: list[int] = []
    try:
        lines = index_path(path).read_text().splitlines()
    except OSError:
        return times, offsets
    for line in lines:
        at, _, offset = line.partition(" ")
        try:
            moment, place = float(at), int(offset)
        except ValueError:
            continue
        if not offsets or (place >= offsets[-1] and moment >= times[-1]):
            times.append(moment)
            offsets.append(place)
    return times, offsets


def read(
    path: Path,
    source: str,
    *,
    since: float | None = None,
    begin: int = 0,
    end: int | None = None,
) -> Iterator[LogLine]:
    """The lines of a file from `begin` to `end`, oldest first, and about when each was written.

    Args:
        path: the file.
        source: what the lines are said to come from.
        since: seconds since the epoch; lines that were surely written before are left out.
        begin: offset at which a line begins; 0 for the first line that is whole.
        end: offset at which to stop; what is there now by default.
    """
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        size = os.fstat(file.fileno()).st_size if end is None else end
        changed = os.fstat(file.fileno()).st_mtime
        times, offsets = read_index(path)
        start = max(begin, data_start(path))
        if since is not None:
            before = bisect_right(times, since) - 1
            if before >= 0:
                start = max(start, offsets[before])
        if start > 0:
            file.seek(start - 1)
            # A line that begins before the start is not whole.
            if file.read(1) != b"\n":
                file.readline(LONGEST_LINE)
        position = file.tell()
        while position < size:
            line = file.readline(LONGEST_LINE)
            if not line:
                return
            position += len(line)
            if position > size:
                return
            entry = bisect_left(offsets, position)
            at = times[entry] if entry < len(times) else changed
            if since is None or at >= since:
                yield LogLine(time=at, source=source, text=decoded(line))


def tail_start(path: Path, lines: int) -> int:
    """Offset at which the last `lines` lines begin."""
    first = data_start(path)
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        found = -1 if position > first and _ends_line(file, position) else 0
        while position > first:
            step = min(65536, position - first)
            position -= step
            file.seek(position)
            block = file.read(step)
            at = len(block)
            while (at := block.rfind(b"\n", 0, at)) >= 0:
                found += 1
                if found == lines:
                    return position + at + 1
    return first


def _ends_line(file: BinaryIO, size: int) -> bool:
    file.seek(size - 1)
    return file.read(1) == b"\n"


def decoded(line: bytes) -> str:
    """A line without its end, as text."""
    return line.rstrip(b"\r\n").decode(errors="replace")
