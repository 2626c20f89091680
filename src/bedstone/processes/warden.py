"""Ends what a dead supervisor left behind. A program of its own, and the search that it uses.

A process belongs to a run if its environment carries the run's marker, if the run's journal names
its pid and start time, or if it descends from one that does. Never its name: another run on this
machine may use the same programs. The journal covers programs that overwrite their environment
(PostgreSQL does, for its process titles).

As a program (`python -I -S warden.py MARKER JOURNAL`) it waits for the end of its standard input,
which only the supervisor holds the other end of. It imports next to nothing, to stay small, and
nothing of Bedstone, to start without it. A line `done` says that the supervisor ended in good
order.
"""

from __future__ import annotations

import os
import signal
import sys
import time

_GRACE = 0.2
"""Seconds that the kernel's own death signals get, so that PostgreSQL can end by itself."""
_PATIENCE = 30.0
_LOOKS = 3
_EXEC = 1.0
"""Seconds that a process gets to become its next program."""


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and start time of every process that is not a zombie."""
    found = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - pathlib costs this program a third of its memory
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:  # noqa: PTH123
                text = file.read()
        except OSError:
            continue
        fields = text[text.rindex(b")") + 2 :].split()
        if fields[0] not in (b"Z", b"X"):
            found[int(entry)] = (int(fields[1]), int(fields[19]))
    return found


def environment(pid: int) -> list[bytes]:
    """The variables a process was started with; none if it may not be read or has gone.

    In the midst of an exec it has none yet. Who looks then would take it for a stranger, so that it
    is waited for; three looks that find nothing, and no exec, are believed.
    """
    deadline = time.monotonic() + _EXEC
    looks = 0
    while True:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
                text = file.read()
        except OSError:
            return []
        if text:
            return text.split(b"\0")
        begins = _begins(pid)
        looks += not begins
        if begins is None or looks == 3 or time.monotonic() > deadline:
            return []
        if begins:
            time.sleep(0.001)


def _begins(pid: int) -> bool | None:
    """Whether a process is between two programs: it has memory, and nowhere in it variables.

    None if it is no process with memory.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # from the third on, as proc(5) counts
    size, end = fields[23 - 3], fields[51 - 3]
    return None if size == b"0" else end == b"0"


def read_journal(path: str) -> set[tuple[int, int]]:
    """Pid and start time of every process that a run launched."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            lines = file.read().splitlines()
    except OSError:
        return set()
    known = set()
    for line in lines:
        fields = line.split()
        # The last line may be cut short where the supervisor was killed.
        if len(fields) >= 3 and fields[0].isdigit() and fields[1].isdigit():
            known.add((int(fields[0]), int(fields[1])))
    return known


def find(marker: str, journal: str | None, spare: frozenset[int]) -> dict[int, int]:
    """Pid to start time of what belongs to a run.

    Args:
        marker: `NAME=STATE/RUN`; one that ends in `/` matches every run of that state.
        journal: the run's journal, if this boot wrote it.
        spare: pids that are never taken, nor their being a parent followed.
    """
    wanted = marker.encode()
    known = read_journal(journal) if journal else set()
    processes = _processes()
    mine = {}
    for pid, (_, start) in processes.items():
        if pid in spare:
            continue
        marked = any(
            variable == wanted or (wanted.endswith(b"/") and variable.startswith(wanted))
            for variable in environment(pid)
        )
        if marked or (pid, start) in known:
            mine[pid] = start
    grown = True
    while grown:
        grown = False
        for pid, (parent, start) in processes.items():
            if parent in mine and pid not in mine and pid not in spare:
                mine[pid] = start
                grown = True
    return mine


def kill(pid: int, start: int) -> None:
    """SIGKILL exactly the process that was found."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            text = file.read()
        if int(text[text.rindex(b")") + 2 :].split()[19]) == start:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        pass
    finally:
        os.close(handle)


def sweep(
    marker: str,
    journal: str | None,
    spare: frozenset[int] = frozenset(),
    patience: float = _PATIENCE,
) -> list[int]:
    """Kill everything of a run until nothing is found; returns what outlived `patience` seconds.

    A process may fork after /proc was listed and end before it is looked at, and its child is then
    missed. So nothing has to be found several times in a row.
    """
    deadline = time.monotonic() + patience
    empty = 0
    while True:
        found = find(marker, journal, spare)
        empty = 0 if found else empty + 1
        if empty == _LOOKS or (found and time.monotonic() > deadline):
            return sorted(found)
        if not found:
            continue
        for pid, start in found.items():
            kill(pid, start)
        time.sleep(0.02)


def main() -> None:
    """Wait for the supervisor's end, then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    marker, journal = sys.argv[1:3]
    said = b""
    while chunk := os.read(0, 16):
        said += chunk
    if said.strip() == b"done":
        return
    time.sleep(_GRACE)
    sweep(marker, journal, frozenset({os.getpid()}))


if __name__ == "__main__":
    main()
