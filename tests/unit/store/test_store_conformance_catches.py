"""The conformance suite finds stores that break their promises."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

import pytest

from bedstone.errors import ConflictError, Error
from bedstone.store import Event, Listing, Operation, Put
from bedstone.store.leases import Observer
from bedstone.store.memory import MemoryStore
from bedstone.store.watching import Watch
from bedstone.testing.store import CHECKS, Subject, run_check


class _Edited(Watch):
    """A watch whose batches pass through `edit`."""

    def __init__(self, inner: Watch, edit: Callable[[Sequence[Event]], int]) -> None:
        self._inner = inner
        self._edit = edit
        self._again: list[Sequence[Event]] = []

    async def __anext__(self) -> Sequence[Event]:
        if self._again:
            return self._again.pop()
        while True:
            batch = await anext(self._inner)
            count = self._edit(batch)
            if count:
                self._again = [batch] * (count - 1)
                return batch


class Gap(MemoryStore):
    """Its watches miss every 31st revision."""

    def watch(self, prefix: str, after: int) -> Watch:
        return _Edited(super().watch(prefix, after), lambda it: int(it[0].revision % 31 != 0))


class Duplicate(MemoryStore):
    """Its watches say every 31st revision twice."""

    def watch(self, prefix: str, after: int) -> Watch:
        return _Edited(super().watch(prefix, after), lambda it: 1 + int(it[0].revision % 31 == 0))


class Lost(MemoryStore):
    """It acknowledges some commits that it did not apply."""

    count = itertools.count(1)

    async def commit(self, operations: Sequence[Operation]) -> int:
        if next(self.count) % 37 == 0:
            return self.revision + 1
        return await super().commit(operations)


class LastWins(MemoryStore):
    """It ignores expected revisions."""

    async def commit(self, operations: Sequence[Operation]) -> int:
        return await super().commit(
            [
                Put(it.key, it.value, lease=it.lease) if isinstance(it, Put) else it
                for it in operations
            ]
        )


class Halves(MemoryStore):
    """It applies each operation by itself."""

    async def commit(self, operations: Sequence[Operation]) -> int:
        revision = self.revision
        for operation in operations:
            revision = await super().commit([operation])
        return revision


class Lies(MemoryStore):
    """It reports failures of what it applied."""

    count = itertools.count(1)

    async def commit(self, operations: Sequence[Operation]) -> int:
        revision = await super().commit(operations)
        if next(self.count) % 37 == 0:
            raise ConflictError("not really")
        return revision


class Hasty(MemoryStore):
    """It counts time that it has not observed."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._observer = Observer(self._clock.monotonic(), longest_step=1e9)
        return self


class Stale(MemoryStore):
    """Its listings are one commit old."""

    before: Listing | None = None

    async def commit(self, operations: Sequence[Operation]) -> int:
        self.before = await super().list("")
        return await super().commit(operations)

    async def list(self, prefix: str) -> Listing:
        if self.before is None:
            return await super().list(prefix)
        under = [it for it in self.before.entries if it.key.startswith(prefix)]
        return Listing(self.before.revision + 1, under)


def broken(check: str, kind: type[MemoryStore]) -> bool:
    subject = Subject(lambda clock, history: kind(clock=clock, history=history), durable=False)
    try:
        run_check(check, subject)
    except (AssertionError, Error):
        return True
    except ExceptionGroup as group:
        return group.subgroup(AssertionError) is not None
    return False


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (Gap, "check_replaying_a_watch_equals_the_truth"),
        (Duplicate, "check_replaying_a_watch_equals_the_truth"),
        (Lies, "check_replaying_a_watch_equals_the_truth"),
        (Stale, "check_replaying_a_watch_equals_the_truth"),
        (Lost, "check_compare_and_put_is_linearizable"),
        (LastWins, "check_compare_and_put_is_linearizable"),
        (LastWins, "check_a_conflict_applies_nothing"),
        (Halves, "check_a_conflict_applies_nothing"),
        (Halves, "check_a_watch_sees_each_commit_once"),
        (Hasty, "check_unseen_time_ends_no_lease"),
    ],
)
def test_a_broken_promise_is_found(kind: type[MemoryStore], check: str) -> None:
    assert check in CHECKS
    assert not broken(check, MemoryStore)
    assert broken(check, kind)


def test_an_iterator_is_enough_for_a_watch() -> None:
    watch: AsyncIterator[Sequence[Event]] = _Edited(Watch("", 0, 1), lambda _: 1)
    assert watch.__aiter__() is watch
