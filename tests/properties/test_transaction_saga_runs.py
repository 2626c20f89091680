"""Random sagas at work over a log that fails at random: all of their effects stay, or none."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.testing.faults import Fault
from bedstone.testing.transaction_log import READS, MemoryLog
from bedstone.transactions.databases import database
from bedstone.transactions.errors import TransactionAbortedError
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import State
from bedstone.transactions.saga import Context, Saga, parallel, saga, sequence, step
from bedstone.transactions.saga_plan import Part, Step

shapes = st.recursive(
    st.booleans(),
    lambda inner: st.tuples(st.booleans(), st.lists(inner, min_size=1, max_size=3)),
    max_leaves=6,
)


class Place:
    """A database, and a service that knows its callers' keys."""

    def __init__(self, folder: Path, random: Random, failing: float) -> None:
        self.path = folder / "d.db"
        self.random = random
        self.failing = failing
        self.service: dict[str, bool] = {}
        self.names = 0
        with sqlite3.connect(self.path) as db:
            db.execute("CREATE TABLE done (name TEXT PRIMARY KEY)")
        self.database = database(lambda: sqlite3.connect(self.path))

    def part(self, shape: Any) -> Part:
        if isinstance(shape, bool):
            return self.step(local=shape)
        side_by_side, inner = shape
        return (parallel if side_by_side else sequence)(*map(self.part, inner))

    def step(self, *, local: bool) -> Step:
        self.names += 1
        name = f"s{self.names}"

        def insert(db: sqlite3.Connection, _: Context) -> str:
            self.maybe_fail()
            db.execute("INSERT INTO done VALUES (?)", (name,))
            self.maybe_fail()
            return name

        def delete(db: sqlite3.Connection, context: Context) -> None:
            assert context.result == name
            assert db.execute("DELETE FROM done WHERE name = ?", (name,)).rowcount == 1

        async def call(context: Context) -> str:
            self.maybe_fail()
            assert self.service.setdefault(context.key, True), "called after it was undone"
            self.maybe_fail()
            return name

        async def take_back(context: Context) -> None:
            self.service[context.step_key] = False

        if local:
            return step(name, insert, delete, database=self.database, attempts=2)
        return step(name, call, take_back, attempts=2)

    def maybe_fail(self) -> None:
        if self.random.random() < self.failing:
            raise OSError

    def effects(self) -> int:
        with sqlite3.connect(self.path) as db:
            (rows,) = db.execute("SELECT count(*) FROM done").fetchone()
        return int(rows) + sum(self.service.values())


def unreliable(random: Random, rate: float) -> Callable[[str], Fault]:
    def plan(operation: str) -> Fault:
        if operation in READS or operation == "begin" or random.random() >= rate:
            return Fault.NONE
        return random.choice([it for it in Fault if it is not Fault.NONE])

    return plan


@settings(max_examples=25)
@given(shapes, st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.3]), st.floats(0, 0.3))
def test_effects_stay_or_go_together(shape: Any, seed: int, failing: float, rate: float) -> None:
    random = Random(seed)

    async def test(folder: Path) -> None:
        place = Place(folder, random, failing)
        log = MemoryLog(plan=unreliable(random, rate))
        async with asyncio.timeout(60), Transactions(log, owner="test") as transactions:
            book = saga(Saga("s", place.part(shape)), transactions)
            xid = await book.start()
            try:
                await book.result(xid)
            except TransactionAbortedError:
                assert place.effects() == 0
            else:
                assert place.effects() == place.names
            assert log.world.transactions[xid].state in {State.COMMITTED, State.ABORTED}

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(test(Path(folder)))
