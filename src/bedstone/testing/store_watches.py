"""The checks of stores that are about watches, and about the end of a store."""

from __future__ import annotations

import asyncio
import contextlib

from bedstone.errors import UnavailableError
from bedstone.store import CompactedError, Delete, Entry, Event, Put
from bedstone.testing.store_race import Race
from bedstone.testing.store_subject import Checks, expect


class WatchChecks(Checks):
    """Watches."""

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
