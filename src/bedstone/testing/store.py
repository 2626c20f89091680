"""The conformance suite of stores: what `bedstone.store.protocol` promises, as checks.

A driver's tests describe how to make its stores with a `Subject`, and run every check:

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check: str, tmp_path: Path) -> None:
        run_check(check, Subject(
            lambda clock, history: MyStore(tmp_path / "data", clock=clock, history=history)
        ))

Each check needs a subject of its own, with no data yet. One that does not apply to the subject (a
reopening of what is not durable) returns `SKIPPED`. Failures are assertion errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from bedstone.errors import (
    ConflictError,
    Error,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from bedstone.store import (
    ABSENT,
    ANY,
    CompactedError,
    Delete,
    Entry,
    Event,
    Operation,
    Put,
    Store,
)
from bedstone.store.leases import Clock
from bedstone.testing.faults import VirtualClock
from bedstone.testing.store_race import Race

SKIPPED: Final = "skipped"
LIMIT: Final = 60.0
"""Seconds for one check."""


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


class StoreConformance:
    """The checks, each an `async` method named `check_…`.

    Args:
        subject: the world that the check may write to.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    # Entries and commits.

    async def check_a_new_store_is_empty(self) -> None:
        """Nothing is there, and asking for it is no error."""
        async with self.subject.store() as store:
            assert await store.get("a") is None
            assert list((await store.list("")).entries) == []

    async def check_invalid_input_is_refused(self) -> None:
        """What no state could accept is refused, and changes nothing."""
        async with self.subject.store() as store:
            before = (await store.list("")).revision
            bad: list[list[Operation]] = [
                [Put("", b"x")],
                [Put("a", b"x"), Put("a", b"y")],
                [Put("a", b"x"), Delete("a")],
                [Put("a", b"x", expected=-2)],
                [Put("a\0b", b"x")],
                [Put("\ud800", b"x")],
                [Put("k" * 1025, b"x")],
                [Put("a", "text")],  # type: ignore[arg-type]
                [Put("b", b"x"), Put("a", b"x", lease="unknown")],
            ]
            for operations in bad:
                await expect(InvalidError, store.commit(operations))
            for lease, ttl in (("", 1.0), ("l", 0.0), ("l", float("nan")), ("l", float("inf"))):
                await expect(InvalidError, store.grant(lease, ttl))
            after = await store.list("")
            assert (after.revision, list(after.entries)) == (before, [])

    async def check_a_conflict_applies_nothing(self) -> None:
        """One unmet expectation refuses the whole commit."""
        async with self.subject.store() as store:
            first = await store.commit([Put("a", b"1"), Put("b", b"1")])
            attempts: list[Operation] = [
                Put("a", b"2", expected=ABSENT),
                Put("a", b"2", expected=first + 1),
                Put("new", b"2", expected=first),
                Delete("a", expected=ABSENT),
                Delete("a", expected=first + 1),
                Delete("new", expected=first),
            ]
            for attempt in attempts:
                others: list[Operation] = [Put("b", b"2"), attempt, Put("c", b"2")]
                await expect(ConflictError, store.commit(others))
            listing = await store.list("")
            assert listing.revision == first
            assert [(it.key, it.value) for it in listing.entries] == [("a", b"1"), ("b", b"1")]

    async def check_expectations_that_hold_are_applied(self) -> None:
        """ABSENT, a revision and ANY, for writes and deletes."""
        async with self.subject.store() as store:
            one = await store.commit([Put("a", b"1", expected=ABSENT), Delete("x", ABSENT)])
            two = await store.commit([Put("a", b"2", expected=one)])
            assert await store.get("a") == Entry("a", b"2", two, one)
            three = await store.commit([Put("a", b"3", expected=ANY)])
            four = await store.commit([Delete("a", expected=three)])
            five = await store.commit([Put("a", b"5", expected=ABSENT)])
            assert one < two < three < four < five
            assert await store.get("a") == Entry("a", b"5", five, five)

    async def check_a_commit_that_changes_nothing_takes_no_revision(self) -> None:
        """Deleting what is absent, and the empty commit."""
        async with self.subject.store() as store:
            revision = await store.commit([Put("a", b"1")])
            watch = store.watch("", revision)
            assert await store.commit([Delete("b")]) == revision
            assert await store.commit([]) == revision
            following = await store.commit([Delete("a"), Delete("b")])
            batch = await anext(watch)
            assert list(batch) == [Event("a", following, None)]

    async def check_lists_are_sorted_and_exact(self) -> None:
        """Prefixes are text, not patterns; the order is that of code points."""
        keys = ["%", "_", "\\", "a", "a%b", "a/", "a/1", "a/\uffff", "a/\U0001f600", "a/\U0010ffff"]
        keys += ["a0", "aa", "b", "\ud7ff", "\ud7ffx", "\ue000", "\U0010ffff", "\U0010ffffz", "é"]
        async with self.subject.store() as store:
            shuffled = random.Random(7).sample(keys, len(keys))  # noqa: S311 - an order
            revision = await store.commit([Put(key, key.encode()) for key in shuffled])
            for prefix in ["", *keys, "a/\U0010ffff\U0010ffff", "zz"]:
                listing = await store.list(prefix)
                expected = sorted(key for key in keys if key.startswith(prefix))
                assert [entry.key for entry in listing.entries] == expected, repr(prefix)
                assert listing.revision == revision

    async def check_values_are_any_bytes(self) -> None:
        """Empty, with zeros, and a large one."""
        values = [b"", b"\0", bytes(range(256)), b"\xff" * (1 << 20)]
        async with self.subject.store() as store:
            await store.commit([Put(f"k{n}", value) for n, value in enumerate(values)])
            found = [entry.value for entry in (await store.list("k")).entries]
            assert found == values

    async def check_concurrent_commits_have_their_own_outcomes(self) -> None:
        """Of many racing to create one key one wins; the others conflict; no commit is lost."""
        async with self.subject.store() as store:
            start = (await store.list("")).revision
            outcomes = await asyncio.gather(
                *(
                    store.commit([Put(f"race/{n % 10}", b"%d" % n, ABSENT), Put(f"own/{n}", b"")])
                    for n in range(200)
                ),
                return_exceptions=True,
            )
            won = sorted(it for it in outcomes if isinstance(it, int))
            assert won == list(range(start + 1, start + 11)), "ten commits, a revision each"
            assert sum(isinstance(it, ConflictError) for it in outcomes) == 190
            assert len((await store.list("own/")).entries) == 10

    async def check_compare_and_put_is_linearizable(self) -> None:
        """Increments under contention: the sum equals the successes."""
        async with self.subject.store() as store:
            await store.commit([Put("counter", b"0")])

            async def increment(times: int) -> int:
                done = 0
                while done < times:
                    entry = await store.get("counter")
                    assert entry is not None
                    try:
                        following = b"%d" % (int(entry.value) + 1)
                        await store.commit([Put("counter", following, entry.revision)])
                    except ConflictError:
                        continue
                    done += 1
                return done

            done = await asyncio.gather(*(increment(20) for _ in range(6)))
            entry = await store.get("counter")
            assert entry is not None
            assert int(entry.value) == sum(done) == 120

    async def check_cancelled_uses_leave_the_store_well(self) -> None:
        """A commit given up at any moment is whole or absent; reads given up do no harm."""
        async with self.subject.store() as store:
            for steps in range(16):
                start = (await store.list("")).revision
                both: list[Operation] = [Put(f"{steps}/a", b""), Put(f"{steps}/b", b"")]
                uses = [
                    asyncio.ensure_future(use)
                    for use in (store.commit(both), store.list(""), store.get("a"))
                ]
                for _ in range(steps):
                    await asyncio.sleep(0 if steps % 2 else 0.0003)
                for use in uses:
                    use.cancel()
                await asyncio.gather(*uses, return_exceptions=True)
                after = await store.commit([Put("next", b"")])
                there = len((await store.list(f"{steps}/")).entries)
                assert there in {0, 2}
                assert after == start + 1 + (there == 2)

    # Watches.

    async def check_a_watch_sees_each_commit_once(self) -> None:
        """One batch a commit, of its prefix only, in the order of its operations."""
        async with self.subject.store() as store:
            start = await store.commit([Put("a/0", b"before")])
            watch = store.watch("a/", start)
            one = await store.commit([Put("a/2", b"x"), Put("b", b"x"), Put("a/1", b"x")])
            await store.commit([Put("b", b"y")])
            two = await store.commit([Delete("a/2"), Put("b", b"z")])
            first, second = await anext(watch), await anext(watch)
            assert [(it.key, it.revision) for it in first] == [("a/2", one), ("a/1", one)]
            assert first[0].entry == Entry("a/2", b"x", one, one)
            assert list(second) == [Event("a/2", two, None)]

    async def check_a_watch_catches_up(self) -> None:
        """A watch from an old revision begins with what it missed."""
        async with self.subject.store() as store:
            revisions = [await store.commit([Put("k", b"%d" % n)]) for n in range(10)]
            for position, after in enumerate(revisions[:-1]):
                watch = store.watch("k", after)
                for expected in revisions[position + 1 :]:
                    assert [it.revision for it in await anext(watch)] == [expected]

    async def check_a_watch_past_history_is_refused(self) -> None:
        """History that is gone is an error at once, and for a watcher that fell behind it."""
        async with self.subject.store(history=8) as store:
            old = await store.commit([Put("k", b"")])
            slow = store.watch("", old)
            for n in range(40):
                await store.commit([Put("k", b"%d" % n)])
            await expect(CompactedError, anext(store.watch("", old)))

            async def drain() -> None:
                expected = old + 1
                async for batch in slow:
                    assert batch[0].revision == expected, "a gap"
                    expected += 1
                    if expected == old + 41:
                        return  # a driver may keep more for a watcher that it has

            with contextlib.suppress(CompactedError):
                await drain()
            recent = (await store.list("")).revision
            watch = store.watch("", recent - 1)
            assert (await anext(watch))[0].revision == recent

    async def check_a_watch_from_a_revision_to_come_is_refused(self) -> None:
        """Such a revision is another store's: waiting for it would hide changes."""
        async with self.subject.store() as store:
            revision = await store.commit([Put("k", b"")])
            await expect(CompactedError, anext(store.watch("", revision + 5)))

    async def check_a_cancelled_wait_loses_nothing(self) -> None:
        """Waiting for a batch may be given up and taken up again."""
        async with self.subject.store() as store:
            watch = store.watch("", (await store.list("")).revision)
            for n in range(5):
                waiting = asyncio.ensure_future(anext(watch))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                revision = await store.commit([Put("k", b"%d" % n)])
                async with asyncio.timeout(10):
                    assert (await anext(watch))[0].revision == revision

    async def check_watchers_wake_for_their_prefix_only(self) -> None:
        """Many watchers, one change."""
        async with self.subject.store() as store:
            start = (await store.list("")).revision
            waiting = [
                asyncio.ensure_future(anext(store.watch(f"node/{n:03}/", start)))
                for n in range(300)
            ]
            every = store.watch("node/", start)
            await store.commit([Put("node/123/x", b"")])
            await anext(every)
            batch = await waiting[123]
            assert batch[0].key == "node/123/x"
            assert sum(task.done() for task in waiting) == 1
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def check_replaying_a_watch_equals_the_truth(self) -> None:
        """Writers, watchers and lists at once: no gap and no duplicate."""
        async with self.subject.store() as store:
            await Race(store, [store, store, store]).run()

    async def check_a_closed_store_says_so(self) -> None:
        """Uses and watches of a closed store end with UnavailableError."""
        store = self.subject.store()
        async with store:
            watch = store.watch("", await store.commit([Put("a", b"1")]))
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
        await expect(UnavailableError, waiting)
        await expect(UnavailableError, store.get("a"))
        await expect(UnavailableError, store.list(""))
        await expect(UnavailableError, store.commit([Put("a", b"2")]))
        await expect(UnavailableError, store.keep_alive("l"))

    # Leases.

    async def check_a_lease_ends_its_keys_in_one_commit(self) -> None:
        """After its time to live and not before; the keys go together, watchers see it."""
        clock = VirtualClock()
        async with self.subject.store(clock) as store:
            await store.grant("node", 10)
            await store.commit([Put("n/1", b"", lease="node"), Put("free", b"")])
            start = await store.commit([Put("n/2", b"", lease="node")])
            watch = store.watch("", start)
            assert (await _entry(store, "n/1")).lease == "node"
            await clock.advance(9)
            assert len((await store.list("n/")).entries) == 2
            await clock.advance(3)
            batch = await anext(watch)
            assert [(it.key, it.entry) for it in batch] == [("n/1", None), ("n/2", None)]
            assert set(await entries_of(store)) == {"free"}
            await expect(NotFoundError, store.keep_alive("node"))
            await expect(InvalidError, store.commit([Put("n/1", b"", lease="node")]))

    async def check_keep_alive_and_grant_start_time_anew(self) -> None:
        """For as long as they come, the lease stays; a grant may change the time to live."""
        clock = VirtualClock()
        async with self.subject.store(clock) as store:
            await store.grant("node", 10)
            await store.commit([Put("n", b"", lease="node")])
            for _ in range(4):
                await clock.advance(7)
                await store.keep_alive("node")
            await clock.advance(7)
            await store.grant("node", 30)
            await clock.advance(25)
            assert await store.get("n") is not None
            await clock.advance(10)
            assert await store.get("n") is None

    async def check_revoke_ends_a_lease_now(self) -> None:
        """In one commit; again or unknown is no change; the name may be granted again."""
        async with self.subject.store() as store:
            await store.grant("node", 10)
            start = await store.commit([Put(k, b"", lease="node") for k in ("b", "a")])
            watch = store.watch("", start)
            await store.revoke("node")
            assert [it.key for it in await anext(watch)] == ["a", "b"]
            await store.revoke("node")
            await store.revoke("never granted")
            assert (await store.list("")).revision == start + 1
            await expect(NotFoundError, store.keep_alive("node"))
            await store.grant("node", 10)
            await store.keep_alive("node")
            assert await entries_of(store) == {}

    async def check_a_key_belongs_to_its_last_write(self) -> None:
        """A write without a lease, or with another one, takes the key off the first."""
        async with self.subject.store() as store:
            await store.grant("one", 10)
            await store.grant("two", 10)
            await store.commit([Put(k, b"", lease="one") for k in "abcd"])
            await store.commit([Put("a", b""), Put("b", b"", lease="two"), Delete("c")])
            await store.commit([Put("c", b"")])
            await store.revoke("one")
            assert set(await entries_of(store)) == {"a", "b", "c"}
            await store.revoke("two")
            assert set(await entries_of(store)) == {"a", "c"}

    async def check_unseen_time_ends_no_lease(self) -> None:
        """A process that was stopped for an hour has observed nothing meanwhile."""
        clock = VirtualClock()
        async with self.subject.store(clock) as store:
            await store.grant("node", 10)
            await store.commit([Put("n", b"", lease="node")])
            await clock.advance(2)
            clock.jump(3600)
            await clock.advance(3)
            assert await store.get("n") is not None
            await clock.advance(12)
            assert await store.get("n") is None

    # Stores one after the other, and side by side.

    async def check_what_was_acknowledged_is_there_after_reopening(self) -> str | None:
        """Entries, revisions, and history for watches."""
        if not self.subject.durable:
            return SKIPPED
        async with self.subject.store() as store:
            start = await store.commit([Put("a", b"1"), Put("b", b"1")])
            await store.commit([Delete("a")])
            await store.grant("node", 10)
            last = await store.commit([Put("n", b"x", lease="node")])
            before = await store.list("")
        async with self.subject.store() as store:
            after = await store.list("")
            assert (after.revision, list(after.entries)) == (last, list(before.entries))
            watch = store.watch("", start)
            assert list(await anext(watch)) == [Event("a", start + 1, None)]
            assert [it.entry for it in await anext(watch)] == [Entry("n", b"x", last, last, "node")]
            assert await store.commit([Put("c", b"")]) == last + 1
            await store.keep_alive("node")
            await store.revoke("node")
            assert set(await entries_of(store)) == {"b", "c"}
        return None

    async def check_downtime_ends_no_lease(self) -> str | None:
        """A lease's time starts anew when a store opens."""
        if not self.subject.durable:
            return SKIPPED
        clock = VirtualClock()
        async with self.subject.store(clock) as store:
            await store.grant("node", 10)
            await store.commit([Put("n", b"", lease="node")])
            await clock.advance(8)
        await clock.advance(3600)
        async with self.subject.store(clock) as store:
            await clock.advance(8)
            assert await store.get("n") is not None
            await clock.advance(4)
            assert await store.get("n") is None
        return None

    async def check_stores_share_one_truth(self) -> str | None:
        """Writers and watchers in several stores over one world."""
        if not self.subject.shared:
            return SKIPPED
        async with self.subject.store() as one, self.subject.store() as two:
            revision = await one.commit([Put("a", b"1")])
            assert await _entry(two, "a") == Entry("a", b"1", revision, revision)
            await expect(ConflictError, two.commit([Put("a", b"2", ABSENT)]))
            await Race(one, [one, two, two]).run()
        return None

    async def check_a_lease_is_renewed_through_any_store(self) -> str | None:
        """And when it ends, it ends once."""
        if not self.subject.shared:
            return SKIPPED
        here, there = VirtualClock(), VirtualClock()
        async with self.subject.store(here) as one, self.subject.store(there) as two:
            await one.grant("node", 10)
            start = await one.commit([Put("n", b"", lease="node")])
            for _ in range(3):
                await here.advance(7)
                await there.advance(7)
                await two.keep_alive("node")
            assert await one.get("n") is not None
            watch = one.watch("", start)
            await asyncio.gather(here.advance(12), there.advance(12))
            assert [it.key for it in await anext(watch)] == ["n"]
            assert (await one.list("")).revision == (await two.list("")).revision == start + 1
        return None

    async def check_cut_connections_leave_no_gap(self) -> str | None:
        """Writers, watchers and lists while the connections are cut again and again."""
        cut = self.subject.cut
        if cut is None:
            return SKIPPED

        async def cut_often() -> None:
            for _ in range(8):
                await asyncio.sleep(0.15)
                await cut()

        async with self.subject.store() as store:
            await Race(store, [store, store], cut_often).run()
        return None


CHECKS: Final = tuple(name for name in vars(StoreConformance) if name.startswith("check_"))
"""The names of all checks."""


def run_check(name: str, subject: Subject) -> str | None:
    """Run one check in an event loop of its own.

    Returns:
        `SKIPPED` if it does not apply to the subject.

    Raises:
        AssertionError: the store breaks its promise.
    """

    async def run() -> str | None:
        async with asyncio.timeout(LIMIT):
            result: str | None = await getattr(StoreConformance(subject), name)()
            return result

    return asyncio.run(run())


async def _entry(store: Store, key: str) -> Entry:
    entry = await store.get(key)
    assert entry is not None, key
    return entry
