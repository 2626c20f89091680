"""The barrier on real databases: repeated, reordered and simultaneous phases; and its janitor."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.testing.faults import Fault
from bedstone.testing.transaction_log import MemoryLog, in_turn
from bedstone.testing.transaction_sources import KINDS, source
from bedstone.transactions import barrier
from bedstone.transactions.barrier import Entered
from bedstone.transactions.connections import AsyncConnection
from bedstone.transactions.databases import Database
from bedstone.transactions.model import (
    Branch,
    BranchState,
    Mode,
    Outcome,
    Phase,
    State,
    Transaction,
)
from bedstone.transactions.sql import Dialect, Query, Steps
from bedstone.transactions.sweeper import Sweeper, Swept

TRY, CONFIRM, CANCEL = Phase.TRY, Phase.CONFIRM, Phase.CANCEL
ONE_EACH = ("psycopg-async", "asyncmy", "aiosqlite")
SERVERS = ("psycopg-async", "asyncmy")
LEVELS = ("READ COMMITTED", "REPEATABLE READ")
STALE = "REPEATABLE READ, after a read"


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    kind: str = request.param
    server = KINDS[kind][0]
    url = (
        str(tmp_path / "db")
        if server == "sqlite"
        else request.getfixturevalue("postgres_url" if server == "postgres" else "mariadb_url")
    )
    made = source(kind, url)

    async def create() -> None:
        async with made.connect() as db:
            await _run(db, barrier.ensure(db.dialect))

    asyncio.run(create())
    return made


async def _now(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def _run(db: Any, steps: Steps[Any]) -> Any:
    """One local transaction around a conversation."""
    await _now(db.begin())
    found = await _now(db.run(steps))
    await _now(db.commit())
    return found


async def _enter(database: Database, xid: str, *phases: Phase) -> list[Entered]:
    """Phases one after the other, each in a local transaction that commits."""
    found = []
    async with database.connect() as db:
        for phase in phases:
            await _now(db.begin())
            found.append(await _now(db.run(barrier.enter(db.dialect, xid, "1", phase))))
            await _now(db.commit())
    return found


def _xid() -> str:
    return f"b-{secrets.token_hex(8)}"


@pytest.mark.parametrize("database", sorted(KINDS), indirect=True)
def test_phases(database: Database) -> None:
    """Each order of messages gets the answer that the table in `barrier` says."""
    E = Entered  # noqa: N806

    async def main() -> None:
        for phases, expected in (
            ((TRY, TRY, CONFIRM, CONFIRM), (E.PROCEED, E.REPEATED, E.PROCEED, E.REPEATED)),
            ((TRY, CANCEL, CANCEL, TRY), (E.PROCEED, E.PROCEED, E.REPEATED, E.REPEATED)),
            ((CANCEL, CANCEL, TRY, TRY), (E.EMPTY, E.REPEATED, E.SUSPENDED, E.SUSPENDED)),
            ((CONFIRM, CANCEL, CONFIRM), (E.NOT_TRIED, E.EMPTY, E.NOT_TRIED)),
        ):
            assert await _enter(database, _xid(), *phases) == list(expected), phases

    asyncio.run(main())


@pytest.mark.parametrize("database", sorted(KINDS), indirect=True)
def test_table_is_made(database: Database) -> None:
    """Where the table is missing it is made, also by several at once; then the phases work."""

    async def make() -> None:
        async with database.connect() as db:
            await _run(db, barrier.ensure(db.dialect))

    async def main() -> None:
        async with database.connect() as db:
            await _now(db.begin())
            await _now(db.execute(Query(f"DROP TABLE {barrier.TABLE}")))
            if db.dialect is not Dialect.MYSQL:  # there the statement itself commits
                await _now(db.commit())
        async with asyncio.TaskGroup() as group:
            for _ in range(3 if database.is_async else 1):
                group.create_task(make())
        await make()
        assert await _enter(database, _xid(), TRY, CONFIRM) == [Entered.PROCEED] * 2

    asyncio.run(main())


@pytest.mark.parametrize("database", sorted(KINDS), indirect=True)
def test_result(database: Database) -> None:
    """What a phase returned is there when it is asked again, and only if it committed."""

    async def main() -> None:
        xid = _xid()
        async with database.connect() as db:
            dialect = db.dialect
            for value, commits in ((b"lost", False), (b"\x00kept", True)):
                await _now(db.begin())
                entered = await _now(db.run(barrier.enter(dialect, xid, "1", TRY)))
                assert entered is Entered.PROCEED
                await _now(db.run(barrier.store_result(dialect, xid, "1", TRY, value)))
                await _now(db.commit() if commits else db.rollback())
            await _now(db.begin())
            assert await _now(db.run(barrier.result(dialect, xid, "1", TRY))) == b"\x00kept"
            assert await _now(db.run(barrier.result(dialect, xid, "2", TRY))) is None
            await _now(db.rollback())

    asyncio.run(main())


@pytest.mark.parametrize("database", ONE_EACH, indirect=True)
def test_keys_are_checked(database: Database) -> None:
    """What a column would cut is refused: two ids must not become one."""

    async def main() -> None:
        async with database.connect() as db:
            for xid, branch in (("x" * 65, "1"), ("x", "b" * 191), ("x", ""), ("a'b", "1")):
                with pytest.raises(InvalidError):
                    await _now(db.run(barrier.enter(db.dialect, xid, branch, TRY)))

    asyncio.run(main())


async def _at(db: Any, level: str) -> None:
    """Begin at an isolation level; perhaps with a snapshot from before what the other will do."""
    level, _, stale = level.partition(", ")
    if db.dialect is Dialect.MYSQL:
        await db.execute(Query(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}"))
        await db.rollback()
    await db.begin()
    if db.dialect is Dialect.POSTGRES:
        await db.execute(Query(f"SET TRANSACTION ISOLATION LEVEL {level}"))
    if stale:
        await db.execute(Query(f"SELECT count(*) FROM {barrier.TABLE}"))


class Actor:
    """One connection that enters a phase and commits or rolls back, step by step."""

    def __init__(self, db: AsyncConnection, xid: str, phase: Phase, level: str) -> None:
        self.db, self.xid, self.phase, self.level = db, xid, phase, level
        self.entered: Entered | UnavailableError | None = None
        self._entering: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        await _at(self.db, self.level)

    async def enter(self) -> None:
        """Start entering; it may have to wait for the other's end."""
        self._entering = asyncio.get_running_loop().create_task(self._enter())
        await asyncio.wait((self._entering,), timeout=0.05)

    async def _enter(self) -> None:
        try:
            self.entered = await self.db.run(
                barrier.enter(self.db.dialect, self.xid, "1", self.phase)
            )
        except UnavailableError as error:  # a serialization failure: asked again
            self.entered = error

    def done(self) -> bool:
        """Whether the barrier has answered."""
        return self.entered is not None

    async def end(self) -> None:
        """Commit what proceeded, as participants do."""
        if self._entering is not None and not self._entering.done():
            return  # still waits for the other, whose end comes later
        if self.entered in {Entered.PROCEED, Entered.EMPTY, Entered.REPEATED}:
            await self.db.commit()
        else:
            await self.db.rollback()

    async def settle(self) -> None:
        """After the other has ended."""
        assert self._entering is not None
        await self._entering
        if self.db.in_transaction():
            await self.end()


ORDERS = sorted(
    {
        order
        for order in permutations(
            [(who, step) for who in (0, 1) for step in ("begin", "enter", "end")]
        )
        if all(
            [step for who, step in order if who == actor] == ["begin", "enter", "end"]
            for actor in (0, 1)
        )
    }
)


@pytest.mark.parametrize("level", [*LEVELS, STALE])
@pytest.mark.parametrize("second", [TRY, CANCEL])
@pytest.mark.parametrize("first", [TRY, CANCEL])
@pytest.mark.parametrize("database", SERVERS, indirect=True)
def test_simultaneous(database: Database, first: Phase, second: Phase, level: str) -> None:
    """Two phases of one branch, in every interleaving: no deadlock, and one of them wins."""

    async def play(order: tuple[tuple[int, str], ...]) -> None:
        xid = _xid()
        async with database.connect() as one, database.connect() as other:
            assert isinstance(one, AsyncConnection)
            assert isinstance(other, AsyncConnection)
            actors = (Actor(one, xid, first, level), Actor(other, xid, second, level))
            for who, step in order:
                await getattr(actors[who], step)()
            for actor in actors:
                await asyncio.wait_for(actor.settle(), 20)
            found = [actor.entered for actor in actors]
        assert not any("deadlock" in str(answer).lower() for answer in found), found
        tries = [e for e, actor in zip(found, actors, strict=True) if actor.phase is TRY]
        cancels = [e for e, actor in zip(found, actors, strict=True) if actor.phase is CANCEL]
        assert tries.count(Entered.PROCEED) <= 1
        if tries and cancels:
            # Either the cancel undoes the try, or the try never happens.
            assert Entered.PROCEED in found or Entered.EMPTY in found, found
            assert not (tries[0] is Entered.PROCEED and cancels[0] is Entered.EMPTY), found
        if len(cancels) == 2:
            assert cancels.count(Entered.EMPTY) == 1, found
        last = await _enter(database, xid, CANCEL)  # what was refused is asked again, and ends
        assert last[0] in {Entered.PROCEED, Entered.REPEATED, Entered.EMPTY}
        assert await _enter(database, xid, CANCEL) == [Entered.REPEATED]

    async def main() -> None:
        for order in ORDERS:
            await play(order)

    asyncio.run(main())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("database", SERVERS, indirect=True)
def test_neighbours(database: Database, level: str) -> None:
    """Empty cancels of many transactions at once don't deadlock over the gaps between them."""

    async def cancel(xid: str, started: asyncio.Barrier) -> Entered:
        async with database.connect() as db:
            await _at(db, level)
            await started.wait()
            found: Entered = await _now(db.run(barrier.enter(db.dialect, xid, "1", CANCEL)))
            await _now(db.commit())
            return found

    async def main() -> None:
        for _ in range(5):
            base = _xid()
            started = asyncio.Barrier(12)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(cancel(f"{base}-{number:02}", started))
                    for number in range(12)
                ]
            assert [task.result() for task in tasks] == [Entered.EMPTY] * 12

    asyncio.run(main())


@pytest.mark.parametrize("database", SERVERS, indirect=True)
def test_try_rolled_back(database: Database) -> None:
    """A cancel that waits for a try that then fails is empty, at once, and is not asked again."""

    async def main() -> None:
        xid = _xid()
        async with database.connect() as one, database.connect() as other:
            await _now(one.begin())
            await _now(one.run(barrier.enter(one.dialect, xid, "1", TRY)))
            await _now(other.begin())
            assert isinstance(other, AsyncConnection)
            actor = Actor(other, xid, CANCEL, LEVELS[0])
            await actor.enter()
            assert not actor.done()
            await _now(one.rollback())
            await actor.settle()
            assert actor.entered is Entered.EMPTY
        assert await _enter(database, xid, TRY, CANCEL) == [Entered.SUSPENDED, Entered.REPEATED]

    asyncio.run(main())


@pytest.mark.parametrize("database", ONE_EACH, indirect=True)
def test_sweeper(database: Database) -> None:
    """Rows go when the log proves the end, after the grace; never before, never unknown ones."""
    clock = [1_000.0]

    async def main() -> None:
        log = MemoryLog(lambda: clock[0])
        ended, going, unknown = (f"{_xid()}" for _ in range(3))
        for xid in (ended, going):
            branch = Branch(1, Mode.TCC, "local:x")
            await log.begin(Transaction(xid, "", 2_000.0, 0.0, "me", branches=(branch,)))
        await log.decide(ended, State.ABORTING)
        outcome = Outcome(1, BranchState.CANCELLED)
        for xid in (ended, going, unknown):
            await _enter(database, xid, TRY, CANCEL)
        mine = Database("mine", database._opening, is_async=database.is_async)
        sweeper = Sweeper(mine, log, grace=3600.0)
        await _forget_others(database, {ended, going, unknown})
        assert await sweeper.sweep() == Swept()  # the log's clock is far behind the rows'
        clock[0] = 4e9
        assert await sweeper.sweep() == Swept(open=2, unknown=(unknown,))
        await log.record(ended, "me", 1, (outcome,), 0.0)
        assert (await sweeper.sweep()).rows == 0  # it has only just ended
        clock[0] += 3601.0
        assert await sweeper.sweep() == Swept(2, 1, 1, (unknown,))
        assert await sweeper.sweep() == Swept(open=1, unknown=(unknown,))
        assert await _enter(database, going, TRY) == [Entered.REPEATED]

    asyncio.run(main())


def test_sweeper_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sweep that fails is logged, and the next one runs; unknown transactions are named."""
    database = source("aiosqlite", str(tmp_path / "db"))
    rounds: list[float] = []

    class StoppedError(Exception):
        pass

    async def main() -> None:
        log = MemoryLog(lambda: 4e9, plan=in_turn([Fault.UNAPPLIED], reads=True))

        async def sleep(seconds: float) -> None:
            rounds.append(seconds)
            if len(rounds) == 1:  # the first sweep asked in vain; the second finds no table
                return
            if len(rounds) == 2:
                async with database.connect() as db:
                    await _run(db, barrier.ensure(db.dialect))
                await _enter(database, "nobodys", CANCEL)
            else:
                raise StoppedError

        with pytest.raises(StoppedError):
            await Sweeper(database, log).run(60.0, sleep)

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert rounds == [60.0, 60.0, 60.0]
    assert "sweep_failed" in caplog.text
    assert "nobodys" in caplog.text


async def _forget_others(database: Database, mine: set[str]) -> None:
    """Other tests' rows are in the same table."""
    async with database.connect() as db:
        found = await _now(db.run(barrier.pending(db.dialect, 9e9, limit=100_000)))
        await _now(db.rollback())
        await _now(db.begin())
        await _now(db.run(barrier.forget(db.dialect, sorted(set(found) - mine))))
        await _now(db.commit())
