"""What a manager does now and then: barriers are swept, the past is forgotten, nothing else is."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions import Tcc, Transactions, tcc, together_sync, use
from bedstone.transactions.databases import Database, database
from bedstone.transactions.errors import UnknownTransactionError
from bedstone.transactions.housekeeping import EVERY, Housekeeper

ENDED = 4e9  # long after the barrier's rows, which the database dates itself


class Note(Tcc):
    """Does nothing but go through the barrier."""

    def try_(self, db: Any) -> None: ...

    def confirm(self, db: Any) -> None: ...

    def cancel(self, db: Any) -> None: ...


@pytest.fixture
def place(tmp_path: Path) -> Callable[[], Any]:
    return partial(sqlite3.connect, tmp_path / "db", isolation_level=None)


def rows(place: Callable[[], Any]) -> int:
    connection = place()
    try:
        count: int = connection.execute("SELECT count(*) FROM bedstone_barrier").fetchone()[0]
        return count
    finally:
        connection.close()


def test_a_round_sweeps_the_databases_of_all_participants(place: Callable[[], Any]) -> None:
    """Found by their registration; only after the grace."""
    clock = [1.0]
    log = MemoryLog(lambda: clock[0])
    with use(Transactions(log, grace=10.0)) as manager:
        note = tcc(Note, place, name="housekeeping", transactions=manager)
        with manager.transaction():
            note.sync()
        assert rows(place) > 0
        keeper = manager._housekeeper(log)
        manager.run(keeper.round())
        assert rows(place) > 0, "the grace has not passed"
        (found,) = manager.run(log.list())
        log.world.ended[found.xid] = clock[0] = ENDED
        clock[0] += 11.0
        manager.run(keeper.round())
        assert rows(place) == 0
        assert manager.run(log.get(found.xid)).state.ended, "the log keeps it for longer"


def test_what_has_ended_long_ago_is_forgotten_and_nothing_else() -> None:
    clock = [0.0]
    log = MemoryLog(lambda: clock[0])

    async def main() -> None:
        keeper = Housekeeper(log, list, grace=1.0, retention=100.0)
        async with Transactions(log) as manager:
            async with manager.transaction("old"):
                pass
            open_one = await manager.coordinator.begin("open", 1e9)
            (old, *_) = [it for it in await log.list() if it.name == "old"]
            clock[0] = 99.0
            await keeper.round()
            assert (await log.get(old.xid)).state.ended
            clock[0] = 101.0
            await keeper.round()
            with pytest.raises(UnknownTransactionError):
                await log.get(old.xid)
            assert not (await log.get(open_one.xid)).state.ended

    asyncio.run(main())


def test_a_database_that_is_away_stops_nothing(
    place: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def away() -> Any:
        asked.append("away")
        raise UnavailableError("the database is away")

    def here() -> Any:
        asked.append("here")
        return place()

    async def main() -> None:
        places = [Database("away", away, is_async=False), Database("here", here, is_async=False)]
        await Housekeeper(MemoryLog(), lambda: places, grace=1.0, retention=10.0).round()

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    assert asked == ["away", "here"]
    assert "cannot sweep the barrier" in caplog.text


def test_rounds_go_on_at_uneven_times() -> None:
    """So that processes which started together do not come together for ever."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise asyncio.CancelledError

    async def main() -> None:
        turns = iter([0.0, 1.0, 0.5])
        keeper = Housekeeper(
            MemoryLog(), list, grace=1.0, retention=2.0, sleep=sleep, jitter=lambda: next(turns)
        )
        with pytest.raises(asyncio.CancelledError):
            await keeper.run()

    asyncio.run(main())
    assert slept == [EVERY / 2, EVERY * 1.5, EVERY]


def test_the_log_must_remember_longer_than_the_barriers_need() -> None:
    with pytest.raises(InvalidError, match="at least twice"):
        Housekeeper(MemoryLog(), list, grace=60.0, retention=61.0)


def test_one_database_of_many_participants_is_swept_once(place: Callable[[], Any]) -> None:
    opened: list[str] = []

    def opening() -> Any:
        opened.append("")
        return place()

    log = MemoryLog()
    shared = database(opening, is_async=False)
    with use(Transactions(log)) as manager:
        notes = [
            tcc(Note, shared, name=f"shared-{number}", transactions=manager) for number in range(3)
        ]
        together_sync(*(note.call() for note in notes))
        opened.clear()
        manager.run(manager._housekeeper(log).round())
    assert len(opened) == 1
