"""What processes use, by reading `/proc` once for all of them.

Rules:
- A process belongs to the one that the supervisor started which it descends from, also when those
  between have ended: it carries the mark of its environment, or its parent's.
- Processor time never decreases: it contains what ended children used as far as their parents
  waited for them, and what was seen of the others.
- A process that ended while it was looked at is left out; it is never read as zero.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bedstone.processes.spec import NAME_MARKER

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """Of `/proc/PID/stat`: what matters here. Times are clock ticks."""

    pid: int
    parent: int
    start: int
    ticks: int
    """In user and system mode, its own and of the children that it waited for."""
    pages: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and all that it started use.

    Args:
        cpu: seconds since it began.
        memory: bytes resident.
    """

    cpu: float
    memory: int


def parse_stat(text: bytes) -> Stat | None:
    """One line of `/proc/PID/stat` (proc(5)); None if it is not one, or of a zombie."""
    head, _, rest = text.rpartition(b")")
    fields = rest.split()
    if len(fields) < 22 or fields[0] in (b"Z", b"X"):
        return None
    return Stat(
        pid=int(head.split(b" ", 1)[0]),
        parent=int(fields[1]),
        start=int(fields[19]),
        ticks=sum(map(int, fields[11:15])),
        pages=int(fields[21]),
    )


def read_stats(proc: Path = Path("/proc")) -> dict[int, Stat]:
    """Every process that there is."""
    found = {}
    for name in os.listdir(proc):  # noqa: PTH208 - some hundred times a second, paths cost more
        if name.isdigit():
            try:
                descriptor = os.open(f"{proc}/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                stat = parse_stat(os.read(descriptor, 1024))
            except OSError:
                continue
            finally:
                os.close(descriptor)
            if stat is not None:
                found[stat.pid] = stat
    return found


def identity_of(pid: int, proc: Path = Path("/proc")) -> str | None:
    """What tells a process from others of its number, `PID:START`; None if it has ended."""
    try:
        stat = parse_stat((proc / str(pid) / "stat").read_bytes())
    except OSError:
        return None
    return f"{pid}:{stat.start}" if stat else None


def marked_name(pid: int, proc: Path = Path("/proc")) -> str | None:
    """The name of the supervised process that a process descends from, by its environment."""
    try:
        environment = (proc / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    mark = NAME_MARKER.encode() + b"="
    for variable in environment.split(b"\0"):
        if variable.startswith(mark):
            return variable[len(mark) :].decode(errors="replace")
    return None


class Processes:
    """Follows what processes belong to which name, and what each name has used."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._owners: dict[tuple[int, int], str] = {}
        self._last: dict[str, tuple[str, float]] = {}
        self._ended: dict[str, float] = {}

    def usage(self, roots: Mapping[str, tuple[int, int]], supervisor: int) -> dict[str, Usage]:
        """What each name uses.

        Args:
            roots: pid and start time of each supervised process that runs, by its name.
            supervisor: the pid of what adopts the orphans.

        Returns:
            By name; a name whose process is not there is left out.
        """
        stats = read_stats(self._proc)
        owners = self._assign(stats, roots, supervisor)
        cpu: dict[str, int] = {}
        memory: dict[str, int] = {}
        for pid, name in owners.items():
            cpu[name] = cpu.get(name, 0) + stats[pid].ticks
            memory[name] = memory.get(name, 0) + stats[pid].pages
        found = {}
        for name, (pid, start) in roots.items():
            stat = stats.get(pid)
            if stat is None or stat.start != start or name not in cpu:
                continue
            life = f"{pid}:{start}"
            found[name] = Usage(self._grown(name, life, cpu[name] / TICK), memory[name] * PAGE)
        for name in self._last.keys() - roots.keys():
            del self._last[name], self._ended[name]
        return found

    def _grown(self, name: str, life: str, cpu: float) -> float:
        """Processor time with what children used that ended without being waited for."""
        before, last = self._last.get(name, ("", 0.0))
        if before != life:
            self._ended[name] = 0.0
        elif cpu < last:
            self._ended[name] += last - cpu
        self._last[name] = (life, cpu)
        return cpu + self._ended[name]

    def _assign(
        self, stats: Mapping[int, Stat], roots: Mapping[str, tuple[int, int]], supervisor: int
    ) -> dict[int, str]:
        known = {identity: name for name, identity in roots.items()}
        known |= {
            key: name
            for key, name in self._owners.items()
            if key not in known and (s := stats.get(key[0])) is not None and s.start == key[1]
        }
        owners: dict[int, str] = {}
        strangers: set[int] = set()

        def owner(pid: int) -> str | None:
            chain = []
            name: str | None = None
            while pid not in owners and pid not in strangers:
                stat = stats.get(pid)
                if stat is None:
                    break
                chain.append(stat)
                name = known.get((pid, stat.start))
                if name is None and stat.parent == supervisor and pid != supervisor:
                    # an orphan, or one that has just been started
                    name = marked_name(pid, self._proc)
                if name is not None or pid in (stat.parent, supervisor):
                    break
                pid = stat.parent
            else:
                name = owners.get(pid)
            for stat in chain:
                if name is None:
                    strangers.add(stat.pid)
                else:
                    owners[stat.pid] = name
                    known[stat.pid, stat.start] = name
            return name

        for pid in stats:
            owner(pid)
        self._owners = {(pid, stats[pid].start): name for pid, name in owners.items()}
        return owners
