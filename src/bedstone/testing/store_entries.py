"""The checks of stores that are about entries, listings and commits."""

from __future__ import annotations

import asyncio
import random

from bedstone.errors import ConflictError, InvalidError
from bedstone.store import ABSENT, ANY, Delete, Entry, Event, Operation, Put
from bedstone.testing.store_subject import Checks, expect


class EntryChecks(Checks):
    """Entries and commits."""

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
