"""Control groups of boxes, versions 1 and 2 (cgroups(7)): what can be limited, use, and clearing.

The runtime makes and fills the groups; here is what it leaves to others. Version 1 has the groups
of boxes below the one of this process in each hierarchy, version 2 below the root group, since a
group that has processes cannot hand controllers to its children.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

from bedstone.sandbox.box import Stats

_ROOT: Final = Path("/sys/fs/cgroup")
_V1: Final = {"memory": "memory", "cpu": "cpu", "pids": "pids", "io": "blkio"}
_UNLIMITED: Final = 1 << 60
_CLEARING: Final = 5.0
"""Seconds that killed processes get to be gone."""


class Groups:
    """The hierarchies of this machine.

    Args:
        root: where they are mounted.
        own: the text of /proc/self/cgroup.
    """

    def __init__(self, root: Path = _ROOT, own: str | None = None) -> None:
        self._root = root
        self.unified = (root / "cgroup.controllers").exists()
        self._own: dict[str, str] = {}
        text = Path("/proc/self/cgroup").read_text() if own is None else own
        for line in text.splitlines():
            _, names, path = line.split(":", 2)
            for name in names.split(","):
                self._own[name.removeprefix("name=")] = path.lstrip("/")

    def path(self, name: str) -> str:
        """A group as OCI's `cgroupsPath` names it."""
        return f"/{name}" if self.unified else name

    def controllers(self) -> frozenset[str]:
        """Which of memory, cpu, pids and io can limit a box."""
        if self.unified:
            if not os.access(self._root / "cgroup.subtree_control", os.W_OK):
                return frozenset()
            there = (self._root / "cgroup.controllers").read_text().split()
            return frozenset(there) & set(_V1)
        found = set()
        for name, hierarchy in _V1.items():
            base = self._base(hierarchy)
            if (base / "cgroup.procs").exists() and os.access(base, os.W_OK):
                found.add(name)
        return frozenset(found)

    def folders(self, name: str) -> list[Path]:
        """The group's folder in each hierarchy that has it."""
        if self.unified:
            candidates = [self._root / name]
        else:
            mounted = self._root.iterdir() if self._root.is_dir() else ()
            candidates = [self._base(each.name) / name for each in mounted if not each.is_symlink()]
        return [folder for folder in candidates if folder.is_dir()]

    def clear(self, name: str, *, remove: bool) -> None:
        """End every process of a group at once, wait until they are gone, and remove it.

        Idempotent. What is not gone within five seconds stays.

        Args:
            name: the group.
            remove: whether to remove it too, once it has no process.
        """
        deadline = time.monotonic() + _CLEARING
        while time.monotonic() < deadline:
            left = [folder for folder in self.folders(name) if not _empty(folder, remove=remove)]
            if not left:
                return
            time.sleep(0.01)

    def stats(self, name: str) -> Stats:
        """What a group uses."""
        return self._stats2(self._root / name) if self.unified else self._stats1(name)

    def _stats2(self, folder: Path) -> Stats:
        reads, writes = _sum_io(_text(folder / "io.stat"))
        cpu = _field(_text(folder / "cpu.stat"), "usage_usec")
        return Stats(
            cpu_seconds=None if cpu is None else cpu / 1e6,
            memory=_without(
                _number(folder / "memory.current"), _text(folder / "memory.stat"), "inactive_file"
            ),
            memory_limit=_number(folder / "memory.max"),
            pids=_number(folder / "pids.current"),
            io_read=reads,
            io_written=writes,
            oom_kills=_field(_text(folder / "memory.events"), "oom_kill"),
        )

    def _stats1(self, name: str) -> Stats:
        memory = self._base("memory") / name
        cpu = _number(self._base("cpuacct") / name / "cpuacct.usage")
        io = _text(self._base("blkio") / name / "blkio.throttle.io_service_bytes")
        limit = _number(memory / "memory.limit_in_bytes")
        return Stats(
            cpu_seconds=None if cpu is None else cpu / 1e9,
            memory=_without(
                _number(memory / "memory.usage_in_bytes"),
                _text(memory / "memory.stat"),
                "total_inactive_file",
            ),
            memory_limit=limit if limit is not None and limit < _UNLIMITED else None,
            pids=_number(self._base("pids") / name / "pids.current"),
            io_read=_sum_v1(io, "Read"),
            io_written=_sum_v1(io, "Write"),
            oom_kills=_field(_text(memory / "memory.oom_control"), "oom_kill"),
        )

    def _base(self, hierarchy: str) -> Path:
        own = self._own.get("" if hierarchy == "unified" else hierarchy, "")
        return self._root / hierarchy / own


def _empty(folder: Path, *, remove: bool) -> bool:
    """Kill what is in a group and the groups below it; whether nothing of it is left."""
    with contextlib.suppress(OSError):
        (folder / "freezer.state").write_text("THAWED")
    inside = [folder]
    with contextlib.suppress(OSError):  # the runtime may remove it at the same moment
        inside = [*folder.glob("*/"), folder]
    pids = {int(word) for each in inside for word in (_text(each / "cgroup.procs") or "").split()}
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    if not remove:
        return not pids
    for each in inside:
        with contextlib.suppress(OSError):
            each.rmdir()  # refused as long as a process in it is not quite gone
    return not folder.exists()


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (_text(path) or "").strip()
    return int(text) if text.isdigit() else None


def _without(memory: int | None, text: str | None, cache: str) -> int | None:
    """Memory in use without what is only kept of files, and given back where it is needed."""
    return None if memory is None else max(0, memory - (_field(text, cache) or 0))


def _field(text: str | None, name: str) -> int | None:
    for line in (text or "").splitlines():
        word, _, count = line.partition(" ")
        if word == name:
            return int(count)
    return None


def _sum_io(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    totals = {"rbytes": 0, "wbytes": 0}
    for word in text.split():
        key, _, count = word.partition("=")
        if key in totals:
            totals[key] += int(count)
    return totals["rbytes"], totals["wbytes"]


def _sum_v1(text: str | None, what: str) -> int | None:
    if text is None:
        return None
    rows = (line.split() for line in text.splitlines())
    return sum(int(row[2]) for row in rows if len(row) == 3 and row[1] == what)
