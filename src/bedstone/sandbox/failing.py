"""Exit statuses of programs that could not be started, the same for all drivers.

They are those that container engines have: 127 if there is no such program, 126 if it cannot be
executed, 125 for anything else that kept a box from running it. Only the standard library is used,
since what runs stand-alone boxes has nothing else.
"""

from __future__ import annotations

from typing import Final

FAILED: Final = 125
_STATUSES: Final = (
    ("executable file not found", 127),
    ("no such file or directory", 127),
    ("permission denied", 126),
    ("not a directory", 126),
    ("is a directory", 126),
    ("exec format error", 126),
)


def status_of(text: str) -> int:
    """The exit status for what a runtime says of a program that it could not start."""
    said = text.lower()
    return next((status for part, status in _STATUSES if part in said), FAILED)


def ended(status: int, started: str, log: str) -> int:
    """The exit status of a box or program whose foreground command ended.

    Args:
        status: of that command.
        started: path of a file that is there if the program ran; empty if there is none.
        log: path of a file with what kept it from running, if anything did; empty if `status` says
            it all.
    """
    if status == 0 or (started and read(started)):
        return status
    text = read(log)
    return status_of(text) if text.strip() else status


def read(path: str) -> str:
    """The text of a file; empty if there is none."""
    try:
        with open(path, errors="replace") as file:  # noqa: PTH123 - pathlib is more than this needs
            return file.read()
    except OSError:
        return ""
