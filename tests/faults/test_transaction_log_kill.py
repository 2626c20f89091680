"""The logs on disk when their writers are killed, their connections cut, and their disks full."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from bedstone.errors import Error, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.testing.faults import CuttingProxy
from bedstone.transactions.log_postgres import PostgresLog
from bedstone.transactions.log_sqlite import SqliteLog
from bedstone.transactions.logs import open_log
from bedstone.transactions.model import (
    Branch,
    BranchState,
    Log,
    Mode,
    Outcome,
    State,
    Transaction,
)

FAR = 4e9  # a deadline that no test sees
STEPS = ("begun", "decided", "ended")
WRITER = """
import asyncio, itertools, sys
from bedstone.transactions.logs import open_log
from bedstone.transactions.model import Branch, BranchState, Mode, Outcome, State, Transaction

async def work(log, name):
    for n in itertools.count():
        xid, owner = f"{name}-{n}", sys.argv[2]
        locks = (f"{xid}/1", f"{xid}/2")
        branches = (Branch(0, Mode.AT, "r", locks=locks), Branch(0, Mode.TCC, "s"))
        deadline = await log.now() + 3600
        await log.begin(Transaction(xid, name, deadline, 0.0, owner, branches=branches))
        print(xid, "begun", flush=True)
        await log.decide(xid, State.COMMITTING if n % 2 else State.ABORTING)
        print(xid, "decided", flush=True)
        end = BranchState.CONFIRMED if n % 2 else BranchState.CANCELLED
        outcomes = [Outcome(1, end), Outcome(2, end)]
        await log.record(xid, owner, 1, outcomes, 0.0)
        print(xid, "ended", flush=True)

async def main():
    async with open_log(sys.argv[1]) as log, asyncio.TaskGroup() as tasks:
        for n in range(8):
            tasks.create_task(work(log, f"{sys.argv[2]}{n}"))

asyncio.run(main())
"""


def branches(xid: str) -> tuple[Branch, ...]:
    return (Branch(0, Mode.AT, "r", locks=(f"{xid}/1", f"{xid}/2")), Branch(0, Mode.TCC, "s"))


async def begin(log: Log, xid: str) -> None:
    await log.begin(Transaction(xid, "n", FAR, 0.0, "one", branches=branches(xid)))


def kill_after(url: str, owner: str, count: int) -> dict[str, str]:
    """Kill a writer once it has acknowledged so much; what it acknowledged of each transaction."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, url, owner], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(count)]
        child.kill()
        lines += child.stdout.readlines()  # what it said before it died
    assert all(line.endswith("\n") for line in lines[:count]), lines
    return dict(line.split() for line in lines if line.endswith("\n"))


async def check_whole(log: Log, acknowledged: dict[str, str]) -> None:
    """What was acknowledged is there, and nothing at all is half there."""
    found: list[Transaction] = []
    while page := await log.list(after=found[-1].xid if found else "", limit=500):
        found += page
    reached = {
        State.ACTIVE: "begun",
        State.COMMITTING: "decided",
        State.ABORTING: "decided",
        State.COMMITTED: "ended",
        State.ABORTED: "ended",
    }
    known = {it.xid: STEPS.index(reached[it.state]) for it in found}
    for xid, step in acknowledged.items():
        assert known.get(xid, -1) >= STEPS.index(step), (xid, step)
    for it in found:
        assert len(it.branches) == 2
        kinds = [event.kind for event in await log.events(it.xid)]
        expected = ["begun", "registered", "registered"]
        if it.state is not State.ACTIVE:
            expected.append("decided")
        if it.state.ended:
            expected += ["attempt", "attempt", "ended"]
        assert kinds == expected
        locks = [lock for branch in it.branches for lock in branch.locks]
        keeps = it.state in {State.ACTIVE, State.ABORTING}
        assert await log.locked(locks) == (dict.fromkeys(locks, it.xid) if keeps else {})


def kill_and_check(url: str, seed: int) -> None:
    chance = random.Random(seed)
    acknowledged: dict[str, str] = {}
    for owner in "abc":
        acknowledged |= kill_after(url, owner, chance.randrange(1, 120))

    async def check() -> None:
        async with open_log(url) as log:
            await check_whole(log, acknowledged)
            await begin(log, "afterwards")
            taken = await log.claim("heir", 60.0, 10_000)
            assert {it.owner for it in taken} == {"heir"}
            assert not await log.list([State.COMMITTED, State.ABORTED], stuck=True)

    asyncio.run(check())


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer_loses_nothing_in_sqlite(tmp_path: Path, seed: int) -> None:
    kill_and_check(f"sqlite://{tmp_path}/log.db", seed)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_writer_loses_nothing_in_postgres(postgres_url: str, seed: int) -> None:
    kill_and_check(f"{postgres_url}?schema=k{uuid.uuid4().hex[:12]}", seed)


# SQLite's disk.


async def limit_pages(log: SqliteLog, count: int) -> None:
    await log._writer.call(
        lambda database: database.execute(f"PRAGMA max_page_count = {count}").fetchone()
    )


def test_a_full_disk_applies_nothing_and_heals(tmp_path: Path) -> None:
    async def run() -> None:
        async with SqliteLog(tmp_path / "log.db") as log:
            await begin(log, "before")
            await limit_pages(log, 1)  # SQLite takes the pages that there are
            payload = b"x" * 200_000
            large = Branch(0, Mode.TCC, "r", payload)
            deadline = await log.now() + 3600
            attempts = [
                log.begin(Transaction(f"t{n}", "", deadline, 0.0, "one", branches=(large,)))
                for n in range(5)
            ]
            for error in await asyncio.gather(*attempts, return_exceptions=True):
                assert isinstance(error, UnavailableError)
                assert "free some space" in (error.hint or "")
            with pytest.raises(UnavailableError):
                await log.register("before", [large])
            assert [it.xid for it in await log.list()] == ["before"]
            await check_whole(log, {"before": "begun"})
            await limit_pages(log, 1_000_000)
            await log.begin(Transaction("t0", "", deadline, 0.0, "one", branches=(large,)))
        async with SqliteLog(tmp_path / "log.db") as log:
            assert [it.xid for it in await log.list()] == ["before", "t0"]
            assert (await log.get("t0")).branches[0].payload == payload

    asyncio.run(run())


def test_a_file_size_limit_is_a_real_write_error(tmp_path: Path) -> None:
    """The kernel refuses writes past the limit: what is told is true, in a child process."""
    script = """
import asyncio, resource, sys
from pathlib import Path
from bedstone.errors import UnavailableError, UnknownOutcomeError
from bedstone.transactions.log_sqlite import SqliteLog
from bedstone.transactions.model import Branch, Mode, Transaction

async def main():
    path = Path(sys.argv[1])
    async with SqliteLog(path) as log:
        deadline = await log.now() + 60
        large = Branch(0, Mode.TCC, "r", b"x" * 500_000)
        await log.begin(Transaction("first", "", deadline, 0.0, "one"))
        size = Path(f"{path}-wal").stat().st_size
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        known = {"first"}
        for n, extra in enumerate((0, 5_000, 100_000)):
            new = Transaction(f"t{n}", "", deadline, 0.0, "one", branches=(large,))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + extra, hard))
            try:
                await log.begin(new)
            except UnavailableError as error:
                print("refused:", error)
                may = known
            except UnknownOutcomeError as error:
                print("unknown:", error)
                may = known | {new.xid}
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            found = {it.xid for it in await log.list()}
            assert known <= found <= may, found
            await log.begin(new)
            known.add(new.xid)
        await log.begin(Transaction("last", "", deadline, 0.0, "one"))
    async with SqliteLog(path) as log:
        print("reopened:", [it.xid for it in await log.list()])

asyncio.run(main())
"""
    child = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "log.db"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    lines = child.stdout.splitlines()
    assert child.returncode == 0, child.stderr
    assert sum(line.startswith(("refused:", "unknown:")) for line in lines) == 3, lines
    assert lines[-1] == "reopened: ['first', 'last', 't0', 't1', 't2']"


class Interrupted(sqlite3.Connection):
    """Commits, and says that it failed: a disk error after the commit mark."""

    armed = False

    def execute(self, query: str, *values: object) -> sqlite3.Cursor:
        result = super().execute(query, *values)  # type: ignore[arg-type]
        if Interrupted.armed and query == "COMMIT":
            Interrupted.armed = False
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error
        return result


def test_a_commit_with_an_error_is_told_as_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **named: connect(*args, **named, factory=Interrupted)
    )

    async def run() -> None:
        async with SqliteLog(tmp_path / "log.db") as log:
            await begin(log, "a")
            Interrupted.armed = True
            with pytest.raises(UnknownOutcomeError):
                await begin(log, "b")
            await begin(log, "b")  # the same again settles it
            assert [it.xid for it in await log.list()] == ["a", "b"]
            await check_whole(log, {"a": "begun", "b": "begun"})

    asyncio.run(run())


def test_processes_share_one_file(tmp_path: Path) -> None:
    """Writers of several processes at once: each lock has one holder, each batch is whole."""
    url = f"sqlite://{tmp_path}/log.db"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, url, owner], stdout=subprocess.PIPE, text=True
        )
        for owner in "abc"
    ]
    acknowledged: dict[str, str] = {}
    try:
        for child in children:
            assert child.stdout is not None
            acknowledged |= dict(child.stdout.readline().split() for _ in range(60))
    finally:
        for child in children:
            child.kill()
            child.communicate()

    async def check() -> None:
        async with open_log(url) as log:
            await check_whole(log, acknowledged)

    asyncio.run(check())
    assert {xid[0] for xid in acknowledged} == set("abc")


# PostgreSQL's connections.


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
        async with PostgresLog(f"{url}&options=-cdeadlock_timeout%3D50ms") as log:
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
