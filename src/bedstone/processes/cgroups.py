"""Control groups for the limits of processes, where they can be written; what was applied is said.

Version 1 uses a group below the supervisor's own in each hierarchy. Version 2 uses one below the
root group, since a group that has processes can't hand controllers to its children (cgroups(7), "no
internal processes").
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bedstone.processes.spec import Limits

_ROOT = Path("/sys/fs/cgroup")
_PERIOD = 100_000


@dataclass(frozen=True, slots=True)
class Membership:
    """The groups a process is started in, and in words what limits it has."""

    folders: tuple[Path, ...] = ()
    applied: tuple[str, ...] = ()
    memory_limited: bool = False


class ControlGroups:
    """Makes and removes the groups of one run.

    Args:
        key: the run's folder name in each hierarchy.
        root: where the hierarchies are mounted.
        own: the text of /proc/self/cgroup, which says where the supervisor itself is.
    """

    def __init__(self, key: str, root: Path = _ROOT, own: str | None = None) -> None:
        self._key = key
        self._root = root
        text = Path("/proc/self/cgroup").read_text() if own is None else own
        self._own = {}
        for line in text.splitlines():
            _, names, path = line.split(":", 2)
            for name in names.split(","):
                self._own[name] = path.lstrip("/")

    def prepare(self, name: str, limits: Limits) -> Membership:
        """Make the groups that `limits` need."""
        wanted = {
            "memory": limits.memory is not None,
            "cpu": limits.cpu is not None,
            "pids": limits.processes is not None,
        }
        folders: dict[Path, None] = {}
        applied = []
        memory = False
        for controller, want in wanted.items():
            if not want:
                continue
            folder = self._limit(controller, _safe(name), limits)
            if folder is not None:
                folders[folder] = None
                applied.append(f"{controller} limit by control group")
                memory = memory or controller == "memory"
            elif controller == "memory":
                applied.append("memory limit by RLIMIT_DATA: no writable control group")
            else:
                applied.append(f"{controller} limit not applied: no writable control group")
        if limits.open_files is not None:
            applied.append("open files limit by RLIMIT_NOFILE")
        return Membership(tuple(folders), tuple(applied), memory)

    def out_of_memory(self, membership: Membership) -> bool | None:
        """Whether the kernel killed a process of these groups for their memory limit.

        None where it does not count that.
        """
        known: bool | None = None
        for folder in membership.folders:
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError, ValueError):
                    for line in (folder / name).read_text().splitlines():
                        word, _, count = line.partition(" ")
                        if word == "oom_kill":
                            known = known or int(count) > 0
        return known

    def release(self, membership: Membership) -> None:
        """Remove a dead process's groups; one with a process still in it stays for `close`."""
        for folder in membership.folders:
            _remove(folder)

    def close(self, patience: float = 1.0) -> None:
        """Remove the groups of every run whose key begins with this one's.

        Args:
            patience: seconds to wait for dead processes to be reaped, which keep their group.
        """
        v1 = [self._root / name / self._own.get(name, "") for name in ("memory", "cpu", "pids")]
        deadline = time.monotonic() + patience
        for base in (*v1, self._root):
            for folder in base.glob(f"{self._key}*") if base.is_dir() else ():
                while not _remove_tree(folder) and time.monotonic() < deadline:
                    time.sleep(0.01)

    def _limit(self, controller: str, name: str, limits: Limits) -> Path | None:
        unified = (self._root / "cgroup.controllers").exists()
        base = self._root if unified else self._root / controller / self._own.get(controller, "")
        if not os.access(base, os.W_OK) or (not unified and not (base / "cgroup.procs").exists()):
            return None
        folder = base / self._key / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if unified:
                (base / self._key / "cgroup.subtree_control").write_text(f"+{controller}")
            _SETTERS[controller](folder, limits, unified)
        except OSError:
            _remove(folder)
            return None
        return folder


def _memory(folder: Path, limits: Limits, unified: bool) -> None:  # noqa: FBT001
    file = "memory.max" if unified else "memory.limit_in_bytes"
    (folder / file).write_text(str(limits.memory))


def _cpu(folder: Path, limits: Limits, unified: bool) -> None:  # noqa: FBT001
    quota = max(1000, int((limits.cpu or 0) * _PERIOD))
    if unified:
        (folder / "cpu.max").write_text(f"{quota} {_PERIOD}")
    else:
        (folder / "cpu.cfs_period_us").write_text(str(_PERIOD))
        (folder / "cpu.cfs_quota_us").write_text(str(quota))


def _pids(folder: Path, limits: Limits, unified: bool) -> None:  # noqa: ARG001, FBT001
    (folder / "pids.max").write_text(str(limits.processes))


_SETTERS: dict[str, Callable[[Path, Limits, bool], None]] = {
    "memory": _memory,
    "cpu": _cpu,
    "pids": _pids,
}


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".") or "_"


def run_key(state_id: str, run_id: str = "") -> str:
    """The folder name of a run's groups; without `run_id`, the beginning of all of the state's."""
    return f"bedstone-{state_id}-{run_id}"


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove_tree(folder: Path) -> bool:
    """Remove a run's folder; the files in it are the kernel's and need not be."""
    for child in folder.iterdir():
        if child.is_dir():
            _remove(child)
    _remove(folder)
    return not folder.exists()
