"""The store that forgets: for tests, and for trying things out. `memory://[?history=N]`.

It is the local store with a journal that keeps nothing; each one is a world of its own.
"""

from __future__ import annotations

from typing import Self

from bedstone.errors import InvalidError
from bedstone.store.leases import Clock
from bedstone.store.local import HISTORY, Loaded, LocalStore
from bedstone.store.planning import Draft
from bedstone.store.urls import number, split_options


class _NoJournal:
    async def open(self, history: int) -> Loaded:
        del history  # the hub keeps it
        return Loaded()

    async def write(self, draft: Draft) -> None: ...

    async def recover(self) -> Loaded:
        raise AssertionError("a write to memory has no unknown outcome")

    async def close(self) -> None: ...


class MemoryStore(LocalStore):
    """A `Store` in this process's memory.

    Args:
        history: how many revisions a watch can catch up.
        clock: observes the leases.
    """

    def __init__(self, *, history: int = HISTORY, clock: Clock | None = None) -> None:
        super().__init__(_NoJournal(), history=history, clock=clock)

    @classmethod
    def open(cls, url: str) -> Self:
        """Construct from `memory://[?history=N]`.

        Raises:
            InvalidError: the URL holds anything else.
        """
        place, options = split_options(url, {"history"})
        if place != "memory://":
            raise InvalidError("a memory store's URL names no place, expected memory://")
        return cls(history=number(options, "history", HISTORY))
