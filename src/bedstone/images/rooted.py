"""Paths inside a directory that nothing in it can lead out of.

A path is walked component by component, each opened in the directory before it and never followed
by the kernel; symbolic links are read and walked here, from the root when they are absolute, and
`..` stops at the root. So a link that is planted at any moment leads to a place inside, as
`openat2(RESOLVE_IN_ROOT)` would have it; that call is not needed, for no kernel below 5.6 has it.
"""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType
from typing import Self

from bedstone.errors import InvalidError

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = 40
"""As many symbolic links as the kernel follows (path_resolution(7))."""
_LONGEST_NAME = 255
_DEEPEST = 256
"""Directories below each other; each is open while a path is walked."""


class NoDirectoryError(InvalidError):
    """What should be a directory is none."""


Path = tuple[bytes, ...]
"""The names that lead from the root to a file, with no link among them."""


class Root:
    """A directory; a context manager.

    Args:
        folder: an absolute path that the caller trusts.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.handle = os.open(folder, _DIRECTORY)
        self._last: tuple[tuple[bytes, ...], Path, int] | None = None
        self._stale = False
        self.made: list[Path] = []
        """Directories that were made on the way to others, to be taken by the caller."""

    def parent(self, name: bytes, *, make: bool = True) -> tuple[int, Path, bytes]:
        """The directory that holds a file.

        Args:
            name: a path of slashes, of which nothing is believed.
            make: whether to make the directory if it is missing.

        Returns: a descriptor (O_PATH) of the directory, valid until the next call; the names that
        lead to it; and the file's own name, empty for the root itself.

        Raises:
            InvalidError: links go round, or the last name is none that a file may have.
            NoDirectoryError: there is a file where a directory should be, or, when it is not to be
                made, none.
        """
        names = [part for part in name.split(b"/") if part not in (b"", b".")]
        if not names:
            return self.handle, (), b""
        last = names.pop()
        if last == b".." or len(last) > _LONGEST_NAME or b"\0" in name:
            raise InvalidError(f"a layer has an entry with the name {name[:200]!r}")
        key = tuple(names)
        if self._last is None or self._stale or self._last[0] != key:
            self._drop()
            handle, path = self._walk(names, name, make=make)
            self._last = key, path, handle
        return self._last[2], self._last[1], last

    def forget(self) -> None:
        """Something that paths lead through was removed or replaced: walk anew next time."""
        self._stale = True

    def _drop(self) -> None:
        if self._last is not None:
            os.close(self._last[2])
        self._last = None
        self._stale = False

    def _walk(self, names: list[bytes], name: bytes, *, make: bool) -> tuple[int, Path]:
        waiting = names[::-1]
        handles = [os.dup(self.handle)]
        path: list[bytes] = []
        followed = 0
        try:
            while waiting:
                part = waiting.pop()
                if part in (b"", b"."):
                    continue
                if part == b"..":
                    if path:
                        path.pop()
                        os.close(handles.pop())
                    continue
                target = self._step(handles, path, part, name, make=make)
                if target is None:
                    continue
                followed += 1
                if followed > _LINKS:
                    raise InvalidError(f"a layer has links that go round at {name[:200]!r}")
                if target.startswith(b"/"):
                    while path:
                        path.pop()
                        os.close(handles.pop())
                waiting += target.split(b"/")[::-1]
            return handles.pop(), tuple(path)
        finally:
            for handle in handles:
                os.close(handle)

    def _step(
        self, handles: list[int], path: list[bytes], part: bytes, name: bytes, *, make: bool
    ) -> bytes | None:
        """Go into a directory, made if it is missing; or what a symbolic link there says."""
        here = handles[-1]
        if len(path) >= _DEEPEST:
            raise InvalidError(f"a layer has directories more than {_DEEPEST} deep")
        for _ in range(2):
            try:
                handle = os.open(part, _DIRECTORY, dir_fd=here)
            except FileNotFoundError:
                if not make:
                    raise NoDirectoryError(f"{name[:200]!r} is in no directory") from None
                os.mkdir(part, 0o755, dir_fd=here)
                self.made.append((*path, part))
                continue
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(part, here):
                    return os.readlink(part, dir_fd=here)
                if error.errno == errno.ENOTDIR:
                    raise NoDirectoryError(
                        f"a layer has an entry below {part!r}, which is no directory: "
                        f"{name[:200]!r}"
                    ) from error
                if error.errno == errno.ENAMETOOLONG:
                    raise InvalidError(
                        f"a layer has an entry with the name {name[:200]!r}"
                    ) from error
                raise
            handles.append(handle)
            path.append(part)
            return None
        raise InvalidError(f"a layer has an entry with the name {name[:200]!r}")

    def open_directory(self, path: Path) -> int:
        """A descriptor (O_PATH) of a directory by its names, no link followed. Raises OSError."""
        handle = os.dup(self.handle)
        for part in path:
            try:
                following = os.open(part, _DIRECTORY, dir_fd=handle)
            finally:
                os.close(handle)
            handle = following
        return handle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._drop()
        os.close(self.handle)


def proc(handle: int) -> str:
    """A path that means the file of a descriptor, for calls that take none of O_PATH."""
    return f"/proc/self/fd/{handle}"


def _is_link(name: bytes, folder: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
