"""The pure parts that all drivers share."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from bedstone.errors import (
    ConflictError,
    Error,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnknownOutcomeError,
)
from bedstone.store import CompactedError, Delete, Entry, Event, Put, open_store
from bedstone.store.batching import Batcher
from bedstone.store.leases import Observer
from bedstone.store.memory import MemoryStore
from bedstone.store.planning import Commit, Draft, Grant, Outcome, Renew, Request, Revoke
from bedstone.store.sqlite import SqliteStore
from bedstone.store.state import State, upper_bound
from bedstone.store.urls import split_options
from bedstone.store.watching import Hub


@dataclass
class Before:
    """A view with one leased key."""

    revision: int = 7
    entries: dict[str, Entry] = field(
        default_factory=lambda: {"n": Entry("n", b"", 7, 3, "node"), "a": Entry("a", b"1", 5, 5)}
    )

    def entry(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def renewal(self, lease: str) -> int | None:
        return 4 if lease == "node" else None

    def lease_keys(self, lease: str) -> Iterable[str]:
        return [key for key, entry in self.entries.items() if entry.lease == lease]


def commit(*operations: Put | Delete) -> Commit:
    return Commit(operations)


def test_a_refused_request_leaves_no_trace_in_a_draft() -> None:
    draft = Draft(Before())
    assert isinstance(draft.add(commit(Put("b", b""), Put("a", b"", 99))), ConflictError)
    assert isinstance(draft.add(commit(Put("b", b""), Put("c", b"", lease="x"))), InvalidError)
    assert isinstance(draft.add(Renew("x")), NotFoundError)
    assert draft.empty
    assert draft.final == {}
    assert draft.add(commit(Put("b", b"", 0))) == 8


def test_requests_of_one_draft_see_each_other() -> None:
    draft = Draft(Before())
    assert draft.add(commit(Put("a", b"2", 5))) == 8
    assert isinstance(draft.add(commit(Put("a", b"3", 5))), ConflictError)
    assert draft.add(commit(Delete("a", 8))) == 9
    assert draft.add(commit(Delete("a"))) == 9
    assert draft.add(commit(Put("a", b"4", 0))) == 10
    assert draft.final == {"a": Entry("a", b"4", 10, 10)}
    assert [[it.revision for it in batch] for batch in draft.batches] == [[8], [9], [10]]


def test_leases_of_one_draft_see_each_other() -> None:
    draft = Draft(Before())
    draft.add(Grant("new", 5.0))
    assert draft.add(commit(Put("k", b"", lease="new"), Put("n", b"", lease="new"))) == 8
    assert draft.add(Revoke("node")) == 8, "its only key was taken over"
    assert draft.ended == {"node"}
    assert isinstance(draft.add(commit(Put("z", b"", lease="node"))), InvalidError)
    assert draft.add(Revoke("new")) == 9
    assert draft.final == {"k": None, "n": None}
    draft.add(Grant("new", 6.0))
    assert (draft.grants, draft.ended) == ({"new": 6.0}, {"node"})


@pytest.mark.parametrize("renewed", [Renew("node"), Grant("node", 9.0)])
def test_a_lease_renewed_since_it_lapsed_does_not_end(renewed: Request) -> None:
    draft = Draft(Before())
    draft.add(renewed)
    assert draft.add(Revoke("node", 4)) == 7
    assert not draft.ended
    late = Draft(Before())
    assert late.add(Revoke("node", 3)) == 7, "the counter has moved on"
    assert not late.ended
    assert late.add(Revoke("node", 4)) == 8
    assert late.final == {"n": None}


@pytest.mark.parametrize(
    ("prefix", "bound"),
    [
        ("a", "b"),
        ("a\U0010ffff", "b"),
        ("\U0010ffff", None),
        ("", None),
        ("\ud7ff", "\ue000"),
        ("a/", "a0"),
    ],
)
def test_upper_bound_of_a_prefix(prefix: str, bound: str | None) -> None:
    assert upper_bound(prefix) == bound


def test_state_forgets_what_is_deleted() -> None:
    state = State(3, [Entry("a", b"", 1, 1, "l"), Entry("b", b"", 2, 2)])
    state.apply((Event("a", 4, None), Event("absent", 4, None)))
    assert (state.revision, state.get("a"), [*state.lease_keys("l")]) == (4, None, [])
    assert [it.key for it in state.list("").entries] == ["b"]


def test_a_hub_serves_nobody_who_left() -> None:
    async def run() -> None:
        hub = Hub(4)
        watches = [hub.watch(prefix, 0) for prefix in ("a", "ab", "b", "b")]
        del watches[0]
        gc.collect()
        hub.publish((Event("abc", 1, None),))
        assert [it.key for it in await anext(watches[0])] == ["abc"]
        watches.clear()
        gc.collect()
        assert not hub._watches
        assert not +hub._lengths

    asyncio.run(run())


def test_a_hub_gives_each_watch_its_part() -> None:
    async def run() -> None:
        hub = Hub(4)
        every, some = hub.watch("", 0), hub.watch("a/", 0)
        batch = (Event("a/1", 1, None), Event("b", 1, None))
        hub.publish(batch)
        hub.publish(batch)
        assert await anext(every) is batch
        assert await anext(some) == batch[:1]
        with pytest.raises(AssertionError, match="revision 3 after 1"):
            hub.publish((Event("c", 3, None),))

    asyncio.run(run())


def test_a_watcher_that_falls_behind_history_is_told() -> None:
    async def run() -> None:
        hub = Hub(3)
        slow = hub.watch("", 0)
        for revision in range(1, 6):
            hub.publish((Event("k", revision, None),))
        with pytest.raises(CompactedError, match="after revision 0"):
            await anext(slow)
        assert hub.compacted == 2
        with pytest.raises(CompactedError):
            await anext(hub.watch("", 1))
        assert (await anext(hub.watch("", 2)))[0].revision == 3

    asyncio.run(run())


def test_an_observer_counts_only_what_it_saw() -> None:
    observer = Observer(100.0, longest_step=1.0)
    observer.see("l", 3.0, 1, 100.0)
    assert observer.lapsed(200.0) == []  # one step of an hour is one step
    assert observer.lapsed(200.5) == []
    assert observer.lapsed(150.0) == []  # a clock that went back counts nothing
    observer.see("l", 3.0, 2, 151.0)
    for now in (152.0, 153.0):
        assert observer.lapsed(now) == []
    assert observer.lapsed(154.0) == [("l", 2)]
    observer.see_all({}, 155.0)
    assert observer.lapsed(160.0) == []


def test_waiting_writes_share_a_group() -> None:
    async def run() -> None:
        groups: list[int] = []
        release = asyncio.Event()

        async def write(requests: Sequence[Request]) -> Sequence[Outcome]:
            groups.append(len(requests))
            await release.wait()
            refused: Error = ConflictError("no")
            return [refused if it == Renew("no") else len(groups) for it in requests]

        batcher = Batcher(write)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(batcher.run())
            first = tasks.create_task(batcher.submit(Renew("yes")))
            await asyncio.sleep(0.001)
            later = [
                asyncio.ensure_future(batcher.submit(Renew(name))) for name in ("yes", "no", "gone")
            ]
            await asyncio.sleep(0.001)
            later[2].cancel()
            release.set()
            assert await first == 1
            assert await later[0] == 2
            with pytest.raises(ConflictError):
                await later[1]
            batcher.stop()
        assert groups == [1, 2], "a cancelled caller took its request along"
        with pytest.raises(UnavailableError, match="closed"):
            await batcher.submit(Renew("late"))

    asyncio.run(run())


def test_a_groups_error_is_every_members() -> None:
    async def run() -> None:
        async def write(requests: Sequence[Request]) -> Sequence[Outcome]:
            raise UnavailableError("the disk is full", retry_after=2.0, hint="free some")

        batcher = Batcher(write)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(batcher.run())
            both = await asyncio.gather(
                batcher.submit(Renew("a")), batcher.submit(Renew("b")), return_exceptions=True
            )
            batcher.stop()
        one, two = both
        assert isinstance(one, UnavailableError)
        assert isinstance(two, UnavailableError)
        assert one is not two
        assert (one.retry_after, two.hint) == (2.0, "free some")

    asyncio.run(run())


def test_a_bug_in_a_driver_is_not_hidden() -> None:
    """Callers learn that the outcome is unknown, and the store's owner gets the bug."""

    async def run() -> None:
        async def write(requests: Sequence[Request]) -> Sequence[Outcome]:
            raise ZeroDivisionError

        batcher = Batcher(write)
        submitted = asyncio.ensure_future(batcher.submit(Renew("a")))
        with pytest.raises(ZeroDivisionError):
            await batcher.run()
        with pytest.raises(UnknownOutcomeError):
            await submitted

    asyncio.run(run())


def test_an_error_inside_a_stores_context_leaves_as_it_is() -> None:
    async def run() -> None:
        async with MemoryStore() as store:
            await store.commit([Put("a", b"")])
            raise LookupError

    with pytest.raises(LookupError):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://here", "names no place"),
        ("memory://?history=x", "positive integer"),
        ("memory://?history=0", "positive integer"),
        ("memory://?colour=red", "expected one of history"),
        ("memory://?history=1&history=2", "given twice"),
        ("sqlite://relative/path", "absolute"),
        ("sqlite://", "absolute"),
        ("sqlite:///", "absolute"),
        ("nothing://", "no store driver"),
        ("store.db", "expected a URL"),
    ],
)
def test_urls_that_name_no_store(url: str, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        open_store(url)


def test_urls_that_name_a_store() -> None:
    assert isinstance(open_store("memory://?history=5"), MemoryStore)
    store = open_store("sqlite:///var/my%20store.db?history=5")
    assert isinstance(store, SqliteStore)
    url = "postgresql://u:p%40@h/db?sslmode=require&schema=s&options=-c%20x%3D1"
    place, options = split_options(url, {"schema"}, others=True)
    assert place == "postgresql://u:p%40@h/db?sslmode=require&options=-c%20x%3D1"
    assert options == {"schema": "s"}
