"""What has no isolation as a whole, and what row locks can't prevent; yet nothing goes astray."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest

from bedstone.testing.histories import (
    Level,
    Operation,
    Txn,
    anomalies,
    append,
    read_list,
    strongest_level,
)
from bedstone.testing.history_modes import (
    AutomaticMode,
    Mode,
    Place,
    Session,
    SqlSession,
    XaMode,
    changing,
    noted_change,
    rows,
    selecting,
    taking_back,
    values_of,
)
from bedstone.testing.history_recording import Load, Recording, record
from bedstone.testing.history_scripts import AbortError, Script, new_database, places
from bedstone.testing.messages import Chances, MemoryBroker
from bedstone.transactions.automatic import automatic
from bedstone.transactions.consuming import Consumer
from bedstone.transactions.errors import TransactionAbortedError
from bedstone.transactions.manager import Transactions
from bedstone.transactions.messages import Messages
from bedstone.transactions.router import neutral
from bedstone.transactions.saga import Context, Saga, saga, sequence, step
from bedstone.transactions.saga_plan import Step
from bedstone.transactions.tcc import Tcc, tcc

pytestmark = pytest.mark.timeout(300)
COMMITTED = "READ COMMITTED"


class RefusedError(Exception):
    """A step says that it did nothing."""


async def pause(_: Context) -> None:
    """Between two steps."""


def appending(where: Place, waits: Any = pause) -> Step:
    """A step that reads a register and appends to it; its compensation takes that back."""

    async def action(db: Any, context: Context) -> list[int]:
        await waits(context)
        if context.input["fails"] == where.name:
            raise RefusedError
        register, value = context.input["register"], context.input["value"]
        (row,) = await rows(db, selecting(register, " FOR UPDATE"))
        await rows(db, changing(register, value))
        return list(values_of(row[0]))

    async def undo(db: Any, context: Context) -> None:
        await rows(db, taking_back(context.input["register"], context.input["value"]))

    return step(where.name, action, undo, database=where.source, fails_on=(RefusedError,))


def noted(names: Sequence[str], given: dict[str, Any], results: Any) -> tuple[Operation, ...]:
    """What a saga did."""
    found: list[Operation] = []
    for name in names:
        register = f"{name}/{given['register']}"
        if results is not None:
            found.append(read_list(register, *results[name]))
        found.append(append(register, given["value"]))
    return tuple(found)


def test_sagas_keep_nothing_of_what_failed(postgres_url: str) -> None:
    """300 sagas at once: what succeeded is in both databases, what failed is in none."""

    async def run() -> None:
        async with (
            places([postgres_url, postgres_url], COMMITTED) as found,
            Transactions(new_database(postgres_url)) as transactions,
        ):
            both = saga(Saga("both", sequence(*map(appending, found))), transactions)
            chance, fresh = random.Random(1), count(1)
            history: list[Txn] = []

            async def client() -> None:
                while (number := next(fresh)) <= 300:
                    given = {
                        "register": f"l{chance.randrange(4)}",
                        "value": number,
                        "fails": chance.choice(["", "", "a", "b"]),
                    }
                    results = None
                    try:
                        results = await both.run(given)
                    except TransactionAbortedError:
                        assert given["fails"]
                    done = noted("ab", given, results)
                    history.append(Txn(f"T{number}", done, committed=results is not None))

            async with asyncio.TaskGroup() as group:
                for _ in range(5):
                    group.create_task(client())
            mode = XaMode(transactions, found)
            lists = tuple(it for it in await mode.all() if "/l" in it.register)
        recording = Recording((), (*history, Txn("last", lists)), {})
        assert len(recording.history) == 301
        assert 100 < recording.committed < 200
        assert recording.astray() == ()

    asyncio.run(run())


def test_a_saga_shows_what_it_takes_back(postgres_url: str) -> None:
    async def run() -> None:
        async with (
            places([postgres_url, postgres_url], COMMITTED) as (a, b),
            Transactions(new_database(postgres_url)) as transactions,
        ):
            seen: list[int] = []

            async def look(_: Context) -> None:
                async with a.source.connect() as db:
                    seen.extend(values_of((await rows(db.raw, selecting("l0")))[0][0]))

            both = saga(Saga("both", sequence(appending(a), appending(b, look))), transactions)
            with pytest.raises(TransactionAbortedError):
                await both.run({"register": "l0", "value": 1, "fails": "b"})
            history = [
                Txn("saga", (append("a/l0", 1),), committed=False),
                Txn("reader", (read_list("a/l0", *seen),)),
            ]
            assert {it.name for it in anomalies(history)} == {"G1a"}

    asyncio.run(run())


def test_sagas_write_over_each_other_in_any_order(postgres_url: str) -> None:
    """G0: so their level is none."""

    async def run() -> None:
        async with (
            places([postgres_url, postgres_url], COMMITTED) as (a, b),
            Transactions(new_database(postgres_url)) as transactions,
        ):
            first, second = asyncio.Event(), asyncio.Event()

            async def wait(context: Context) -> None:
                if context.input["value"] == 1:
                    first.set()
                    await second.wait()

            both = saga(Saga("both", sequence(appending(a), appending(b, wait))), transactions)

            async def begin(value: int) -> None:
                await both.run({"register": "l0", "value": value, "fails": ""})

            async with asyncio.TaskGroup() as group:
                group.create_task(begin(1))
                await first.wait()
                await begin(2)
                second.set()
            lists = tuple(await XaMode(transactions, [a, b]).all())
        history = [Txn(f"T{n}", (append("a/l0", n), append("b/l0", n))) for n in (1, 2)]
        history.append(Txn("last", tuple(it for it in lists if "/l" in it.register)))
        assert "G0" in {it.name for it in anomalies(history)}
        assert strongest_level(history) is Level.NONE

    asyncio.run(run())


def test_tcc_without_exclusive_reservations_is_confirmed_in_any_order(postgres_url: str) -> None:
    """G0, where a TRY lets others reserve too: do so only where the order does not matter."""

    async def run() -> None:
        async with (
            places([postgres_url, postgres_url], COMMITTED) as found,
            Transactions(new_database(postgres_url)) as transactions,
        ):
            first, second = asyncio.Event(), asyncio.Event()

            class Shared(Tcc):
                async def try_(self, db: Any, *, value: int) -> None:
                    await rows(db, selecting("l0"))

                async def confirm(self, db: Any, *, value: int) -> None:
                    await rows(db, changing("l0", value))

                async def cancel(self, db: Any, *, value: int) -> None:
                    raise AssertionError(value)

            class SharedA(Shared):
                pass

            class SharedB(Shared):
                async def confirm(self, db: Any, *, value: int) -> None:
                    if value == 1:
                        first.set()
                        await second.wait()
                    await rows(db, changing("l0", value))

            one = tcc(SharedA, found[0].source, transactions=transactions)
            two = tcc(SharedB, found[1].source, transactions=transactions)

            async def begin(value: int) -> None:
                async with transactions.transaction():
                    await one(value=value)
                    await two(value=value)

            async with asyncio.TaskGroup() as group:
                group.create_task(begin(1))
                await first.wait()
                mode = XaMode(transactions, found)
                await _confirmed(mode)
                await begin(2)
                second.set()
            lists = tuple(it for it in await mode.all() if "/l" in it.register)
        history = [Txn(f"T{n}", (append("a/l0", n), append("b/l0", n))) for n in (1, 2)]
        assert strongest_level([*history, Txn("last", lists)]) is Level.NONE

    asyncio.run(run())


async def _confirmed(mode: Mode) -> None:
    """Wait until something is there."""
    while True:
        if any(it.seen for it in await mode.all()):
            return
        await asyncio.sleep(0.01)


class MessagesMode(Mode):
    """What is in the first database is written by XA; the second's by a consumer, later."""

    def __init__(
        self, transactions: Transactions, places: Sequence[Place], chances: Chances, seed: int = 1
    ) -> None:
        super().__init__(transactions, places)
        self._xa = XaMode(transactions, places[:1])
        self._places = places
        broker = MemoryBroker(seed=seed, chances=chances)
        self._messages = Messages(broker, transactions=transactions)

        async def effect(db: Any, message: Any) -> None:
            data = message.json()
            await rows(db, changing(data["register"], data["value"]))

        self._consumer = Consumer(places[1].source, broker, "appends", "appender", effect)

    @asynccontextmanager
    async def session(self, notes: list[Operation]) -> AsyncIterator[Session]:
        async with self._xa.session(notes) as local:
            yield MessagesSession(self._messages, local, self._places[1], notes)

    async def all(self) -> list[Operation]:
        await self.consume()
        return await super().all()

    async def consume(self) -> None:
        while await self._consumer.step(0.0):
            pass


class MessagesSession:
    """Reads are of what is there."""

    def __init__(
        self, messages: Messages, local: Session, other: Place, notes: list[Operation]
    ) -> None:
        self._messages = messages
        self._local = local
        self._other = other
        self._notes = notes

    async def read(self, name: str) -> None:
        if name.startswith("a/"):
            await self._local.read(name)
            return

        async def opening(_: str) -> Any:
            return db.raw

        async with self._other.source.connect() as db:
            await SqlSession(opening, "", self._notes).read(name)

    async def change(self, name: str, value: int) -> None:
        if name.startswith("a/"):
            await self._local.change(name, value)
            return
        register = name.partition("/")[2]
        self._notes.append(noted_change(name, value))
        await self._messages.publish("appends", {"register": register, "value": value})


def test_messages_of_what_aborts_are_never_seen(postgres_url: str) -> None:
    """300 transactions over a broker that duplicates, reorders and loses: nothing goes astray."""
    chances = Chances(refused=0.1, unanswered=0.1, duplicated=0.2, lost_ack=0.2, reordered=0.5)

    async def run() -> None:
        async with (
            places([postgres_url, postgres_url], COMMITTED) as found,
            Transactions(new_database(postgres_url)) as transactions,
        ):
            recording = await record(MessagesMode(transactions, found, chances), Load(300))
        assert recording.committed >= 100
        assert recording.astray() == ()
        assert not recording.names() & {"G1a"}

    asyncio.run(run())


def test_messages_come_later_and_in_any_order(postgres_url: str) -> None:
    """Read skew, and G0: the level of both databases together is none."""

    def swaps(seed: int) -> bool:
        chance, order = random.Random(seed), [1, 2]
        chance.random()
        chance.shuffle(order)
        return order == [2, 1]

    async def run() -> None:
        seed = next(filter(swaps, count()))
        async with (
            places([postgres_url, postgres_url], COMMITTED) as found,
            Transactions(new_database(postgres_url)) as transactions,
        ):
            script = Script(MessagesMode(transactions, found, Chances(reordered=1.0), seed))
            for value, name in enumerate(("one", "other"), 1):
                async with script.transaction(name) as session:
                    await session.change("a/l0", value)
                    await session.change("b/l0", value)
            async with script.transaction("early") as session:
                await session.read("a/l0")
                await session.read("b/l0")
            level, names = await script.found()
        assert level is Level.NONE
        assert {"G0", "G-single"} <= names

    asyncio.run(run())


def test_at_locking_reads_miss_what_an_undecided_transaction_has_deleted(
    postgres_url: str,
) -> None:
    """A row that is not there can't be asked for its lock."""

    async def run() -> None:
        async with (
            places([postgres_url, postgres_url], COMMITTED) as (where, _),
            Transactions(new_database(postgres_url)) as transactions,
        ):
            bank = automatic(where.source, name="bank", transactions=transactions)
            found: list[int] = []

            async def read() -> None:
                with neutral():
                    async with transactions.transaction("reader"), bank.connect() as db:
                        found.append(len(await rows(db, selecting("l0", " FOR UPDATE"))))

            async def delete() -> None:
                async with transactions.transaction("writer"):
                    async with bank.connect() as db:
                        await db.execute("DELETE FROM registers WHERE id = 'l0'")
                    await read()
                    raise AbortError

            with pytest.raises(AbortError):
                await delete()
            await read()
            assert found == [0, 1]

    asyncio.run(run())


@pytest.mark.parametrize("mode", [AutomaticMode, XaMode])
def test_locks_on_rows_do_not_stop_phantoms(mode: Any, postgres_url: str) -> None:
    """Both find no row that matches, lock none, and make one that the other would have found."""
    query = "SELECT id FROM registers WHERE value > 100 FOR UPDATE"

    async def run() -> None:
        async with (
            places([postgres_url, postgres_url], COMMITTED) as found,
            Transactions(new_database(postgres_url)) as transactions,
        ):
            made = mode(transactions, found)

            @asynccontextmanager
            async def opened() -> AsyncIterator[Any]:
                if isinstance(made, AutomaticMode):
                    async with made.databases["a"].connect() as db, db.transaction():
                        yield db
                else:
                    async with made.banks["a"].xa() as db:
                        yield db

            async def second() -> None:
                with neutral():
                    async with transactions.transaction("two"), opened() as db:
                        assert await rows(db, query) == []
                        await db.execute(changing("r1", 102))

            async with transactions.transaction("one"), opened() as db:
                assert await rows(db, query) == []
                await second()
                await db.execute(changing("r0", 101))
            async with found[0].source.connect() as db:
                matching = await rows(db.raw, "SELECT id FROM registers WHERE value > 100")
                assert len(matching) == 2

    asyncio.run(run())
