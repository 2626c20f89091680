"""The checks of stores that are about leases, and about several stores over one world."""

from __future__ import annotations

import asyncio

from bedstone.errors import ConflictError, InvalidError, NotFoundError
from bedstone.store import ABSENT, Delete, Entry, Event, Put
from bedstone.testing.faults import VirtualClock
from bedstone.testing.store_race import Race
from bedstone.testing.store_subject import SKIPPED, Checks, entries_of, entry_of, expect


class LeaseChecks(Checks):
    """Leases."""

    async def check_a_lease_ends_its_keys_in_one_commit(self) -> None:
        """After its time to live and not before; the keys go together, watchers see it."""
        clock = VirtualClock()
        async with self.subject.store(clock) as store:
            await store.grant("node", 10)
            await store.commit([Put("n/1", b"", lease="node"), Put("free", b"")])
            start = await store.commit([Put("n/2", b"", lease="node")])
            watch = store.watch("", start)
            assert (await entry_of(store, "n/1")).lease == "node"
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


class ReopeningChecks(Checks):
    """Stores one after the other, and side by side."""

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
            assert await entry_of(two, "a") == Entry("a", b"1", revision, revision)
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
