"""Leases: who uses content now, so that the garbage collector leaves it.

A lease is a file with a time at which it runs out (or none) and digests; each change replaces the
file. A lease has one user: two processes that change the same one at once lose a change.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from bedstone.images import digests
from bedstone.images.files import replace_file

Adding = Callable[[], AbstractContextManager[None]]
"""Keeps the garbage collector away (`ContentStore.adding`)."""


class Lease:
    """One lease; a context manager that releases it. It keeps all that its digests lead to.

    Attributes:
        name: who uses it.
        expires: when it runs out, in seconds since the epoch; None for never.
        holds: digests.
    """

    def __init__(
        self, path: Path, adding: Adding, name: str, expires: float | None, holds: Iterable[str]
    ) -> None:
        self._path = path
        self._adding = adding
        self._lock = threading.Lock()
        self.name = name
        self.expires = expires
        self.holds = frozenset(holds)

    def add(self, *found: str) -> None:
        """Hold these too, durably, whether they are in the store yet or not.

        Once this returns, a blob that is in the store or comes into it stays there. Raises
        InvalidError, OSError.
        """
        wanted = {digests.check(digest) for digest in found}
        with self._lock:
            if not wanted <= self.holds:
                self.holds |= wanted
                self.write()

    def release(self) -> None:
        """End it. Idempotent."""
        self._path.unlink(missing_ok=True)

    def write(self) -> None:
        """Make it durable. Raises OSError."""
        record = {"name": self.name, "expires": self.expires, "holds": sorted(self.holds)}
        with self._adding():
            replace_file(self._path, json.dumps(record).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Leases:
    """The leases of a store, in a directory."""

    def __init__(self, folder: Path, clock: Callable[[], float], adding: Adding) -> None:
        self._folder = folder
        self._clock = clock
        self._adding = adding

    def take(self, name: str, seconds: float | None) -> Lease:
        """Make or renew one."""
        key = hashlib.sha256(name.encode()).hexdigest()
        path = self._folder / f"{key}.json"
        before = self._read(path)
        lease = Lease(
            path,
            self._adding,
            name,
            None if seconds is None else self._clock() + seconds,
            before.holds if before is not None else (),
        )
        lease.write()
        return lease

    def live(self) -> list[Lease]:
        """Those that have not run out."""
        found = [self._read(path) for path in self._folder.glob("*.json")]
        return sorted(
            (lease for lease in found if lease is not None and not self._over(lease)),
            key=lambda lease: lease.name,
        )

    def sweep(self) -> None:
        """Delete those that have run out; the caller keeps everybody away."""
        for path in self._folder.glob("*.json"):
            lease = self._read(path)
            if lease is not None and self._over(lease):
                lease.release()

    def _over(self, lease: Lease) -> bool:
        return lease.expires is not None and lease.expires <= self._clock()

    def _read(self, path: Path) -> Lease | None:
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        return Lease(path, self._adding, record["name"], record["expires"], record["holds"])
