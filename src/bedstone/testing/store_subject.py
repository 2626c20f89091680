"""What the checks of stores are run on, and what they all use.

Owns `Subject`, the world of data that a driver's tests describe, and small helpers of the checks.
The checks themselves are in `store_entries`, `store_watches` and `store_leases`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from bedstone.errors import Error
from bedstone.store import Entry, Store
from bedstone.store.leases import Clock
from bedstone.testing.faults import VirtualClock

SKIPPED: Final = "skipped"


@dataclass(frozen=True, slots=True)
class Subject:
    """One world of data, and how to make stores over it.

    Args:
        make: a store, not entered yet, over this world, given the clock that observes its leases
            and the revisions of history that it must keep (it may keep somewhat more).
        durable: the data outlives the store.
        shared: several stores over this world may be open at once.
        cut: break every connection of the open stores, if they have any.
    """

    make: Callable[[Clock, int], Store]
    durable: bool = True
    shared: bool = False
    cut: Callable[[], Awaitable[None]] | None = None

    def store(self, clock: Clock | None = None, history: int = 1000) -> Store:
        """Make a store."""
        return self.make(clock or VirtualClock(), history)


async def expect(kind: type[Error], attempt: Awaitable[object]) -> Error:
    """Await a failure of one kind."""
    try:
        result = await attempt
    except kind as error:
        return error
    raise AssertionError(f"got {result!r}, expected {kind.__name__}")


async def entries_of(store: Store, prefix: str = "") -> dict[str, Entry]:
    """A listing by key."""
    return {entry.key: entry for entry in (await store.list(prefix)).entries}


async def entry_of(store: Store, key: str) -> Entry:
    """An entry that must be there."""
    entry = await store.get(key)
    assert entry is not None, key
    return entry


class Checks:
    """Checks on one subject, each an `async` method named `check_…`.

    Args:
        subject: the world that the check may write to.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
