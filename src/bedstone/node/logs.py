"""The logs of a node: kept within bounds, and shown: of one source or many, by time, and followed.

Rules: files are touched in threads only, in batches, so that neither a large log nor a slow disk
stalls anything; a line is shown once; a source that appears while others are followed is followed
too; one that is removed meanwhile has no more lines. However many searches a reader begins, they
wait for one another, and nothing else of the node waits for them.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import os
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

from bedstone.errors import NotFoundError
from bedstone.model.messages import LogLine
from bedstone.node import logfile
from bedstone.telemetry.lines import Filter

EVERYTHING = Filter()
BATCH = 500
FOLLOW_PERIOD = 0.15
RESCAN_PERIOD = 1.0
KEEP_DEAD = 10
"""Logs of instances that are gone, kept per workload."""
_READERS = ThreadPoolExecutor(4, "bedstone-logs")
T = TypeVar("T")
P = ParamSpec("P")


async def _beside(work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
    """Touch files in a thread of our own: who collects and probes shares none with who reads."""
    return await asyncio.get_running_loop().run_in_executor(
        _READERS, functools.partial(work, *args, **named)
    )


@dataclass(frozen=True, slots=True)
class Source:
    """A file, and what its lines are said to come from."""

    path: Path
    name: str


def find_sources(logs: Path, subject: str) -> list[Source]:
    """The files that a subject names.

    Args:
        logs: the directory of the logs.
        subject: `engine:NAME`, or a prefix of `APP/CELL/WORKLOAD/INSTANCE`.

    Raises:
        NotFoundError: no engine has that name.
    """
    if subject.startswith("engine:"):
        return _engine(logs, subject.removeprefix("engine:"))
    parts = [part for part in subject.split("/") if part]
    if len(parts) > 4 or any(part in (".", "..") for part in parts):
        return []
    folder = logs / "instances"
    pattern = "/".join([*parts, *["*"] * (4 - len(parts))]) + ".log"
    found = sorted(folder.glob(pattern))
    if len(parts) < 3:  # of several workloads, each line says whose it is
        return [Source(path, f"{path.parent.name}/{path.stem}") for path in found]
    return [Source(path, path.stem) for path in found]


def _engine(logs: Path, name: str) -> list[Source]:
    known = {path.stem: path for path in sorted(logs.glob("*.log"))}
    if name in known:
        return [Source(known[name], name)]
    # A database is also known by its own name.
    found = [path for stem, path in known.items() if stem.startswith("postgres-")]
    found = [path for path in found if path.stem.endswith(f"-{name.removeprefix('postgres-')}")]
    if not found or not name:
        raise NotFoundError(
            f"no engine is named {name!r}, expected one of {', '.join(known) or 'none'}"
        )
    return [Source(path, path.stem) for path in found]


def _merged(sources: list[Source], since: float | None, ends: dict[Path, int]) -> Iterator[LogLine]:
    files = [
        logfile.read(source.path, source.name, since=since, end=ends.get(source.path, 0))
        for source in sources
    ]
    return heapq.merge(*files, key=lambda line: line.time)


def _tail(
    sources: list[Source], since: float | None, lines: int, ends: dict[Path, int]
) -> Iterator[LogLine]:
    files = []
    for source in sources:
        if source.path in ends:
            try:
                begin = logfile.tail_start(source.path, lines)
            except OSError:
                continue  # it was removed meanwhile
            end = ends[source.path]
            files.append(logfile.read(source.path, source.name, since=since, begin=begin, end=end))
    merged = heapq.merge(*files, key=lambda line: line.time)
    return iter(deque(merged, maxlen=lines))


def _ends(sources: list[Source], *, whole: bool) -> dict[Path, int]:
    """Where each file ends now; at the end of a line, if only whole ones are wanted."""
    found = {}
    for source in sources:
        try:
            with source.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                if not whole:
                    found[source.path] = size
                    continue
                begin = max(0, size - logfile.LONGEST_LINE)
                file.seek(begin)
                newline = file.read(size - begin).rfind(b"\n")
                found[source.path] = begin + newline + 1 if newline >= 0 else size
        except OSError:
            continue
    return found


async def show(
    logs: Path,
    subject: str,
    *,
    since: float | None = None,
    until: float | None = None,
    tail: int | None = None,
    follow: bool = False,
    wanted: Filter = EVERYTHING,
) -> AsyncGenerator[list[LogLine], None]:
    """Batches of lines of a subject, by time; without end when followed.

    What is not followed includes a last line that is not complete yet. `tail` counts the lines that
    are wanted.
    """
    sources = await _beside(find_sources, logs, subject)
    ends = await _beside(_ends, sources, whole=follow)
    if tail is None or wanted or until is not None:
        lines = _chosen(_merged(sources, since, ends), until, wanted)
        if tail is not None:
            lines = await _beside(_last, lines, tail)
    else:
        lines = await _beside(_tail, sources, since, tail, ends)
    while batch := await _beside(lambda: list(islice(lines, BATCH))):
        yield batch
    if follow:
        async for batch in _follow(logs, subject, ends):
            if found := [line for line in batch if not wanted or wanted.takes(line.text)]:
                yield found


def _chosen(lines: Iterator[LogLine], until: float | None, wanted: Filter) -> Iterator[LogLine]:
    for line in lines:
        if until is not None and line.time > until:
            return
        if not wanted or wanted.takes(line.text):
            yield line


def _last(lines: Iterator[LogLine], count: int) -> Iterator[LogLine]:
    return iter(deque(lines, maxlen=count))


async def _follow(
    logs: Path, subject: str, ends: dict[Path, int]
) -> AsyncGenerator[list[LogLine], None]:
    rescan = 0.0
    sources: list[Source] = []
    while True:
        now = time.monotonic()
        if now >= rescan:
            with suppress(NotFoundError):  # an engine's log that was removed may come again
                sources = await _beside(find_sources, logs, subject)
            rescan = now + RESCAN_PERIOD
        fresh = await _beside(_all_fresh, sources, ends)
        if fresh:
            yield fresh
        else:
            await asyncio.sleep(FOLLOW_PERIOD)


def _all_fresh(sources: list[Source], ends: dict[Path, int]) -> list[LogLine]:
    return [line for source in sources for line in _fresh(source, ends)]


def _fresh(source: Source, ends: dict[Path, int]) -> list[LogLine]:
    """The complete lines that came since the last look; at most one block of them."""
    begin = ends.get(source.path, 0)
    try:
        size = source.path.stat().st_size
        if size < begin:
            begin = 0  # cut
        if size == begin:
            return []
        with source.path.open("rb") as file:
            file.seek(max(begin, logfile.data_start(source.path)) if begin == 0 else begin)
            begin = file.tell()
            block = file.read(256 << 10)
    except OSError:
        return []
    whole = block.rfind(b"\n") + 1
    if whole == 0 and len(block) < logfile.LONGEST_LINE:
        ends[source.path] = begin
        return []
    whole = whole or len(block)
    ends[source.path] = begin + whole
    now = time.time()
    return [
        LogLine(time=now, source=source.name, text=logfile.decoded(line))
        for line in block[:whole].splitlines()
    ]


class LogKeeper:
    """Notes how files grow, and bounds them. For one thread at a time."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._sizes: dict[Path, int] = {}

    def look(self, now: float, alive: set[str]) -> None:
        """Note, bound and forget. Call it about once a second.

        Args:
            now: seconds since the epoch.
            alive: paths of the instances that are placed here.
        """
        dead: dict[Path, list[tuple[float, Path]]] = {}
        instances = self._logs / "instances"
        for path in _logs_below(self._logs):
            try:
                status = path.stat()
                if self._sizes.get(path) != status.st_size:
                    self._sizes[path] = status.st_size
                    logfile.note(path, now, status.st_size)
                    logfile.bound(path)
            except OSError:
                continue  # it is gone, or the disk is full; the next look comes
            if path.is_relative_to(instances):
                name = str(path.relative_to(instances)).removesuffix(".log")
                if name not in alive:
                    dead.setdefault(path.parent, []).append((status.st_mtime, path))
        for files in dead.values():
            for _, path in sorted(files, reverse=True)[KEEP_DEAD:]:
                self._sizes.pop(path, None)
                for victim in (path, logfile.index_path(path), path.with_name(path.name + ".1")):
                    with suppress(OSError):
                        victim.unlink(missing_ok=True)


def _logs_below(folder: Path) -> Iterator[Path]:
    """Every log in a folder and those below; what is removed meanwhile is left out."""
    for root, _, names in os.walk(folder):  # unlike `rglob`, it minds no folder that vanishes
        for name in names:
            if name.endswith(".log"):
                yield Path(root, name)
