"""Which files make a workload's source, and their digest: when it changes, the workload rolls out.

Rules:
- A workload whose program is Python of its own (`run:`, or `command: [python, …]`) is made of the
  files that it imports, of all that is not Python below its `path`, and of Python there that no
  workload is seen to import. Any other is made of all files below its `path`.
- What programs and tools leave behind is no source: see `is_source`.
- A digest covers paths and contents, so that it is equal wherever the files are equal. Of a file
  over 16 MiB it covers size and time instead: such is data, and reading it would take too long.
- Nothing is imported or run. Symbolic links to directories are not followed.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from bedstone.errors import InvalidError
from bedstone.model.imports import Import, closure, entries_of, imports_of
from bedstone.model.spec import AppSpec, WorkloadSpec

MAX_FILES: Final = 10_000
MAX_HASHED_BYTES: Final = 16 << 20

IGNORED_DIRECTORIES: Final = frozenset(
    {
        *(".bedstone", ".git", ".hg", ".svn", ".venv", "venv", "__pycache__", "node_modules"),
        *(".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".tox", ".nox"),
        *(".idea", ".vscode"),
    }
)
IGNORED_FILES: Final = (
    *("bedstone.yaml", ".DS_Store", "4913", "___jb_*___"),
    *("*.pyc", "*.pyo", "*.swp", "*.swo", "*.swx", "*~", ".#*", "#*#", "*.tmp"),
    *("*.log", "*.pid", "*.sock", "*.db", "*.sqlite", "*.sqlite3"),
    *("*-journal", "*-wal", "*-shm"),
)

_RACY_NANOSECONDS: Final = 100_000_000
"""A file changed so recently may change again within the clock's tick: it is not remembered."""


def is_source(path: PurePosixPath) -> bool:
    """Whether a file may be a workload's source.

    Not what Bedstone, version control, editors, caches and virtual environments own, nor logs and
    local databases that a program writes beside itself; nor the manifest, which has its own diff.

    Args:
        path: relative to the manifest's directory.
    """
    return not IGNORED_DIRECTORIES.intersection(path.parts[:-1]) and not any(
        fnmatch.fnmatchcase(path.name, pattern) for pattern in IGNORED_FILES
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What was read of a file when it had this stamp."""

    stamp: tuple[int, int, int]
    digest: str
    imports: tuple[Import, ...] | None


@dataclass
class SourceCache:
    """What was read before: a file is read again when its time, size or inode differs."""

    files: dict[str, _Known] = field(default_factory=dict)


def source_digests(
    root: Path, spec: AppSpec, *, cache: SourceCache | None = None, max_files: int = MAX_FILES
) -> dict[str, str]:
    """The digest of each workload's source.

    Args:
        root: the manifest's directory.
        spec: the manifest.
        cache: what was read before; pass the same one again to read only what changed.
        max_files: the bound on files below one workload's `path`.

    Raises:
        InvalidError: a workload's path cannot be read, or holds more than `max_files` files.
    """
    tree = _Tree(root, cache or SourceCache(), max_files)
    files = {name: tree.below(name, workload) for name, workload in spec.workloads.items()}
    imported = {
        name: tree.imported(workload, files[name]) for name, workload in spec.workloads.items()
    }
    claimed = frozenset[str]().union(*(paths or () for paths in imported.values()))
    return {
        name: tree.digest(_own(files[name], imported[name], claimed)) for name in spec.workloads
    }


def source_digest(root: Path, workload: WorkloadSpec, *, cache: SourceCache | None = None) -> str:
    """The digest of the source of a workload that is alone in its manifest.

    Raises:
        InvalidError: as `source_digests`.
    """
    spec = AppSpec(app="app", workloads={"workload": workload})
    return source_digests(root, spec, cache=cache)["workload"]


def changed_workloads(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The workloads in both whose digests differ, sorted."""
    return sorted(name for name in old.keys() & new.keys() if old[name] != new[name])


def _own(
    files: Mapping[str, Path], imported: frozenset[str] | None, claimed: frozenset[str]
) -> dict[str, Path]:
    """A workload's own among the files below its path."""
    if imported is None:
        return dict(files)
    return {
        path: file
        for path, file in files.items()
        if path in imported or not path.endswith(".py") or path not in claimed
    }


class _Tree:
    """The files below a manifest, by path relative to it."""

    def __init__(self, root: Path, cache: SourceCache, max_files: int) -> None:
        self._root = root
        self._cache = cache
        self._max_files = max_files
        self._scanned: dict[str, dict[str, Path]] = {}

    def below(self, name: str, workload: WorkloadSpec) -> dict[str, Path]:
        """The files below a workload's path, sorted.

        Raises:
            InvalidError: it cannot be read, or holds too many.
        """
        directory = os.path.normpath(workload.path)
        if directory not in self._scanned:
            found: dict[str, Path] = {}
            try:
                for path, file in self._walk(self._root / directory, _prefix(directory)):
                    found[path] = file
                    if len(found) > self._max_files:
                        raise InvalidError(
                            f"workload {name} has more than {self._max_files} files below "
                            f"{workload.path!r}",
                            hint="set path: to the directory of its source",
                        )
            except OSError as error:
                raise InvalidError(
                    f"the source of workload {name} cannot be read: {error.strerror}: "
                    f"{error.filename}",
                    hint="correct path:, or permit reading",
                ) from error
            self._scanned[directory] = dict(sorted(found.items()))
        return self._scanned[directory]

    def _walk(self, directory: Path, prefix: str) -> Iterator[tuple[str, Path]]:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name in IGNORED_DIRECTORIES or _is_environment(entry.path):
                        continue
                    yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/")
                elif is_source(PurePosixPath(entry.name)):
                    yield prefix + entry.name, Path(entry.path)

    def imported(self, workload: WorkloadSpec, files: Mapping[str, Path]) -> frozenset[str] | None:
        """The files that a workload's program imports, or None where that cannot be told."""
        entries = entries_of(workload)
        if entries is None:
            return None
        prefix = _prefix(os.path.normpath(workload.path))
        modules = {path.removeprefix(prefix): path for path in files if path.endswith(".py")}
        found: set[str] = set()
        for entry in entries:
            part = closure(entry, modules.keys(), lambda path: self._read(files[modules[path]])[1])
            if part is None:
                return None
            found |= {modules[path] for path in part}
        return frozenset(found)

    def digest(self, files: Mapping[str, Path]) -> str:
        """One digest of paths and contents: 32 hexadecimal digits."""
        whole = hashlib.sha256()
        for path, file in sorted(files.items()):
            content = self._read(file)[0]
            if content:
                whole.update(f"{path}\0{content}\n".encode(errors="surrogateescape"))
        return whole.hexdigest()[:32]

    def _read(self, file: Path) -> tuple[str, tuple[Import, ...] | None]:
        """A file's digest and imports; an empty digest for what is gone or is no file."""
        try:
            status = file.stat()
        except OSError:
            return _link(file), None
        if stat.S_ISDIR(status.st_mode):
            return _link(file), None
        if not stat.S_ISREG(status.st_mode):
            return "", None
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._cache.files.get(str(file))
        if known is None or known.stamp != stamp:
            known = _read(file, status.st_size, stamp)
            if time.time_ns() - status.st_mtime_ns > _RACY_NANOSECONDS:
                self._cache.files[str(file)] = known
        return known.digest, known.imports


def _read(file: Path, size: int, stamp: tuple[int, int, int]) -> _Known:
    if size > MAX_HASHED_BYTES:
        return _Known(stamp, f"large {size} {stamp[0]}", None)
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return _Known(stamp, "", None)
    except OSError:
        # The workload may be unable to read it too; that it changed can still be told.
        return _Known(stamp, f"unreadable {size} {stamp[0]}", None)
    imports = imports_of(content) if file.suffix == ".py" else None
    return _Known(stamp, hashlib.sha256(content).hexdigest(), imports)


def _link(file: Path) -> str:
    try:
        return f"link {file.readlink()}"
    except OSError:
        return ""


def _is_environment(directory: str) -> bool:
    return Path(directory, "pyvenv.cfg").exists()


def _prefix(directory: str) -> str:
    return "" if directory == "." else f"{directory}/"
