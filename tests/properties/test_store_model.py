"""Random sequences of operations on every driver, against a dictionary."""

from __future__ import annotations

import asyncio
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedstone.errors import ConflictError, Error, InvalidError, NotFoundError
from bedstone.store import Delete, Entry, Event, Operation, Put, Store
from bedstone.store.memory import MemoryStore
from bedstone.store.postgres import PostgresStore
from bedstone.store.sqlite import SqliteStore

KEYS = ["a", "a/", "a/b", "ab", "b", "é", "\U0001f600"]
LEASES = ["l", "m"]


@dataclass(frozen=True)
class Batch:
    """A commit; an expected revision is given relative to the present one of its key."""

    operations: Sequence[tuple[str, bytes | None, str, str | None]]


@dataclass(frozen=True)
class LeaseStep:
    action: str
    lease: str


@dataclass(frozen=True)
class Reopen:
    pass


Step = Batch | LeaseStep | Reopen

operation = st.tuples(
    st.sampled_from(KEYS),
    st.none() | st.binary(max_size=3),
    st.sampled_from(["any", "any", "absent", "present", "wrong"]),
    st.none() | st.sampled_from(LEASES),
)
steps = st.lists(
    st.one_of(
        st.builds(Batch, st.lists(operation, max_size=4)),
        st.builds(Batch, st.lists(operation, max_size=4)),
        st.builds(LeaseStep, st.sampled_from(["grant", "keep", "revoke"]), st.sampled_from(LEASES)),
        st.just(Reopen()),
    ),
    max_size=25,
)


@dataclass
class Model:
    revision: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    leases: set[str] = field(default_factory=set)
    history: list[list[Event]] = field(default_factory=list)

    def expected(self, key: str, how: str) -> int:
        present = self.entries.get(key)
        revision = 0 if present is None else present.revision
        return {"any": -1, "absent": 0, "present": revision, "wrong": revision + 1}[how]

    def commit(self, operations: Sequence[Operation]) -> int | type[Error]:
        if len({it.key for it in operations}) < len(operations):
            return InvalidError
        events = []
        for it in operations:
            present = self.entries.get(it.key)
            if it.expected not in {-1, 0 if present is None else present.revision}:
                return ConflictError
            if isinstance(it, Put):
                if it.lease is not None and it.lease not in self.leases:
                    return InvalidError
                created = self.revision + 1 if present is None else present.created
                entry = Entry(it.key, it.value, self.revision + 1, created, it.lease)
                events.append(Event(it.key, self.revision + 1, entry))
            elif present is not None:
                events.append(Event(it.key, self.revision + 1, None))
        self.apply(events)
        return self.revision

    def apply(self, events: list[Event]) -> None:
        if not events:
            return
        self.revision += 1
        self.history.append(events)
        for event in events:
            if event.entry is None:
                del self.entries[event.key]
            else:
                self.entries[event.key] = event.entry

    def revoke(self, lease: str) -> None:
        self.leases.discard(lease)
        keys = sorted(key for key, entry in self.entries.items() if entry.lease == lease)
        self.apply([Event(key, self.revision + 1, None) for key in keys])


async def outcome(store: Store, model: Model, step: Batch | LeaseStep) -> None:
    """Take one step on both, and compare."""
    expected: object
    try:
        match step:
            case Batch(items):
                operations: list[Operation] = [
                    Delete(key, model.expected(key, how))
                    if value is None
                    else Put(key, value, model.expected(key, how), lease)
                    for key, value, how, lease in items
                ]
                expected = model.commit(operations)
                got: object = await store.commit(operations)
            case LeaseStep("grant", lease):
                model.leases.add(lease)
                await store.grant(lease, 60)
                got = expected = None
            case LeaseStep("keep", lease):
                expected = None if lease in model.leases else NotFoundError
                got = None
                await store.keep_alive(lease)
            case LeaseStep(_, lease):
                model.revoke(lease)
                await store.revoke(lease)
                got = expected = None
    except Error as error:
        got = type(error)
    assert got == expected, step


async def compare(store: Store, model: Model) -> None:
    for prefix in ("", "a", "a/", "b", "é", "zz"):
        listing = await store.list(prefix)
        under = sorted(key for key in model.entries if key.startswith(prefix))
        assert [*listing.entries] == [model.entries[key] for key in under]
        assert listing.revision == model.revision
    for key in KEYS:
        assert await store.get(key) == model.entries.get(key)


async def play(make: Callable[[], Store], sequence: Sequence[Step], *, reopen: bool) -> None:
    model = Model()
    remaining = list(sequence)
    while True:
        async with make() as store:
            await compare(store, model)
            while remaining:
                step = remaining.pop(0)
                if isinstance(step, Reopen):
                    if reopen:
                        break
                    continue
                await outcome(store, model, step)
            else:
                await compare(store, model)
                for prefix in ("", "a/"):
                    watch = store.watch(prefix, 0)
                    for events in model.history:
                        part = [event for event in events if event.key.startswith(prefix)]
                        if part:
                            assert [*await anext(watch)] == part
                return


@settings(max_examples=150, deadline=None)
@given(steps)
def test_memory_behaves_like_a_dictionary(sequence: list[Step]) -> None:
    asyncio.run(play(MemoryStore, sequence, reopen=False))


@settings(max_examples=60, deadline=None)
@given(steps)
def test_sqlite_behaves_like_a_dictionary(sequence: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        asyncio.run(play(lambda: SqliteStore(path), sequence, reopen=True))


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sequence=steps)
def test_postgres_behaves_like_a_dictionary(postgres_url: str, sequence: list[Step]) -> None:
    schema = f"p{uuid.uuid4().hex[:12]}"
    asyncio.run(play(lambda: PostgresStore(postgres_url, schema=schema), sequence, reopen=True))
