"""A store owned by one process: it reads from memory, and writes to a journal first.

`memory` and `sqlite` are this store with different journals.

Invariants:
- What a reader or a watcher sees is in the journal, durable.
- The journal and the memory are at the same revision whenever no group is being written. Where a
  failed write may have left the journal ahead, `recover` tells, before anything else is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self

from bedstone.errors import Error, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.store.batching import Batcher, closed
from bedstone.store.leases import INTERVAL, Clock, Observer, SystemClock, end_lapsed
from bedstone.store.planning import (
    Commit,
    Draft,
    Grant,
    Outcome,
    Renew,
    Request,
    Revoke,
    check_lease,
    check_operations,
)
from bedstone.store.protocol import Entry, Listing, Operation
from bedstone.store.state import State
from bedstone.store.watching import Batch, Hub, Watch

HISTORY: Final = 10_000
"""Revisions of history kept by default."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a journal holds: the present, and the history (contiguous, up to `revision`)."""

    revision: int = 0
    entries: Iterable[Entry] = ()
    history: Sequence[Batch] = ()
    leases: Mapping[str, float] = field(default_factory=dict)


class Journal(Protocol):
    """Where a local store's changes are made durable. Calls never overlap."""

    async def open(self, history: int) -> Loaded:
        """Acquire it exclusively and read it, keeping `history` revisions from now on.

        Raises:
            InvalidError: what is there is not a store that this version can read.
            UnavailableError: another process has it, or it cannot be reached.
        """
        ...

    async def write(self, draft: Draft) -> None:
        """Make a draft durable as a whole.

        Raises:
            UnavailableError: not applied, and it never will be.
            UnknownOutcomeError: call `recover` to find out.
        """
        ...

    async def recover(self) -> Loaded:
        """Read it anew, all of it durable, after a write of unknown outcome.

        Raises:
            UnavailableError: still not possible.
        """
        ...

    async def close(self) -> None:
        """Release it; never raises."""
        ...


class LocalStore:
    """A `Store` over a journal.

    Args:
        journal: where changes are made durable.
        history: how many revisions a watch can catch up.
        clock: observes the leases.
    """

    def __init__(
        self, journal: Journal, *, history: int = HISTORY, clock: Clock | None = None
    ) -> None:
        if history < 1:
            raise InvalidError(f"got history={history}, expected at least 1 revision")
        self._journal = journal
        self._history = history
        self._clock = clock or SystemClock()
        self._renewals = itertools.count(1)
        self._open = False
        self._stale = False  # the journal may be ahead of memory

    async def __aenter__(self) -> Self:
        if self._open:
            raise InvalidError("the store is open already", hint="construct another one")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._journal.close)
            loaded = await self._journal.open(self._history)
            self._hub = Hub(self._history)
            self._take_over(loaded)
            self._batcher = Batcher(self._write)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            tasks.create_task(self._batcher.run(), name="store writer")
            self._observing = tasks.create_task(self._observe(), name="store leases")
            self._stack = stack.pop_all()
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        self._batcher.stop()
        self._observing.cancel()
        self._hub.close(closed())
        # The task group must not wrap an error of the caller's own: it sees cancellation only.
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        await self._stack.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))

    async def get(self, key: str) -> Entry | None:
        """The entry, or None."""
        return self._opened().get(key)

    async def list(self, prefix: str) -> Listing:
        """All entries whose key starts with `prefix`, at one revision."""
        return self._opened().list(prefix)

    async def commit(self, operations: Sequence[Operation]) -> int:
        """Apply all operations or none; return the store's revision after it."""
        self._opened()
        return await self._batcher.submit(Commit(check_operations(operations)))

    def watch(self, prefix: str, after: int) -> Watch:
        """Every commit under `prefix` after revision `after`, one batch a commit, for ever."""
        state = self._opened()
        watch = self._hub.watch(prefix, after)
        if after > state.revision:  # a revision of some other store
            self._hub.lose(watch)
        return watch

    async def grant(self, lease: str, ttl: float) -> None:
        """Create a lease of `ttl` seconds, or renew it; its time starts anew."""
        self._opened()
        await self._batcher.submit(Grant(lease, check_lease(lease, ttl)))

    async def keep_alive(self, lease: str) -> None:
        """Start the lease's time anew."""
        self._opened()
        await self._batcher.submit(Renew(lease))

    async def revoke(self, lease: str) -> None:
        """End the lease now and delete its keys in one commit."""
        self._opened()
        await self._batcher.submit(Revoke(lease))

    # What a draft reads.

    @property
    def revision(self) -> int:
        """The last revision."""
        return self._state.revision

    def entry(self, key: str) -> Entry | None:
        """The key's entry."""
        return self._state.get(key)

    def renewal(self, lease: str) -> int | None:
        """The lease's renewal counter."""
        return self._observer.renewal(lease)

    def lease_keys(self, lease: str) -> Iterable[str]:
        """The keys that end with the lease."""
        return self._state.lease_keys(lease)

    def _opened(self) -> State:
        if not self._open:
            raise closed()
        return self._state

    def _take_over(self, loaded: Loaded) -> None:
        self._state = State(loaded.revision, loaded.entries)
        self._hub.load(loaded.revision, loaded.history)
        now = self._clock.monotonic()
        self._observer = Observer(now)
        for lease, ttl in loaded.leases.items():
            self._observer.see(lease, ttl, next(self._renewals), now)

    async def _write(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        if self._stale:
            await self._recover()
        draft = Draft(self)
        outcomes = [draft.add(request) for request in requests]
        if not draft.empty:
            try:
                await self._journal.write(draft)
            except UnknownOutcomeError as error:
                self._stale = True
                if not await self._recovered_with(draft):
                    raise UnavailableError(error.message, hint=error.hint) from error
                return outcomes
        self._apply(draft)
        return outcomes

    def _apply(self, draft: Draft) -> None:
        now = self._clock.monotonic()
        for batch in draft.batches:
            self._state.apply(batch)
            self._hub.publish(batch)
        for lease in draft.ended:
            self._observer.forget(lease)
        for lease, ttl in draft.grants.items():
            self._observer.see(lease, ttl, next(self._renewals), now)
        for lease in draft.renewals - draft.grants.keys():
            self._observer.see(lease, self._observer.ttl(lease), next(self._renewals), now)

    async def _recovered_with(self, draft: Draft) -> bool:
        """Whether a draft of unknown outcome turned out to be applied."""
        before = self._state.revision
        try:
            leases = await self._recover()
        except UnavailableError as error:
            raise UnknownOutcomeError(error.message, hint=error.hint) from error
        if draft.batches:
            return self._state.revision > before
        return draft.grants.items() <= leases.items() and not draft.ended & leases.keys()

    async def _recover(self) -> Mapping[str, float]:
        loaded = await self._journal.recover()
        self._stale = False
        now = self._clock.monotonic()
        for batch in loaded.history:
            if batch[0].revision > self._state.revision:
                self._state.apply(batch)
                self._hub.publish(batch)
        self._observer.see_all(
            {
                lease: (ttl, self._observer.renewal(lease) or next(self._renewals))
                for lease, ttl in loaded.leases.items()
            },
            now,
        )
        return loaded.leases

    async def _observe(self) -> None:
        while True:
            await self._clock.sleep(INTERVAL)
            if self._stale:  # a write of unknown outcome is settled even if no other follows
                with contextlib.suppress(Error):
                    await self._batcher.submit(Commit(()))
            await end_lapsed(self._observer.lapsed(self._clock.monotonic()), self._batcher.submit)
