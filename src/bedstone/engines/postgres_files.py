"""What PostgreSQL leaves on disk and in its log, and what that means.

The log is the only place where a server that could not start says why.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

_LEAST_ROOM = 64 << 10
"""Bytes without which a disk is full; a server writes its lock file first."""
_CAUSES = (
    (r"could not bind .*Address already in use", "port {port} is taken", "free the port"),
    (r"No space left on device", "the disk is full", "free some space at {directory}"),
    (r"(Permission denied)", "permission denied", "make {directory} accessible"),
    (
        r"database files are incompatible|was initialized by PostgreSQL version",
        "the data was written by another version of PostgreSQL",
        "use the version that wrote it, or dump and restore",
    ),
    (r"could not create shared memory|Cannot allocate memory", "not enough memory", "free memory"),
)


def cause(log: str, *, port: int, directory: Path) -> tuple[str, str] | None:
    """What stopped a server, and what to do, if its log names a cause that is known."""
    fill = {"port": port, "directory": directory}
    for pattern, text, fix in _CAUSES:
        if re.search(pattern, log):
            return text.format(**fill), fix.format(**fill)
    if _full(directory):  # then the log may have had no room to say it
        return "the disk is full", f"free some space at {directory}"
    return None


def _full(directory: Path) -> bool:
    try:
        return shutil.disk_usage(directory).free < _LEAST_ROOM
    except OSError:
        return False


def last_words(log: str) -> str:
    """The last error in a log; that a server is not ready yet is none."""
    lines = re.findall(r"(?:FATAL|PANIC|error):\s+(?!the database system is )(.*)", log)
    return lines[-1] if lines else ""


def working_in(folder: Path) -> list[int]:
    """Processes whose working directory is `folder`, whatever path they know it by."""
    try:
        wanted = folder.stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            there = (entry / "cwd").stat()
            program = (entry / "exe").readlink().name
        except OSError:
            continue
        same = (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino)
        if same and program.startswith("postgres"):
            found.append(int(entry.name))
    return found


def give(folder: Path, uid: int) -> None:
    """Make a user the owner of a directory that is ours, and of what is in it (after a copy)."""
    os.chown(folder, uid, uid)
    data = folder / "data"
    if data.exists() and (data / "PG_VERSION").stat().st_uid != uid:
        for root, folders, files in os.walk(data):
            for name in (".", *folders, *files):
                os.chown(Path(root, name), uid, uid, follow_symlinks=False)


def write_private(path: Path, text: str, uid: int | None) -> None:
    """Replace a file by one of mode 0600 that `uid` owns, on disk before it is visible."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(handle)
        if uid is not None:
            os.fchown(handle, uid, uid)
    draft.replace(path)


def sync_directory(folder: Path) -> None:
    """Make a rename in a directory last."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def size(path: Path) -> int:
    """Of a file that may be missing."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def tail(path: Path, start: int | None = None, limit: int = 8192) -> str:
    """The end of a log, from `start` on, at most `limit` bytes."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit, start or 0))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
