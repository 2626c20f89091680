"""What the machine has and uses: processors, memory and the disk of the node's state."""

from __future__ import annotations

import os
from pathlib import Path

from bedstone.node.collector.processes import TICK
from bedstone.telemetry import names
from bedstone.telemetry.frames import Series

SOURCE = "machine"
_MODES = {"user": (0, 1), "system": (2, 5, 6, 7), "idle": (3,), "iowait": (4,)}
"""Fields of the first line of `/proc/stat` (proc(5)); guests' time is part of `user`."""


def cpu_of(text: str) -> dict[str, float]:
    """Seconds of all processors by mode, from the text of `/proc/stat`."""
    fields = [int(field) for field in text.split("\n", 1)[0].split()[1:]]
    return {mode: sum(fields[i] for i in which) / TICK for mode, which in _MODES.items()}


def memory_of(text: str) -> dict[str, float]:
    """Bytes by state, from the text of `/proc/meminfo`."""
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {
        "total": int(rows["MemTotal"].split()[0]) * 1024.0,
        "available": int(rows["MemAvailable"].split()[0]) * 1024.0,
    }


class Machine:
    """Reads the machine.

    The kernel's idle and iowait may fall a little (proc(5)); here they stay until they have caught
    up, since a counter that falls is taken for one that began anew.

    Args:
        node: the node's name.
        state: a directory on the disk that is watched.
        proc: where the kernel says it.
    """

    def __init__(self, node: str, state: Path, proc: Path = Path("/proc")) -> None:
        self._node = node
        self._state = state
        self._proc = proc
        self._used: dict[str, float] = {}

    def read(self) -> dict[Series, float]:
        """The machine's series now."""
        node, proc = self._node, self._proc
        values = {names.NODE_CORES.series(SOURCE, node=node): float(os.cpu_count() or 1)}
        for mode, used in cpu_of((proc / "stat").read_text()).items():
            self._used[mode] = max(used, self._used.get(mode, 0.0))
            values[names.NODE_CPU.series(SOURCE, node=node, mode=mode)] = self._used[mode]
        for which, size in memory_of((proc / "meminfo").read_text()).items():
            values[names.NODE_MEMORY.series(SOURCE, node=node, state=which)] = size
        disk = os.statvfs(self._state)
        values[names.NODE_DISK.series(SOURCE, node=node, state="total")] = float(
            disk.f_frsize * disk.f_blocks
        )
        values[names.NODE_DISK.series(SOURCE, node=node, state="available")] = float(
            disk.f_frsize * disk.f_bavail
        )
        return values


def incarnation(proc: Path = Path("/proc")) -> str:
    """What tells this start of the machine from others."""
    return (proc / "sys/kernel/random/boot_id").read_text().strip()
