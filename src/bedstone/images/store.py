"""The content store: blobs by digest, and what keeps them.

```text
ROOT/blobs/ALGORITHM/HEX      content, read-only, verified before it has its name
ROOT/ingest/ALGORITHM-HEX     content on its way in (`bedstone.images.ingest`)
ROOT/references/KEY.json      an image's name and the descriptor that it means
ROOT/attached/ALGORITHM-HEX/  descriptors of artifacts that live as long as what they are about
ROOT/leases/KEY.json          what somebody uses now, until a time or until released
ROOT/lock                     shared by who adds, exclusive for the garbage collector
```

Invariants:
- A blob with a name is whole, whatever was killed and whenever: it was verified and flushed first.
- The garbage collector (`bedstone.images.collection`) removes what can be reached from no reference
  and no lease, and nothing else. Whoever puts an image together takes a lease first and adds each
  digest to it before relying on its blob.
- All methods may be called by several processes and threads at once. They block: call those that
  read or write much in a thread.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bedstone.errors import InvalidError, NotFoundError, UnavailableError, VerificationError
from bedstone.images import digests
from bedstone.images.files import make_directory, replace_file
from bedstone.images.ingest import Writer
from bedstone.images.leases import Lease, Leases
from bedstone.images.models import CONFIG_BYTES, Descriptor
from bedstone.images.reference import Reference
from bedstone.images.references import Attachments, Named, References

_ALGORITHMS = ("sha256", "sha512")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a store holds: blobs, their bytes, and bytes of downloads that were cut."""

    blobs: int
    bytes: int
    partial_bytes: int


class ContentStore:
    """A store in a directory, which is made if it is missing.

    Args:
        root: the directory.
        clock: seconds since the epoch.

    Raises:
        UnavailableError: the directory cannot be made or written.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.root = root
        self._clock = clock
        self._ingest = root / "ingest"
        self._lock = root / "lock"
        try:
            for name in ("references", "leases", "attached"):
                make_directory(root / name)
            for algorithm in _ALGORITHMS:
                make_directory(root / "blobs" / algorithm)
            make_directory(self._ingest, 0o700)
            with self._lock.open("ab"):
                pass
        except OSError as error:
            raise UnavailableError(
                f"cannot keep images in {root}: {error.strerror}",
                hint="make the directory writable for you, or set BEDSTONE_HOME to another",
            ) from error
        self._references = References(root / "references", clock)
        self._attachments = Attachments(root / "attached")
        self._leases = Leases(root / "leases", clock, self.adding)

    # Blobs

    def path(self, digest: str) -> Path:
        """Where a blob is or would be; its file must not be changed. Raises InvalidError."""
        algorithm, value = digests.parts(digest)
        return self.root / "blobs" / algorithm / value

    def has(self, digest: str) -> bool:
        """Whether a blob is there, whole. Raises InvalidError."""
        return self.path(digest).is_file()

    def size(self, digest: str) -> int:
        """A blob's bytes. Raises InvalidError, NotFoundError."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            raise _missing(digest) from None

    def open(self, digest: str) -> BinaryIO:
        """A blob for reading; it stays readable when it is deleted. Raises NotFoundError."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            raise _missing(digest) from None

    def read(self, digest: str, limit: int = CONFIG_BYTES) -> bytes:
        """A small blob, verified again.

        Raises:
            InvalidError: it has more than `limit` bytes.
            NotFoundError: it is not there.
            VerificationError: the disk gave other bytes than were written.
        """
        with self.open(digest) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InvalidError(f"{digest} has more than {limit} bytes")
        if not digests.matches(digest, data):
            raise _damaged(digest)
        return data

    def verify(self, digest: str) -> None:
        """Read a whole blob and compare; a damaged one stays, for `delete`.

        Raises:
            NotFoundError: it is not there.
            VerificationError: it is not what its name says.
        """
        path = self.path(digest)
        try:
            found = digests.of_file(path, digests.parts(digest)[0])
        except FileNotFoundError:
            raise _missing(digest) from None
        except OSError as error:
            raise VerificationError(f"content {digest} is unreadable: {error.strerror}") from error
        if found != digest:
            raise _damaged(digest)

    def writer(self, digest: str, size: int | None = None) -> Writer:
        """A writer for a blob, which goes on where the last one was cut; raises as `Writer`."""
        algorithm, value = digests.parts(digest)
        return Writer(self._ingest / f"{algorithm}-{value}", self.path(digest), digest, size)

    def put(self, data: bytes, digest: str | None = None) -> str:
        """Store a small blob, durably; its digest. Idempotent.

        Raises:
            VerificationError: it is not what `digest` names.
            UnavailableError: the disk refuses.
        """
        digest = digest or digests.of(data)
        if not digests.matches(digest, data):
            raise VerificationError(f"got content {digests.of(data)}, expected {digest}")
        path = self.path(digest)
        with self.adding():
            if not path.is_file():
                try:
                    replace_file(path, data, mode=0o444)
                except OSError as error:
                    raise UnavailableError(f"cannot write {path}: {error.strerror}") from error
        return digest

    def delete(self, digest: str) -> None:
        """Delete a blob, whoever uses it; for damaged ones. Idempotent. Raises InvalidError."""
        self.path(digest).unlink(missing_ok=True)

    def blobs(self) -> Iterator[tuple[str, int]]:
        """Each blob's digest and bytes, in no order."""
        for algorithm in _ALGORITHMS:
            for entry in os.scandir(self.root / "blobs" / algorithm):
                digest = f"{algorithm}:{entry.name}"
                if digests.valid(digest):
                    yield digest, entry.stat().st_size

    def usage(self) -> Usage:
        """How much the store holds."""
        sizes = [size for _, size in self.blobs()]
        partial = sum(entry.stat().st_size for entry in os.scandir(self._ingest))
        return Usage(len(sizes), sum(sizes), partial)

    # Names, and artifacts about content

    def name(self, reference: Reference, descriptor: Descriptor) -> None:
        """Let a name mean a manifest or index, durably; it is kept from then on.

        Raises:
            NotFoundError: that content is not in the store.
        """
        with self.adding():
            self.size(descriptor.digest)
            self._references.put(reference, descriptor)

    def resolve(self, reference: Reference) -> Descriptor:
        """What a name means here; nothing is asked elsewhere. Raises NotFoundError."""
        return self._references.get(reference)

    def unname(self, reference: Reference) -> None:
        """Forget a name; the content goes with the next collection. Raises NotFoundError."""
        self._references.delete(reference)

    def names(self) -> list[Named]:
        """All names, sorted."""
        return self._references.all()

    def attach(self, subject: str, kind: str, descriptor: Descriptor) -> None:
        """Keep a blob for as long as its subject is kept: an index, a list, a signature.

        Args:
            subject: the digest of what it is about.
            kind: a word of letters, digits and hyphens; one of a kind, the last stays.
            descriptor: of the blob, which must be in the store.

        Raises:
            InvalidError: `kind` is no such word.
            NotFoundError: the blob is not there.
        """
        with self.adding():
            self.size(descriptor.digest)
            self._attachments.put(subject, kind, descriptor)

    def attached(self, subject: str) -> Mapping[str, Descriptor]:
        """What is attached to content, by kind. Raises InvalidError."""
        return self._attachments.get(subject)

    # Leases and collection

    def lease(self, name: str, *, seconds: float | None = None) -> Lease:
        """Make a lease or renew the one of that name, which keeps what it holds.

        Args:
            name: who uses it, e.g. `box-7f3a`; unique in the store.
            seconds: how long, from now; None for as long as it is not released.
        """
        return self._leases.take(name, seconds)

    def leases(self) -> list[Lease]:
        """The leases that have not run out, by name."""
        return self._leases.live()

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Keeps the garbage collector away for a moment; never hold it across a download."""
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Keeps everybody away who adds; for the garbage collector."""
        with self._locked(fcntl.LOCK_EX):
            yield

    def sweep(self, kept: set[str], partial_after: float) -> int:
        """Remove what is beside the blobs and no longer needed; the caller is collecting.

        Args:
            kept: the digests that stay.
            partial_after: seconds after which a download that was cut is given up.

        Returns: the bytes of downloads that were given up.
        """
        self._leases.sweep()
        self._attachments.sweep(kept)
        # Nobody adds now: a temporary file belongs to a process that was killed.
        for leftover in self.root.glob("*/**/.*.tmp"):
            leftover.unlink(missing_ok=True)
        freed = 0
        for path in self._ingest.iterdir():
            state = path.stat()
            if self._clock() - state.st_mtime > partial_after and _abandoned(path):
                path.unlink(missing_ok=True)
                freed += state.st_size
        return freed

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        # A descriptor of its own for each: flock belongs to the open file, not to the process.
        with self._lock.open("rb") as file:
            fcntl.flock(file, how)
            yield


def _abandoned(path: Path) -> bool:
    """Whether no writer holds a file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _missing(digest: str) -> NotFoundError:
    return NotFoundError(f"content {digest} is not in the store")


def _damaged(digest: str) -> VerificationError:
    return VerificationError(
        f"content {digest} is damaged in the store",
        hint="`bedstone image verify NAME` removes it; pull the image again then",
    )
