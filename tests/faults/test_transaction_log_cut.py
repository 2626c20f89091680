"""The log in PostgreSQL when connections are cut, its server is killed, and others lock rows."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from bedstone.errors import Error, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.testing.databases import DatabaseServer, postgres_server
from bedstone.testing.faults import CuttingProxy
from bedstone.testing.transaction_log_whole import begin, branches, check_whole
from bedstone.transactions.log_postgres import PostgresLog
from bedstone.transactions.log_sqlite import SqliteLog
from bedstone.transactions.model import BranchState, Log, Outcome, State, Transaction


@asynccontextmanager
async def cuttable(
    url: str, patience: float = 5.0
) -> AsyncIterator[tuple[CuttingProxy, PostgresLog]]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with CuttingProxy(parts.hostname, parts.port) as proxy:
        through = url.replace(f":{parts.port}/", f":{proxy.port}/")
        place = f"{through}?schema=f{uuid.uuid4().hex[:12]}"
        async with PostgresLog(place, patience=patience) as log:
            yield proxy, log


@pytest.mark.parametrize("point", [b"BEGIN", b"FOR NO KEY UPDATE", b"transaction_locks"])
@pytest.mark.parametrize("deliver", [False, True])
def test_a_batch_cut_before_its_commit_is_begun_anew(
    postgres_url: str, point: bytes, *, deliver: bool
) -> None:
    """Nothing was written, so nobody is troubled."""

    async def run() -> None:
        async with cuttable(postgres_url) as (proxy, log):
            await begin(log, "a")
            proxy.cut_at(point, deliver=deliver)
            await asyncio.gather(begin(log, "b"), begin(log, "c"))
            assert proxy.struck.is_set()
            await check_whole(log, {"a": "begun", "b": "begun", "c": "begun"})

    asyncio.run(run())


@pytest.mark.parametrize("deliver", [False, True])
def test_a_cut_commit_is_told_as_unknown(postgres_url: str, *, deliver: bool) -> None:
    """Whether it was applied or not; the same again settles it."""

    async def run() -> None:
        async with cuttable(postgres_url) as (proxy, log):
            await begin(log, "a")
            proxy.cut_at(b"COMMIT", deliver=deliver)
            results = await asyncio.gather(
                log.decide("a", State.COMMITTING), begin(log, "b"), return_exceptions=True
            )
            assert [type(it) for it in results] == [UnknownOutcomeError] * 2
            assert (await log.decide("a", State.COMMITTING)).state is State.COMMITTING
            await begin(log, "b")
            await check_whole(log, {"a": "decided", "b": "begun"})

    asyncio.run(run())


def test_the_log_recovers_from_a_restart_by_itself(postgres_url: str) -> None:
    """Work that comes while the database is away waits for it, for a while."""

    async def run() -> None:
        async with cuttable(postgres_url, patience=30.0) as (proxy, log):
            await begin(log, "a")
            proxy.refusing = True
            proxy.cut()
            waiting = [asyncio.ensure_future(begin(log, f"b{n}")) for n in range(5)]
            reading = asyncio.ensure_future(log.get("a"))
            await asyncio.sleep(0.2)
            assert not any(it.done() for it in (*waiting, reading))
            proxy.refusing = False
            await asyncio.gather(*waiting)
            assert (await reading).xid == "a"
            assert len(await log.list()) == 6

    asyncio.run(run())


async def insist(action: Callable[[], Awaitable[object]]) -> None:
    for _ in range(100):
        with contextlib.suppress(UnavailableError, UnknownOutcomeError):
            await action()
            return
    raise AssertionError("the log never came back")


def test_a_killed_server_loses_nothing_and_the_log_goes_on() -> None:
    """SIGKILL at a real server with work under way; it starts again, and so does the work."""
    acknowledged: dict[str, str] = {}

    async def abort(log: Log, xid: str) -> None:
        await insist(lambda: begin(log, xid))
        acknowledged[xid] = "begun"
        await insist(lambda: log.decide(xid, State.ABORTING))
        acknowledged[xid] = "decided"

    async def run(server: DatabaseServer) -> None:
        busy, restarted = asyncio.Event(), asyncio.Event()

        async def work(log: Log, worker: int) -> None:
            for n in itertools.takewhile(lambda _: not restarted.is_set(), itertools.count()):
                await abort(log, f"w{worker}-{n}")
                if n == 5:
                    busy.set()
            await abort(log, f"w{worker}-last")

        async with PostgresLog(server.url, patience=60.0) as log:
            async with asyncio.TaskGroup() as tasks:
                for n in range(10):
                    tasks.create_task(work(log, n))
                await busy.wait()
                await asyncio.to_thread(server.restart, signal.SIGKILL)
                restarted.set()
            assert len(acknowledged) > 60
            await check_whole(log, acknowledged)

    with postgres_server(fsync="on") as server:
        asyncio.run(run(server))


def test_a_database_that_stays_away_is_told(postgres_url: str) -> None:
    async def run() -> None:
        async with cuttable(postgres_url, patience=0.2) as (proxy, log):
            await begin(log, "a")
            proxy.refusing = True
            proxy.cut()
            for attempt in (
                log.decide("a", State.COMMITTING),
                log.claim("one", 60.0, 10),
                log.get("a"),
                log.now(),
                log.release("one"),
            ):
                with pytest.raises(UnavailableError):
                    await attempt
            proxy.refusing = False
            assert (await log.get("a")).state is State.ACTIVE
            assert (await log.decide("a", State.COMMITTING)).state is State.COMMITTING

    asyncio.run(run())


def test_terminated_connections_mid_batch(postgres_url: str) -> None:
    """Whatever was answered is true, and what was not is told as it is."""
    name = f"f{uuid.uuid4().hex[:12]}"
    url = f"{postgres_url}?application_name={name}&schema={name}"

    async def run() -> None:
        acknowledged: dict[str, str] = {}
        failures: list[Error] = []

        async def work(log: Log, worker: int) -> None:
            for n in range(60):
                xid = f"w{worker}-{n}"
                try:
                    await begin(log, xid)
                    acknowledged[xid] = "begun"
                    await log.decide(xid, State.COMMITTING)
                    acknowledged[xid] = "decided"
                    outcomes = [Outcome(it, BranchState.CONFIRMED) for it in (1, 2)]
                    await log.record(xid, "one", 1, outcomes, 0.0)
                    acknowledged[xid] = "ended"
                except (UnavailableError, UnknownOutcomeError) as error:
                    failures.append(error)

        async def terminate(workers: Sequence[asyncio.Future[None]]) -> None:
            async with await psycopg.AsyncConnection.connect(
                postgres_url, autocommit=True
            ) as connection:
                while not all(it.done() for it in workers):
                    await connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name = %s AND query ~ 'COMMIT|UPDATE|INSERT'",
                        (name,),
                    )
                    await asyncio.sleep(0.01)

        async with PostgresLog(url) as log:
            workers = [asyncio.ensure_future(work(log, n)) for n in range(10)]
            await terminate(workers)
            await asyncio.gather(*workers)
            assert acknowledged
            assert log.statistics.commits < log.statistics.batches, "nothing was ever cut"
            await check_whole(log, acknowledged)
            assert {type(it) for it in failures} <= {UnavailableError, UnknownOutcomeError}

    asyncio.run(run())


def test_a_deadlock_is_begun_anew(postgres_url: str) -> None:
    """Another program locks rows in the wrong order; the database ends our batch, not the work."""
    schema = f"f{uuid.uuid4().hex[:12]}"
    url = f"{postgres_url}?schema={schema}"
    lock = sql.SQL("SELECT 1 FROM {}.transactions WHERE xid = %s FOR UPDATE").format(
        sql.Identifier(schema)
    )

    async def run() -> None:
        async with PostgresLog(f"{url}&options=-cdeadlock_timeout%3D2s") as log:
            await asyncio.gather(begin(log, "a"), begin(log, "b"))
            async with await psycopg.AsyncConnection.connect(
                f"{postgres_url}?options=-cdeadlock_timeout%3D60s"
            ) as other:
                await other.execute(lock, ("b",))
                both = [
                    asyncio.ensure_future(log.decide(xid, State.COMMITTING)) for xid in ("a", "b")
                ]
                await until_waiting(postgres_url)
                await other.execute(lock, ("a",))  # the database ends one of both: ours
                await other.rollback()
            assert [(await it).state for it in both] == [State.COMMITTING] * 2
            await check_whole(log, {"a": "decided", "b": "decided"})

    asyncio.run(run())


async def until_waiting(url: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for _ in range(1000):
            cursor = await connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            )
            if await cursor.fetchone() != (0,):
                return
            await asyncio.sleep(0.01)
    raise AssertionError("nobody waits for a lock")


def test_coordinators_that_begin_the_same_at_once(postgres_url: str) -> None:
    """An answer that was lost is asked for again elsewhere, meanwhile; and locks cross."""
    url = f"{postgres_url}?schema=f{uuid.uuid4().hex[:12]}"

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            logs = [await stack.enter_async_context(PostgresLog(url)) for _ in range(4)]
            deadline = await logs[0].now() + 60
            for n in range(15):
                new = Transaction(f"x{n}", "n", deadline, 0.0, "one", branches=branches(f"x{n}"))
                await asyncio.gather(*(log.begin(new) for log in logs))
                await asyncio.gather(*(log.decide(new.xid, State.COMMITTING) for log in logs))
            await check_whole(logs[0], {f"x{n}": "decided" for n in range(15)})

    asyncio.run(run())


def test_a_value_that_a_database_refuses_is_its_own_operations(
    postgres_url: str, tmp_path: Path
) -> None:
    """Written together with others, which are written all the same."""

    async def run(log: Log) -> None:
        deadline = await log.now() + 60
        too_large = Transaction("bad", "", deadline, 0.0, "one", 1 << 80)
        bad, *good = await asyncio.gather(
            log.begin(too_large),
            *(begin(log, f"good{n}") for n in range(5)),
            return_exceptions=True,
        )
        assert isinstance(bad, InvalidError), bad
        assert good == [None] * 5
        assert [it.xid for it in await log.list()] == [f"good{n}" for n in range(5)]

    async def both(folder: Path) -> None:
        async with PostgresLog(f"{postgres_url}?schema=f{uuid.uuid4().hex[:12]}") as log:
            await run(log)
        async with SqliteLog(folder / "log.db") as file:
            await run(file)

    asyncio.run(both(tmp_path))


def test_readers_that_leave_disturb_nobody(postgres_url: str) -> None:
    """A reading is cancelled at each point; the others on its connection get their own answers."""

    async def run() -> None:
        async with PostgresLog(f"{postgres_url}?schema=f{uuid.uuid4().hex[:12]}") as log:
            await asyncio.gather(*(begin(log, f"x{n}") for n in range(4)))
            for steps in range(12):
                readers = [asyncio.ensure_future(log.get(f"x{n}")) for n in range(4)]
                for _ in range(steps):
                    await asyncio.sleep(0)
                readers[steps % 4].cancel()
                for n, reader in enumerate(readers):
                    with contextlib.suppress(asyncio.CancelledError):
                        assert (await reader).xid == f"x{n}"
            assert len(await log.list()) == 4

    asyncio.run(run())
