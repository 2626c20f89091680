"""A race against a store, and what must hold whatever happened in it.

Writers write at random, watchers follow from several starts, and every write carries a number of
its own. So afterwards each write is known to be there once, or not at all, and what every watcher
knows can be held against the truth.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from bedstone.errors import ConflictError, UnavailableError, UnknownOutcomeError
from bedstone.store import ABSENT, Delete, Entry, Event, Listing, Operation, Put, Store

T = TypeVar("T")

ROUNDS: Final = 40
_MARK: Final = "race/mark"
_STOP: Final = "race/stop"


class Race:
    """Concurrent writers, watchers and lists.

    Args:
        watched: the store that is watched and listed.
        writers: the stores that are written through, each by one task.
        disturb: runs meanwhile, and the writers go on until it returns.
    """

    def __init__(
        self,
        watched: Store,
        writers: Sequence[Store],
        disturb: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._watched = watched
        self._writers = writers
        self._disturb = disturb
        self._disturbing = disturb is not None
        self._numbers = itertools.count()
        self._acknowledged: dict[int, int] = {}
        self._refused: set[int] = set()
        self._seen: dict[int, int] = {}

    async def run(self) -> None:
        """Run the race, and check it.

        Raises:
            AssertionError: a watcher had a gap, a duplicate or another truth; an acknowledged write
                is missing, or one reported as not applied is there.
        """
        async with asyncio.TaskGroup() as tasks:
            observers = [tasks.create_task(self._observe(await self._list()))]
            async with asyncio.TaskGroup() as writing:
                for seed, store in enumerate(self._writers):
                    writing.create_task(self._write(store, random.Random(seed)))  # noqa: S311
                writing.create_task(self._run_disturbance())
                for _ in range(4):
                    await asyncio.sleep(0.02)
                    observers.append(tasks.create_task(self._observe(await self._list())))
            await _insist(lambda: self._writers[0].commit([Put(_STOP, b"")]))
        truth = {entry.key: entry for entry in (await self._list()).entries}
        for observer in observers:
            replica, revisions = observer.result()
            assert replica == truth, "a watcher knows something else"
            assert all(one < two for one, two in itertools.pairwise(revisions)), "out of order"
        # Every commit of the race touches the prefix, so the first observer saw them all.
        _, revisions = observers[0].result()
        assert revisions == list(range(revisions[0], revisions[-1] + 1)), "a gap"
        for number, revision in self._acknowledged.items():
            assert self._seen.get(number) == revision, "an acknowledged write is missing"
        assert self._acknowledged, "nothing was ever acknowledged"
        assert not self._refused & self._seen.keys(), "a write that failed was applied"

    async def _run_disturbance(self) -> None:
        if self._disturb is not None:
            await self._disturb()
            self._disturbing = False

    async def _write(self, store: Store, chance: random.Random) -> None:
        rounds = 0
        while rounds < ROUNDS or self._disturbing:
            rounds += 1
            number = next(self._numbers)
            try:
                operation = await self._choose(store, chance, b"%d" % number)
                mark = Put(_MARK, b"%d" % number)
                self._acknowledged[number] = await store.commit([operation, mark])
            except (ConflictError, UnavailableError):
                self._refused.add(number)
            except UnknownOutcomeError:
                pass  # the watchers will tell
            await asyncio.sleep(0.002 * chance.random())

    async def _choose(self, store: Store, chance: random.Random, value: bytes) -> Operation:
        key = f"race/{chance.randrange(12)}"
        match chance.randrange(3):
            case 0:
                return Delete(key)
            case 1:
                return Put(key, value)
            case _:
                present = await store.get(key)
                return Put(key, value, ABSENT if present is None else present.revision)

    async def _observe(self, start: Listing) -> tuple[dict[str, Entry], list[int]]:
        replica = {entry.key: entry for entry in start.entries}
        revisions: list[int] = []
        async for batch in self._watched.watch("race/", start.revision):
            assert len({event.revision for event in batch}) == 1, "a batch is one commit"
            revisions.append(batch[0].revision)
            for event in batch:
                self._replay(replica, event)
            if batch[0].key == _STOP:
                break
        return replica, revisions

    def _replay(self, replica: dict[str, Entry], event: Event) -> None:
        if event.entry is None:
            assert replica.pop(event.key, None) is not None, f"{event.key} was not there"
            return
        assert event.entry.revision == event.revision
        replica[event.key] = event.entry
        if event.key == _MARK:
            known = self._seen.setdefault(int(event.entry.value), event.revision)
            assert known == event.revision, "a write was applied twice"

    async def _list(self) -> Listing:
        return await _insist(lambda: self._watched.list("race/"))


async def _insist(attempt: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await attempt()
        except UnavailableError:
            await asyncio.sleep(0.05)
