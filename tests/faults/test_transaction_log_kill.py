"""The logs on disk when their writers are killed, and their disks full."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from bedstone.errors import UnavailableError, UnknownOutcomeError
from bedstone.testing.transaction_log_whole import begin, check_whole
from bedstone.transactions.log_sqlite import SqliteLog
from bedstone.transactions.logs import open_log
from bedstone.transactions.model import Branch, Mode, State, Transaction

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
    """Several processes start at once: one makes the file; each batch of each is whole."""
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


STARTER = """
import asyncio, sys
from bedstone.transactions.log_sqlite import SqliteLog
from bedstone.transactions.logs import open_log
from bedstone.transactions.model import Transaction

async def main():
    async with open_log(sys.argv[1]) as log:
        await log.begin(Transaction(sys.argv[2], "", 4e9, 0.0, "one"))

print("ready", flush=True)
sys.stdin.read()
asyncio.run(main())
"""


@pytest.mark.parametrize("attempt", range(3))
def test_processes_that_start_together_make_one_file(tmp_path: Path, attempt: int) -> None:
    """None takes a file that another is just making for a stranger's, or for a held one."""
    url, names = f"sqlite://{tmp_path}/log.db", [f"x{n}" for n in range(6)]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
    for child in children:
        assert child.stdout is not None
        child.stdout.close()
    assert [child.wait(60) for child in children] == [0] * len(names)

    async def check() -> None:
        async with open_log(url) as log:
            assert [it.xid for it in await log.list()] == names

    asyncio.run(check())
