"""Watches: recent history, and whom to wake for a change.

A driver publishes every commit once, in order, to its `Hub`; the hub hands it to the watches whose
prefix it touches. Everything runs on the event loop's thread.

Invariants:
- A watch gets every batch after its revision exactly once, in order, or fails with
  `CompactedError`; it is never left silently behind.
- A commit costs what it touches: prefixes are found by look-up, one for each length of prefix that
  is watched, and never by a walk over the watches.
- A forgotten watch (no reference left) is no longer served: nobody has to close one.
"""

from __future__ import annotations

import asyncio
import itertools
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Self

from bedstone.errors import Error
from bedstone.store.protocol import CompactedError, Entry, Event

Batch = tuple[Event, ...]
Row = tuple[int, str, bytes | None, int, str | None]
"""Revision, key, value (None when deleted), revision of creation, lease."""


def batches(rows: Iterable[Row]) -> list[Batch]:
    """History as databases keep it, sorted by revision, as one batch a commit."""
    events = (
        Event(key, revision, None if value is None else Entry(key, value, revision, created, lease))
        for revision, key, value, created, lease in rows
    )
    return [tuple(batch) for _, batch in itertools.groupby(events, lambda event: event.revision)]


class Watch:
    """One watcher's queue; an asynchronous iterator that never ends by itself.

    It may be iterated by one task at a time. Cancelling the wait for a batch loses none.
    """

    def __init__(self, prefix: str, after: int, limit: int) -> None:
        self.prefix = prefix
        self.after = after
        self._limit = limit
        self._batches: deque[Batch] = deque()
        self._error: Error | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[Event]:
        while not self._batches:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._batches.popleft()

    def push(self, batch: Batch) -> None:
        """Queue one commit; a watcher too slow to keep up with history has lost it."""
        if batch[0].revision <= self.after or self._error is not None:
            return
        if len(self._batches) >= self._limit:
            self._batches.clear()
            self.fail(_compacted(self.after))
            return
        self._batches.append(batch)
        self._wake()

    def fail(self, error: Error) -> None:
        """End the watch, after what is queued, with an error."""
        if self._error is None:
            self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Hub:
    """The last `limit` revisions and the watches.

    Args:
        limit: how many revisions of history are kept.

    Attributes:
        revision: the last one published.
        compacted: history up to and including this revision is gone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._history: deque[Batch] = deque()
        self._watches: dict[str, set[weakref.ref[Watch]]] = {}
        self._lengths: Counter[int] = Counter()
        self._closed: Error | None = None
        self.revision = 0
        self.compacted = 0

    def load(self, revision: int, history: Iterable[Batch]) -> None:
        """Start (again) from a history that ends at `revision`; watches of another one fail.

        The history is contiguous: one batch for each revision up to `revision`.
        """
        self._history = deque([*history][-self._limit :])
        self.revision = revision
        self.compacted = revision - len(self._history)
        for watch in self._all():
            watch.fail(_compacted(watch.after))

    def publish(self, batch: Batch) -> None:
        """Hand out one commit. One that was published before is ignored."""
        revision = batch[0].revision
        if revision <= self.revision:
            return
        if revision != self.revision + 1:
            raise AssertionError(f"got revision {revision} after {self.revision}")
        self.revision = revision
        self._history.append(batch)
        while len(self._history) > self._limit:
            self.compacted = self._history.popleft()[0].revision
        found: dict[str, list[Event]] = {}
        for event in batch:
            for length in tuple(self._lengths):
                prefix = event.key[:length]
                if len(prefix) == length and prefix in self._watches:
                    found.setdefault(prefix, []).append(event)
        for prefix, events in found.items():
            part = batch if len(events) == len(batch) else tuple(events)
            for watch in self._at(prefix):
                watch.push(part)

    def watch(self, prefix: str, after: int) -> Watch:
        """Register a watch and queue what it has missed."""
        watch = Watch(prefix, after, self._limit)
        if self._closed is not None:
            watch.fail(self._closed)
        elif after < self.compacted:
            watch.fail(_compacted(after))
        else:
            missed = itertools.takewhile(
                lambda batch: batch[0].revision > after, reversed(self._history)
            )
            for batch in reversed(list(missed)):
                events = tuple(event for event in batch if event.key.startswith(prefix))
                if events:
                    watch.push(events)
            self._register(watch)
        return watch

    def lose(self, watch: Watch) -> None:
        """Fail a watch whose history is not this store's."""
        watch.fail(_compacted(watch.after))

    def ahead(self) -> list[Watch]:
        """The watches that ask for a revision which is not published yet."""
        return [watch for watch in self._all() if watch.after > self.revision]

    def close(self, error: Error) -> None:
        """Fail every watch, those to come included."""
        self._closed = error
        for watch in self._all():
            watch.fail(error)

    def _register(self, watch: Watch) -> None:
        prefix = watch.prefix

        def forget(reference: weakref.ref[Watch]) -> None:
            members = self._watches.get(prefix)
            if members is not None:
                members.discard(reference)
                if not members:
                    del self._watches[prefix]
                    self._lengths -= Counter([len(prefix)])

        if prefix not in self._watches:
            self._watches[prefix] = set()
            self._lengths[len(prefix)] += 1
        self._watches[prefix].add(weakref.ref(watch, forget))

    def _at(self, prefix: str) -> list[Watch]:
        references = tuple(self._watches.get(prefix, ()))
        return [watch for reference in references if (watch := reference()) is not None]

    def _all(self) -> list[Watch]:
        return [watch for prefix in tuple(self._watches) for watch in self._at(prefix)]


def _compacted(after: int) -> CompactedError:
    return CompactedError(
        f"the history after revision {after} is no longer kept",
        hint="list again and watch from the listing's revision",
    )
