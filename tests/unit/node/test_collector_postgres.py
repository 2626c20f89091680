"""What PostgreSQL says of itself: by workload and state, and named when it says nothing."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from bedstone.errors import UnavailableError
from bedstone.model.resources import Database
from bedstone.node.collector.postgres import (
    SIZE_PERIOD,
    DatabaseStatistics,
    Served,
    connection_series,
    state_of,
)
from bedstone.telemetry.frames import Series

DATABASE = Database(app="bank", name="ledger", node="n1", users=["web"])
SOURCE = "database/bank/default/ledger"


class Engine:
    """A PostgreSQL with an answer to each question; each may fail or hang."""

    def __init__(self) -> None:
        self.connections = 0
        self.asked: list[str] = []
        self.life = "2026 "
        self.commits = 5
        self.trouble: Callable[[], Any] | None = None

    async def connect(self, database: str = "postgres") -> Any:
        if isinstance(self.trouble, Exception):
            raise self.trouble
        self.connections += 1
        return SimpleNamespace(execute=self._execute, close=self._close)

    async def _execute(self, query: bytes, values: tuple[str]) -> Any:
        assert values == ("ledger",)
        if self.trouble is not None:
            await self.trouble()
        text = query.decode()
        self.asked.append(text)
        rows: list[tuple[Any, ...]]
        if "pg_stat_activity" in text:
            rows = [("web", "active", 2), ("web", "idle", 3), ("postgres", "idle", 1)]
        elif "pg_stat_database" in text:
            rows = [(self.commits, 1, self.life)]
        else:
            rows = [(4096,)]

        async def fetched() -> list[tuple[Any, ...]]:
            return rows

        return SimpleNamespace(fetchall=fetched)

    async def _close(self) -> None:
        self.connections -= 1


def served(engine: Engine) -> Served:
    return Served(DATABASE, engine, {"web": "web"})


def named(values: dict[Series, float]) -> dict[str, float]:
    return {
        " ".join(
            [
                series.name.removeprefix("bedstone_database_"),
                *(
                    text
                    for label, text in series.labels
                    if label in ("workload", "state", "outcome")
                ),
            ]
        ): value
        for series, value in values.items()
    }


def test_connections_by_workload_and_state_and_none_is_zero() -> None:
    rows = [("web", "idle in transaction (aborted)", 1), ("web", None, 2), (None, "idle", 9)]
    found = named(connection_series("n1", served(Engine()), rows))
    assert found == {
        "connections active web": 0,
        "connections idle web": 2,
        "connections idle in transaction web": 1,
    }
    assert state_of("fastpath function call") == "active"


def test_one_connection_is_kept_and_sizes_are_looked_at_seldom() -> None:
    engine = Engine()
    now = [100.0]
    statistics = DatabaseStatistics("n1", lambda: {DATABASE.path: served(engine)}, lambda: now[0])

    async def scenario() -> None:
        first = await statistics.read()
        assert first.missing == {}
        assert first.incarnations == {SOURCE: "2026 "}
        assert named(first.values) == {
            "connections active web": 2,
            "connections idle web": 3,
            "connections idle in transaction web": 0,
            "transactions_total commit": 5,
            "transactions_total rollback": 1,
            "size_bytes": 4096,
        }
        now[0] += SIZE_PERIOD / 2
        assert named((await statistics.read()).values)["size_bytes"] == 4096
        assert sum("database_size" in text for text in engine.asked) == 1
        now[0] += SIZE_PERIOD
        await statistics.read()
        assert sum("database_size" in text for text in engine.asked) == 2
        assert engine.connections == 1
        await statistics.close()
        assert engine.connections == 0

    asyncio.run(scenario())


async def _hang() -> None:
    await asyncio.sleep(3600)


async def _fail() -> None:
    raise OSError("the connection is lost")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (_hang, "it did not answer within 0.4 s"),
        (_fail, "the connection is lost"),
        (UnavailableError("postgres: too many clients"), "postgres: too many clients"),
    ],
)
def test_one_that_does_not_answer_is_named_and_connected_to_anew(trouble: Any, reason: str) -> None:
    engine, other = Engine(), Engine()
    both = {DATABASE.path: served(engine), "bank/default/other": served(other)}
    statistics = DatabaseStatistics("n1", lambda: both)

    async def scenario() -> None:
        await statistics.read()
        await statistics.close()
        engine.trouble = trouble
        found = await statistics.read()
        assert found.missing == {SOURCE: reason}
        assert found.values, "the other one has answered"
        assert engine.connections == 0
        engine.trouble = None
        assert (await statistics.read()).missing == {}
        await statistics.close()

    asyncio.run(scenario())


def test_a_database_that_is_not_ready_is_not_asked_and_another_life_is_told() -> None:
    engine = Engine()
    ready = {DATABASE.path: served(engine)}
    statistics = DatabaseStatistics("n1", lambda: ready)

    async def scenario() -> None:
        await statistics.read()
        ready.clear()
        gone = await statistics.read()
        assert (gone.values, gone.missing) == ({}, {})
        assert engine.connections == 0
        ready[DATABASE.path] = served(engine)
        engine.life = "2027 "
        assert (await statistics.read()).incarnations == {SOURCE: "2027 "}
        await statistics.close()

    asyncio.run(scenario())
