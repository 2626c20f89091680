"""Which process a number means.

A pid alone names whatever runs under it now. A pid, its start time and the kernel's boot id name
one process for ever. Signals go through a pidfd that is opened first and verified after, so that
none can reach a process that took over the number.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """Identity of this boot of the kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_stat(pid: int) -> tuple[str, int, int] | None:
    """State letter, parent's pid and start time of a process; None if there is none.

    proc(5): the command name stands in parentheses and may itself contain any character, so fields
    count from the last parenthesis.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return fields[0].decode(), int(fields[1]), int(fields[19])


def read_user(pid: int) -> int | None:
    """The real user of a process; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # proc(5): a name cannot break its line.
    return int(text.partition("\nUid:")[2].split(None, 1)[0])


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, never another that has the same number."""

    pid: int
    start_time: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """The identity of what runs as `pid` now; None if nothing does."""
        stat = read_stat(pid)
        return cls(pid, stat[2], boot_id()) if stat else None

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        if self.boot_id != boot_id():
            return False
        stat = read_stat(self.pid)
        return stat is not None and stat[2] == self.start_time and stat[0] not in "ZX"

    def send_signal(self, number: int = signal.SIGTERM) -> bool:
        """Signal exactly this process; False if it has gone. May raise PermissionError."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True
