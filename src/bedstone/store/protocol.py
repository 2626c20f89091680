"""What a store promises, whichever driver implements it.

Invariants, checked by `bedstone.testing` for every driver:

1. Revisions are positive integers that grow by one commit at a time; every change in one `commit`
   carries the same revision. Commit order is revision order.
2. A commit is atomic and durable before it returns: all its operations are applied or none, and
   after a crash it is still there.
3. A watch from revision R yields every commit after R that touches its prefix, once, in order, as
   one batch per commit; or it raises `CompactedError` when that history is gone. It has no gap.
4. A list plus a watch from the list's revision equals the truth.
5. A lease ends only after its time to live has passed without a keep-alive *as observed by a
   running store*: time in which no store runs ends no lease. Its keys go in one atomic commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self, runtime_checkable

from bedstone.drivers import Kind
from bedstone.errors import ConflictError

ANY: Final = -1
"""Expected revision: whatever is there, or nothing."""

ABSENT: Final = 0
"""Expected revision: the key does not exist."""


class CompactedError(ConflictError):
    """The history a watch asked for is gone; list again and watch from there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key as it is at `revision`, the revision of its last write."""

    key: str
    value: bytes
    revision: int
    created: int
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The entries under a prefix, sorted by key, as of `revision`."""

    revision: int
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; `expected` is `ANY`, `ABSENT` or the revision of its last write."""

    key: str
    value: bytes
    expected: int = ANY
    lease: str | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key; deleting what is absent is no change, unless `expected` says otherwise."""

    key: str
    expected: int = ANY


Operation = Put | Delete


@dataclass(frozen=True, slots=True)
class Event:
    """A key changed at `revision`; `entry` is None when it was deleted."""

    key: str
    revision: int
    entry: Entry | None


@runtime_checkable
class Store(Protocol):
    """A revisioned key-value store with watches and leases.

    Every method may be called concurrently. `UnavailableError` means not applied;
    `UnknownOutcomeError` means that a write may have been applied.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def get(self, key: str) -> Entry | None:
        """The entry, or None; linearizable with the caller's own commits."""
        ...

    async def list(self, prefix: str) -> Listing:
        """All entries whose key starts with `prefix`, at one revision."""
        ...

    async def commit(self, operations: Sequence[Operation]) -> int:
        """Apply all operations or none; return the store's revision after it.

        A commit that changes nothing (deletes of absent keys) returns the present revision.

        Raises:
            ConflictError: a key's revision is not the expected one; nothing was applied.
            InvalidError: a key is empty, named twice, or a lease is unknown.
            UnavailableError: not applied.
            UnknownOutcomeError: may have been applied.
        """
        ...

    def watch(self, prefix: str, after: int) -> AsyncIterator[Sequence[Event]]:
        """Every commit under `prefix` after revision `after`, one batch a commit, for ever.

        A driver's lost connection is healed inside; the iteration goes on without gap or duplicate.

        Raises:
            CompactedError: on iteration, when history after `after` is no longer kept.
        """
        ...

    async def grant(self, lease: str, ttl: float) -> None:
        """Create a lease of `ttl` seconds, or renew it (idempotent); its time starts anew."""
        ...

    async def keep_alive(self, lease: str) -> None:
        """Start the lease's time anew.

        Raises:
            NotFoundError: the lease has ended.
        """
        ...

    async def revoke(self, lease: str) -> None:
        """End the lease now and delete its keys in one commit; unknown is no change."""
        ...


STORES: Kind[Store] = Kind(
    "store",
    {
        "sqlite": "bedstone.store.sqlite:SqliteStore",
        "memory": "bedstone.store.memory:MemoryStore",
        "postgres": "bedstone.store.postgres:PostgresStore",
        "postgresql": "bedstone.store.postgres:PostgresStore",
    },
)


def open_store(url: str) -> Store:
    """Construct the store that a URL names; entering its context acquires it.

    Raises:
        InvalidError: the URL names no driver, or the driver refuses it.
    """
    return STORES.open(url)
