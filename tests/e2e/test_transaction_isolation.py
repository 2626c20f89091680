"""Which isolation each mode gives, over real databases: no less (random runs), and no more.

`docs/reference/transaction-isolation.md` states the same.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from bedstone.testing.histories import Level, anomalies
from bedstone.testing.history_files import main as check_files
from bedstone.testing.history_files import parsed
from bedstone.testing.history_modes import (
    AutomaticMode,
    HeldError,
    Mode,
    Place,
    TccMode,
    XaMode,
    changing,
    place,
    prepare,
    rows,
    selecting,
)
from bedstone.testing.history_recording import IDS, Load, record
from bedstone.testing.history_scripts import Script, new_database, places
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.automatic import automatic
from bedstone.transactions.errors import LockConflictError
from bedstone.transactions.manager import Transactions

pytestmark = pytest.mark.timeout(300)
COMMITTED, REPEATABLE, SERIALIZABLE = "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"
LOCKING = " FOR UPDATE"


@dataclass(frozen=True)
class Claim:
    """What a mode gives.

    Args:
        make: the mode.
        level: at least this.
        never: anomalies beyond the level that it also prevents.
        isolation: of the local databases.
        servers: theirs, by fixture.
    """

    make: Callable[[Transactions, Sequence[Place]], Mode]
    level: Level
    never: frozenset[str] = frozenset()
    isolation: str = COMMITTED
    servers: tuple[str, str] = ("postgres_url", "postgres_url")


LOST = frozenset({"lost-update"})
CLAIMS = {
    "at": Claim(AutomaticMode, Level.READ_UNCOMMITTED),
    "at-locking": Claim(lambda t, p: AutomaticMode(t, p, LOCKING), Level.READ_COMMITTED),
    "at-locking-one-local-transaction": Claim(
        lambda t, p: AutomaticMode(t, p, LOCKING, each=False), Level.SERIALIZABLE
    ),
    "at-mariadb": Claim(
        AutomaticMode, Level.READ_UNCOMMITTED, servers=("postgres_url", "mariadb_url")
    ),
    "at-locking-mariadb": Claim(
        lambda t, p: AutomaticMode(t, p, LOCKING),
        Level.READ_COMMITTED,
        servers=("mariadb_url", "mariadb_url"),
    ),
    "xa": Claim(XaMode, Level.READ_COMMITTED),
    "xa-repeatable-read": Claim(XaMode, Level.READ_COMMITTED, LOST, REPEATABLE),
    "xa-serializable": Claim(XaMode, Level.READ_COMMITTED, LOST, SERIALIZABLE),
    "xa-locking": Claim(lambda t, p: XaMode(t, p, " FOR SHARE"), Level.SERIALIZABLE),
    "xa-mariadb": Claim(XaMode, Level.READ_COMMITTED, servers=("postgres_url", "mariadb_url")),
    "xa-mariadb-serializable": Claim(
        XaMode,
        Level.SERIALIZABLE,
        isolation=SERIALIZABLE,
        servers=("mariadb_url", "mariadb_url"),
    ),
    "tcc": Claim(TccMode, Level.READ_COMMITTED, LOST),
    "tcc-reserving": Claim(lambda t, p: TccMode(t, p, reserving=True), Level.SERIALIZABLE),
    "tcc-mariadb": Claim(
        TccMode, Level.READ_COMMITTED, LOST, servers=("postgres_url", "mariadb_url")
    ),
}
ORDER = list(Level)


@pytest.mark.parametrize("name", CLAIMS)
def test_a_run_has_at_least_the_level_that_is_claimed(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """And what committed is there at the end, what aborted is not: no write of others is undone."""
    claim = CLAIMS[name]
    servers = [request.getfixturevalue(server) for server in claim.servers]

    async def run() -> None:
        log = request.getfixturevalue("postgres_url")
        async with (
            places(servers, claim.isolation) as found,
            Transactions(new_database(log)) as transactions,
        ):
            recording = await record(claim.make(transactions, found), Load())
        assert len(recording.history) == 121
        assert recording.committed >= 10, "too few to prove anything"
        path = tmp_path / "history.jsonl"
        recording.save(path)
        assert recording.astray() == ()
        shown = recording.anomalies()
        assert ORDER.index(recording.level()) >= ORDER.index(claim.level), shown
        assert not recording.names() & claim.never, shown
        history, orders = parsed(path.read_text().splitlines())
        again = {anomaly.name for anomaly in anomalies(history, orders)}
        assert again == recording.names()
        assert check_files([str(path)]) == (1 if again else 0)

    asyncio.run(run())


def scripted(
    make: Callable[[Transactions, Sequence[Place]], Mode],
    server: str,
    body: Callable[[Script], Awaitable[None]],
    isolation: str = COMMITTED,
    log: str = "",
) -> None:
    """Run a script over two databases of one server."""

    async def run() -> None:
        async with (
            places([server, server], isolation) as found,
            Transactions(new_database(log or server)) as transactions,
        ):
            await body(Script(make(transactions, found)))

    asyncio.run(run())


def test_at_plain_reads_see_what_is_taken_back_and_what_is_not_the_last(
    postgres_url: str,
) -> None:
    """Not read-committed: G1a, G1b."""

    async def body(script: Script) -> None:
        async with script.transaction("writer", aborts=True) as writer:
            await writer.change("a/l0", 1)
            async with script.transaction("reader") as reader:
                await reader.read("a/l0")
        async with script.transaction("twice") as writer:
            await writer.change("b/l0", 2)
            async with script.transaction("between") as reader:
                await reader.read("b/l0")
            await writer.change("b/l0", 3)
        level, names = await script.found()
        assert level is Level.READ_UNCOMMITTED
        assert {"G1a", "G1b"} <= names

    scripted(AutomaticMode, postgres_url, body)


def test_at_locking_reads_see_only_what_is_decided(postgres_url: str) -> None:
    """The same, where readers lock: they are refused until the writer has decided."""

    async def body(script: Script) -> None:
        async with script.transaction("writer", aborts=True) as writer:
            await writer.change("a/l0", 1)
            with pytest.raises(LockConflictError):
                async with script.transaction("refused") as reader:
                    await reader.read("a/l0")
        async with script.transaction("reader") as reader:
            await reader.read("a/l0")
        assert script.done[-1].operations[0].seen == ()
        assert await script.found() == (Level.SERIALIZABLE, set())

    scripted(lambda t, p: AutomaticMode(t, p, LOCKING), postgres_url, body)


def test_at_locking_reads_in_local_transactions_of_their_own_tear(postgres_url: str) -> None:
    """Not snapshot: read skew, and a lost update, since a read keeps no lock past its end."""

    async def body(script: Script) -> None:
        async with script.transaction("reader") as reader:
            await reader.read("a/l0")
            async with script.transaction("writer") as writer:
                await writer.change("a/l0", 1)
                await writer.change("b/l0", 2)
            await reader.read("b/l0")
        async with script.transaction("late") as late:
            await late.read("a/l1")
            async with script.transaction("quick") as quick:
                await quick.read("a/l1")
                await quick.change("a/l1", 3)
            await late.change("a/l1", 4)
        level, names = await script.found()
        assert level is Level.READ_COMMITTED
        assert {"G-single", "lost-update"} <= names

    scripted(lambda t, p: AutomaticMode(t, p, LOCKING), postgres_url, body)


async def _skew(script: Script) -> None:
    """Each reads, in one database, what the other writes there."""
    async with script.transaction("one") as one:
        await one.read("a/l0")
        async with script.transaction("other") as other:
            await other.read("b/l0")
            await other.change("a/l0", 1)
        await one.change("b/l0", 2)


def test_at_one_local_transaction_prevents_write_skew(postgres_url: str) -> None:
    """Where the local transactions last until the end, so do the locks of reads."""

    async def body(script: Script) -> None:
        with pytest.raises(Exception, match="lock timeout"):
            await _skew(script)
        assert await script.found() == (Level.SERIALIZABLE, set())

    scripted(lambda t, p: AutomaticMode(t, p, LOCKING, each=False), postgres_url, body)


async def _torn(script: Script) -> tuple[Level, set[str]]:
    """A reader between the two databases' parts of the second phase."""
    async with script.transaction("reader") as reader:
        await reader.read("a/l0")
        async with script.transaction("writer") as writer:
            await writer.change("a/l0", 1)
            await writer.change("b/l0", 2)
        await reader.read("b/l0")
    return await script.found()


@pytest.mark.parametrize(
    ("make", "isolation"),
    [
        (XaMode, COMMITTED),
        (XaMode, REPEATABLE),
        (XaMode, SERIALIZABLE),
        (TccMode, COMMITTED),
    ],
    ids=["xa", "xa-repeatable-read", "xa-serializable", "tcc"],
)
def test_reads_of_two_databases_are_of_two_moments(
    make: Callable[[Transactions, Sequence[Place]], Mode], isolation: str, postgres_url: str
) -> None:
    """Not snapshot, whatever the local level: a transaction is seen in one database alone."""

    async def body(script: Script) -> None:
        level, names = await _torn(script)
        assert level is Level.READ_COMMITTED
        assert names == {"G-single"}

    scripted(make, postgres_url, body, isolation)


@pytest.mark.parametrize("isolation", [COMMITTED, REPEATABLE, SERIALIZABLE])
def test_xa_write_skew_across_databases(isolation: str, postgres_url: str) -> None:
    """Each database alone sees one edge of the cycle, so even serializable ones let it pass."""

    async def body(script: Script) -> None:
        await _skew(script)
        level, names = await script.found()
        assert level is Level.SNAPSHOT_ISOLATION
        assert names == {"G2-item"}

    scripted(XaMode, postgres_url, body, isolation)


def test_xa_loses_updates_only_where_local_transactions_do(postgres_url: str) -> None:
    async def body(script: Script) -> None:
        async with script.transaction("late") as late:
            await late.read("a/l0")
            async with script.transaction("quick") as quick:
                await quick.read("a/l0")
                await quick.change("a/l0", 1)
            await late.change("a/l0", 2)

    async def loses(script: Script) -> None:
        await body(script)
        assert "lost-update" in (await script.found())[1]

    async def refuses(script: Script) -> None:
        with pytest.raises(Exception, match="could not serialize"):
            await body(script)
        assert await script.found() == (Level.SERIALIZABLE, set())

    scripted(XaMode, postgres_url, loses)
    scripted(XaMode, postgres_url, refuses, REPEATABLE)


def test_xa_locking_reads_prevent_write_skew(postgres_url: str) -> None:
    async def body(script: Script) -> None:
        with pytest.raises(Exception, match="lock timeout"):
            await _skew(script)
        assert await script.found() == (Level.SERIALIZABLE, set())

    scripted(lambda t, p: XaMode(t, p, " FOR SHARE"), postgres_url, body)


def test_xa_serializable_mariadb_prevents_write_skew(postgres_url: str, mariadb_url: str) -> None:
    """Its plain reads lock, and all blocks last until the work is done."""

    async def body(script: Script) -> None:
        with pytest.raises(Exception, match="Lock wait timeout"):
            await _skew(script)
        assert await script.found() == (Level.SERIALIZABLE, set())

    scripted(XaMode, mariadb_url, body, SERIALIZABLE, postgres_url)


def test_tcc_write_skew_and_what_reserving_reads_do(postgres_url: str) -> None:
    async def skews(script: Script) -> None:
        await _skew(script)
        assert await script.found() == (Level.SNAPSHOT_ISOLATION, {"G2-item"})

    async def refuses(script: Script) -> None:
        with pytest.raises(HeldError):
            await _skew(script)
        assert await script.found() == (Level.SERIALIZABLE, set())

    scripted(TccMode, postgres_url, skews)
    scripted(lambda t, p: TccMode(t, p, reserving=True), postgres_url, refuses)


class Between(MemoryLog):
    """A log that does something while a locking read asks it."""

    then: Callable[[], Awaitable[None]] | None = None

    async def locked(self, locks: Sequence[str]) -> dict[str, str]:
        """As `Log.locked`."""
        found = await super().locked(locks)
        if self.then is not None:
            then, self.then = self.then, None
            await then()
        return dict(found)


def test_at_a_locking_read_keeps_its_rows_from_the_question_to_the_answer(
    postgres_url: str,
) -> None:
    """Also where no local transaction is open: else others could write in between."""

    async def run() -> None:
        log = Between()
        async with (
            places([postgres_url, postgres_url], COMMITTED) as (where, _),
            Transactions(log) as transactions,
        ):
            bank = automatic(where.source, name="bank", transactions=transactions)
            tried: list[str] = []

            async def write() -> None:
                async with where.source.connect() as db:
                    with pytest.raises(Exception, match="could not obtain lock"):
                        await rows(db.raw, selecting("l0", f"{LOCKING} NOWAIT"))
                tried.append("refused")

            async with transactions.transaction("reader"), bank.connect() as db:
                log.then = write
                assert len(await rows(db, selecting("l0", LOCKING))) == 1
            assert tried == ["refused"]

    asyncio.run(run())


def test_at_a_blocking_locking_read_keeps_its_rows_too(postgres_url: str) -> None:
    url = new_database(postgres_url)
    with psycopg.connect(url, autocommit=True) as made:
        made.execute(
            "CREATE TABLE registers (id text PRIMARY KEY, list text, value int, holder text)"
        )
        made.execute("INSERT INTO registers VALUES ('l0', '', NULL, '')")
    log = Between()
    tried: list[str] = []

    async def write() -> None:
        async with await psycopg.AsyncConnection.connect(url) as db:
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await rows(db, selecting("l0", f"{LOCKING} NOWAIT"))
        tried.append("refused")

    with Transactions(log) as transactions:
        source = functools.partial(psycopg.connect, url, autocommit=True)
        bank = automatic(source, name="bank", transactions=transactions)
        with transactions.transaction("reader"), bank.connect_sync() as db:
            log.then = write
            assert len(db.execute(selecting("l0", LOCKING)).fetchall()) == 1
    assert tried == ["refused"]


async def _came_between(
    transactions: Transactions,
    log: Between,
    change: Callable[[str], Awaitable[object]],
    read: Callable[[str], Awaitable[object]],
) -> None:
    """A row comes into a locking read's condition while its locks are asked for."""
    go, written, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def write() -> None:
        await go.wait()
        async with transactions.transaction("writer"):
            await change(changing("l0", 9))
            written.set()
            await done.wait()

    async def between() -> None:
        go.set()
        await written.wait()

    async def reads() -> None:
        log.then = between
        async with transactions.transaction("reader"):
            await read(f"SELECT id FROM registers WHERE value > 5 OR id = 'l1'{LOCKING}")

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        with pytest.raises(LockConflictError):
            await reads()
        done.set()


def test_at_a_locking_read_refuses_rows_that_came_in_between(postgres_url: str) -> None:
    async def run() -> None:
        log = Between()
        async with (
            places([postgres_url, postgres_url], COMMITTED) as (where, _),
            Transactions(log) as transactions,
        ):
            bank = automatic(where.source, name="bank", transactions=transactions)

            async def execute(query: str) -> None:
                async with bank.connect() as db:
                    await db.execute(query)

            await _came_between(transactions, log, execute, execute)

    asyncio.run(run())


def test_at_a_locking_read_of_an_engine_refuses_them_too(postgres_url: str) -> None:
    url = new_database(postgres_url)

    async def run() -> None:
        log = Between()
        engine = create_async_engine(f"postgresql+psycopg{url.removeprefix('postgresql')}")
        async with place("a", url) as where, Transactions(log) as transactions:
            await prepare(where, IDS)
            automatic(engine, name="bank", transactions=transactions)

            async def execute(query: str) -> None:
                async with engine.begin() as connection:
                    await connection.execute(text(query))

            await _came_between(transactions, log, execute, execute)
        await engine.dispose()

    asyncio.run(run())
