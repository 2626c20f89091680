"""What this machine has: programs, disks, limits; and the end of child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from bedstone.sandbox.oci.runtime import Runtime


def which(name: str) -> str | None:
    """A program of PATH or of where administrators' programs are."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def open_files() -> int | None:
    """The most open files that a process started from here may have; None is any number."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def disk(path: Path) -> tuple[int, int] | None:
    """The whole disk that holds a path: limits apply to disks, not to partitions."""
    number = path.stat().st_dev
    node = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    try:
        if (node / "partition").exists():
            node = node.resolve().parent
        major, _, minor = (node / "dev").read_text().strip().partition(":")
    except OSError:
        return None
    return int(major), int(minor)


def installed(candidates: Sequence[Runtime]) -> str:
    """What a probe's result depends on: the boot, and which files the programs are."""
    parts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
    for each in candidates:
        found = Path(each.program).stat()
        parts.append(f"{each.program} {each.options} {found.st_mtime_ns} {found.st_size}")
    return "\n".join(parts)


async def end(child: asyncio.subprocess.Process) -> None:
    """End a child, which leads a session, with what it started."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()
