"""The embedded store when its disk fails, its process is killed, and its callers give up."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from bedstone.errors import (
    Error,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnknownOutcomeError,
)
from bedstone.store import Put, Store, open_store
from bedstone.store.leases import SystemClock
from bedstone.store.local import Loaded, LocalStore
from bedstone.store.memory import MemoryStore
from bedstone.store.planning import Draft
from bedstone.store.sqlite import SqliteJournal, SqliteStore
from bedstone.testing.faults import Fault, FaultyStore, VirtualClock


class FaultyJournal(SqliteJournal):
    """The real journal, whose answers are lost by plan."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.next = Fault.NONE
        self.recoverable = True

    async def write(self, draft: Draft) -> None:
        fault, self.next = self.next, Fault.NONE
        if fault is not Fault.UNAPPLIED:
            await super().write(draft)
        if fault is not Fault.NONE:
            raise UnknownOutcomeError("the disk failed while it committed")

    async def recover(self) -> Loaded:
        if not self.recoverable:
            raise UnavailableError("the disk still fails")
        return await super().recover()


async def limit_pages(store: SqliteStore, count: int) -> None:
    journal = store._journal
    assert isinstance(journal, SqliteJournal)
    await journal._call(
        lambda: journal._connected().execute(f"PRAGMA max_page_count = {count}").fetchone()
    )


def test_a_full_disk_applies_nothing_and_heals(tmp_path: Path) -> None:
    async def run() -> None:
        async with SqliteStore(tmp_path / "store.db") as store:
            revision = await store.commit([Put("a", b"1")])
            watch = store.watch("", revision)
            await limit_pages(store, 20)
            with pytest.raises(UnavailableError, match="full") as caught:
                await store.commit([Put("a", b"2"), Put("b", b"x" * 1_000_000)])
            assert "free some space" in (caught.value.hint or "")
            assert [it.key for it in (await store.list("")).entries] == ["a"]
            await limit_pages(store, 1_000_000)
            assert await store.commit([Put("a", b"3")]) == revision + 1
            assert [it.revision for it in await anext(watch)] == [revision + 1]
        async with SqliteStore(tmp_path / "store.db") as store:
            assert [it.value for it in (await store.list("")).entries] == [b"3"]

    asyncio.run(run())


def test_a_file_size_limit_is_a_real_write_error(tmp_path: Path) -> None:
    """The kernel refuses writes past the limit: a real input/output error, in a child process."""
    script = """
import asyncio, resource, sys
from pathlib import Path
from bedstone.errors import UnavailableError
from bedstone.store import Put
from bedstone.store.sqlite import SqliteStore

async def main():
    path = Path(sys.argv[1])
    async with SqliteStore(path) as store:
        await store.commit([Put("a", b"1")])
        size = Path(f"{path}-wal").stat().st_size
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for extra in (0, 5_000, 100_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + extra, hard))
            try:
                await store.commit([Put("a", b"2"), Put("b", b"x" * 500_000)])
            except UnavailableError as error:
                print("refused:", error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert [it.key for it in (await store.list("")).entries] == ["a"]
        print("then:", await store.commit([Put("c", b"3")]))
    async with SqliteStore(path) as store:
        print("reopened:", [(it.key, it.value) for it in (await store.list("")).entries])

asyncio.run(main())
"""
    child = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "store.db"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    lines = child.stdout.splitlines()
    assert child.returncode == 0, child.stderr
    assert sum(line.startswith("refused:") for line in lines) == 3
    assert lines[-2:] == ["then: 2", "reopened: [('a', b'1'), ('c', b'3')]"]


@pytest.mark.parametrize("fault", [Fault.UNAPPLIED, Fault.APPLIED])
def test_a_lost_answer_is_settled_from_the_disk(tmp_path: Path, fault: Fault) -> None:
    applied = fault is Fault.APPLIED

    async def attempt(write: Awaitable[object]) -> bool:
        try:
            await write
        except UnavailableError:
            return False
        return True

    async def run() -> None:
        journal = FaultyJournal(tmp_path / "store.db")
        async with LocalStore(journal) as store:
            revision = await store.commit([Put("a", b"1")])
            watch = store.watch("", revision)
            journal.next = fault
            assert await attempt(store.commit([Put("a", b"2"), Put("b", b"2")])) is applied
            assert len((await store.list("")).entries) == (2 if applied else 1)
            journal.next = fault
            assert await attempt(store.grant("node", 9)) is applied
            await store.grant("node", 9)
            journal.next = fault
            assert await attempt(store.revoke("node")) is applied
            following = await store.commit([Put("c", b"3")])
            seen = revision
            while seen < following:
                batch = await anext(watch)
                assert batch[0].revision == seen + 1, "a gap"
                seen += 1

    asyncio.run(run())


@pytest.mark.parametrize("fault", [Fault.UNAPPLIED, Fault.APPLIED])
def test_an_unknown_outcome_is_said_and_settled_later(tmp_path: Path, fault: Fault) -> None:
    async def run() -> None:
        journal = FaultyJournal(tmp_path / "store.db")
        async with LocalStore(journal) as store:
            await store.grant("node", 9)
            revision = await store.commit([Put("a", b"1", lease="node")])
            watch = store.watch("", revision)
            journal.next, journal.recoverable = fault, False
            with pytest.raises(UnknownOutcomeError):
                await store.commit([Put("b", b"2")])
            with pytest.raises(UnavailableError, match="still fails"):
                await store.commit([Put("c", b"2")])
            journal.recoverable = True
            following = await store.commit([Put("d", b"3")])
            keys = [it.key for it in (await store.list("")).entries]
            if fault is Fault.APPLIED:
                assert keys == ["a", "b", "d"]
                assert following == revision + 2
                assert [it.key for it in await anext(watch)] == ["b"]
            else:
                assert keys == ["a", "d"]
                assert following == revision + 1
            assert [it.key for it in await anext(watch)] == ["d"]
            await store.keep_alive("node")

    asyncio.run(run())


def test_an_unknown_outcome_is_settled_without_another_write(tmp_path: Path) -> None:
    async def run() -> None:
        clock = VirtualClock()
        journal = FaultyJournal(tmp_path / "store.db")
        async with LocalStore(journal, clock=clock) as store:
            watch = store.watch("", 0)
            journal.next, journal.recoverable = Fault.APPLIED, False
            with pytest.raises(UnknownOutcomeError):
                await store.commit([Put("b", b"2")])
            await clock.advance(2)
            assert await store.get("b") is None
            journal.recoverable = True
            await clock.advance(2)
            assert await store.get("b") is not None
            assert [it.key for it in await anext(watch)] == ["b"]

    asyncio.run(run())


_WRITER = """
import asyncio, sys
from pathlib import Path
from bedstone.store import Put
from bedstone.store.sqlite import SqliteStore

async def write(store, name):
    entry = await store.get(f"{name}/left")
    number = 0 if entry is None else int(entry.value)
    while True:
        number += 1
        value = b"%d" % number
        revision = await store.commit(
            [Put(f"{name}/left", value), Put("pad", b"x" * 3000), Put(f"{name}/right", value)])
        sys.stdout.write(f"{name} {number} {revision}\\n")
        sys.stdout.flush()

async def main():
    async with SqliteStore(Path(sys.argv[1]), history=50) as store:
        await asyncio.gather(*(write(store, f"w{n}") for n in range(3)))

asyncio.run(main())
"""


def test_a_kill_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """SIGKILL at any moment: each acknowledged commit is there, none is there by half."""
    path = tmp_path / "store.db"
    for pause in (0.01, 0.05, 0.13, 0.2):
        output = tmp_path / "output"
        with output.open("wb") as stdout:
            child = subprocess.Popen([sys.executable, "-c", _WRITER, path], stdout=stdout)
        deadline = time.monotonic() + 30
        while not output.stat().st_size:
            assert child.poll() is None, "the writer ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(pause)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        # A last line cut short was not acknowledged to anybody.
        whole = output.read_text().rpartition("\n")[0].splitlines()
        acknowledged = {name: int(number) for name, number, _ in map(str.split, whole)}
        last = max(int(line.split()[2]) for line in whole)
        assert acknowledged

        async def check(acknowledged: dict[str, int], last: int) -> None:
            async with SqliteStore(path, history=50) as store:
                listing = await store.list("")
                values = {it.key: it.value for it in listing.entries}
                assert listing.revision >= last
                for name, number in acknowledged.items():
                    assert int(values[f"{name}/left"]) >= number
                    assert values[f"{name}/left"] == values[f"{name}/right"]
                start = max(0, listing.revision - 20)
                watch = store.watch("", start)
                for revision in range(start + 1, listing.revision + 1):
                    assert {it.revision for it in await anext(watch)} == {revision}

        asyncio.run(check(acknowledged, last))


def test_two_processes_cannot_own_one_store(tmp_path: Path) -> None:
    script = "import asyncio, sys; from bedstone.store import open_store\n"
    script += "async def main():\n async with open_store(sys.argv[1]): pass\n"
    script += "try: asyncio.run(main())\nexcept Exception as error: print(type(error), error)\n"
    url = f"sqlite://{tmp_path}/store.db"

    def other() -> str:
        command = [sys.executable, "-c", script, url]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    async def run() -> None:
        async with open_store(url) as store:
            await store.commit([Put("a", b"1")])
            answer = other()
            assert "UnavailableError" in answer
            assert f"is held by process {os.getpid()} (" in answer
            with pytest.raises(UnavailableError, match=f"process {os.getpid()}"):
                async with open_store(url):
                    pass
            with (
                pytest.raises(sqlite3.OperationalError, match="locked"),
                sqlite3.connect(tmp_path / "store.db", timeout=0) as stranger,
            ):
                stranger.execute("DELETE FROM entries")
            stranger.close()
            await store.commit([Put("a", b"2")])
        assert other() == ""

    asyncio.run(run())


def test_files_that_are_no_store_are_refused(tmp_path: Path) -> None:
    """Damaged, newer, or another program's: said clearly, and left as they are."""
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"no database" * 1000)
    foreign = tmp_path / "foreign.db"
    database = sqlite3.connect(foreign)
    database.execute("CREATE TABLE mine (x)")
    database.close()
    newer = tmp_path / "newer.db"
    torn = tmp_path / "torn.db"

    async def fill(path: Path) -> None:
        async with SqliteStore(path) as store:
            for n in range(50):
                await store.commit([Put(f"k{n}", b"x" * 3000)])

    asyncio.run(fill(newer))
    database = sqlite3.connect(newer)
    database.execute("PRAGMA user_version = 99")
    database.close()
    asyncio.run(fill(torn))
    with torn.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(40960))

    async def enter(path: Path) -> None:
        async with SqliteStore(path):
            pass

    for path, message in (
        (garbage, "damaged or is no database"),
        (foreign, "another program"),
        (newer, "schema 99"),
        (torn, "damaged"),
        (tmp_path / "none" / "store.db", "does not exist"),
        (tmp_path, "directory"),
    ):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(InvalidError, match=message) as caught:
            asyncio.run(enter(path))
        assert caught.value.hint
        assert (path.read_bytes() if path.is_file() else b"") == before


def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    async def run() -> None:
        async with SqliteStore(tmp_path / "store.db") as store:
            await store.commit([Put("secret", b"x")])
            for file in tmp_path.iterdir():
                assert file.stat().st_mode & 0o077 == 0, file

    asyncio.run(run())


def test_callers_survive_writes_that_fail_both_ways() -> None:
    """The pattern for callers: after an unknown outcome, read before the retry."""

    async def run() -> None:
        async with MemoryStore() as inner:
            store = FaultyStore(inner)
            assert isinstance(store, Store)
            for number in range(1, 21):
                while True:
                    entry = await store.get("counter")
                    if entry is not None and int(entry.value) == number:
                        break
                    expected = 0 if entry is None else entry.revision
                    try:
                        await store.commit([Put("counter", b"%d" % number, expected)])
                    except (UnavailableError, UnknownOutcomeError):
                        continue
            entry = await inner.get("counter")
            assert entry is not None
            assert (entry.value, entry.revision) == (b"20", 20)
            assert store.injected.count(Fault.APPLIED) >= 10
            assert store.injected.count(Fault.UNAPPLIED) >= 10

    asyncio.run(run())


def test_broken_watches_make_callers_list_again() -> None:
    async def run() -> None:
        async with MemoryStore() as inner:
            store = FaultyStore(inner, ())
            watch = store.watch("", 0)
            await store.commit([Put("a", b"1")])
            assert (await anext(watch))[0].key == "a"
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            store.break_watches()
            with pytest.raises(Error) as caught:
                await waiting
            assert caught.value.code == "conflict"

    asyncio.run(run())


def test_a_failing_disk_delays_the_end_of_a_lease(tmp_path: Path) -> None:
    async def run() -> None:
        clock = VirtualClock()
        async with SqliteStore(tmp_path / "store.db", clock=clock) as store:
            await store.grant("node", 5)
            await store.commit([Put("n", b"", lease="node")])
            await limit_pages(store, 1)
            # Below the file's own size SQLite takes no limit: fill what is free instead.
            for n in itertools.count():
                try:
                    await store.commit([Put(f"fill/{n}", b"x" * 4000)])
                except UnavailableError:
                    break
            await clock.advance(8)
            await limit_pages(store, 1_000_000)
            await clock.advance(2)
            assert await store.get("n") is None
            with pytest.raises(NotFoundError):
                await store.keep_alive("node")

    asyncio.run(run())


def test_the_system_clock_moves() -> None:
    async def run() -> None:
        clock = SystemClock()
        before = clock.monotonic()
        await clock.sleep(0.01)
        assert clock.monotonic() > before

    asyncio.run(run())
