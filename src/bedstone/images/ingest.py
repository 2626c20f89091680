"""Bringing content into the store: written aside, verified, made durable, then named.

A download that was cut goes on where it ended: what was written stays in `ingest/`, locked by its
writer (flock) for as long as that lives. Bytes that are found there are hashed again before more is
added; were they damaged (a machine that lost power), the digest at the end says so, and they are
dropped.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from bedstone.errors import ConflictError, UnavailableError, VerificationError
from bedstone.images import digests
from bedstone.images.files import sync_directory

_BLOCK = 1 << 20


class Writer:
    """Writes one blob; a context manager. Leaving it without `commit` keeps what was written.

    Args:
        partial: the file to write aside.
        final: the blob's path.
        digest: what it must be.
        size: its size in bytes, which is never exceeded; None if it is not known.

    Raises:
        ConflictError: another process or task writes this blob now.
        UnavailableError: the disk refuses.
    """

    def __init__(self, partial: Path, final: Path, digest: str, size: int | None) -> None:
        self._partial = partial
        self._final = final
        self._digest = digest
        self._size = size
        self._hash = digests.hasher(digest)
        self._offset = 0
        self._handle = _lock(partial, digest)
        try:
            self._take_up()
        except BaseException:
            os.close(self._handle)
            self._handle = -1
            raise

    @property
    def offset(self) -> int:
        """Bytes that are there: where a download goes on."""
        return self._offset

    def _take_up(self) -> None:
        buffer = bytearray(_BLOCK)
        view = memoryview(buffer)
        while count := os.preadv(self._handle, [buffer], self._offset):
            self._hash.update(view[:count])
            self._offset += count
        if self._size is not None and self._offset > self._size:
            self.restart()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes.

        Raises:
            VerificationError: they are more than the blob has; what was written is dropped.
            UnavailableError: the disk is full or broken.
        """
        view = memoryview(data)
        if self._size is not None and self._offset + len(view) > self._size:
            self.restart()
            raise VerificationError(
                f"{self._digest} came with more than the {self._size} bytes that it should have"
            )
        self._hash.update(view)
        try:
            while view:
                count = os.pwrite(self._handle, view, self._offset)
                self._offset += count
                view = view[count:]
        except OSError as error:
            # The hash is ahead of the file now: nothing may go on from here.
            self.restart()
            raise _disk(self._partial, error) from error

    def restart(self) -> None:
        """Drop what was written, and begin anew."""
        self._hash = digests.hasher(self._digest)
        self._offset = 0
        os.ftruncate(self._handle, 0)

    def commit(self) -> None:
        """Verify the content and give it its name, durably. Idempotent among writers.

        Raises:
            VerificationError: the content is not what the digest names; it is dropped.
            UnavailableError: the disk refuses; what was written stays.
        """
        found = f"{digests.parts(self._digest)[0]}:{self._hash.hexdigest()}"
        if found != self._digest or (self._size is not None and self._offset != self._size):
            size = self._offset
            self.restart()
            wanted = "" if self._size is None else f", expected {self._size} bytes"
            raise VerificationError(
                f"got content {found} of {size} bytes{wanted}, expected {self._digest}"
            )
        try:
            os.fchmod(self._handle, 0o444)
            os.fsync(self._handle)
            # Not before the fsync: a name whose content is lost would be believed.
            self._partial.rename(self._final)
            sync_directory(self._final.parent)
        except OSError as error:
            raise _disk(self._final, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._handle)
        self._handle = -1


def _lock(partial: Path, digest: str) -> int:
    """Open and lock the file to write aside; it is the one that has the name when this returns."""
    while True:
        try:
            handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _disk(partial, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it before may have committed it in between: then it has another name.
            if _same(handle, partial):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise ConflictError(
                f"{digest} is being written by another process",
                hint="wait until it is done, and look again",
            ) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _disk(path: Path, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"cannot write {path}: {error.strerror}",
        hint="free space or correct the permissions; `bedstone image gc` removes what is not used",
    )
