"""The simulator itself: order by seed, virtual time, processes that die, databases that wait."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from bedstone.errors import UnavailableError, UnknownOutcomeError
from bedstone.testing.simulation.database import Connection, PostgresError, Server
from bedstone.testing.simulation.faults import CALM, Fate, Faults, Rates
from bedstone.testing.simulation.loop import KilledError, Process, SimulationLoop
from bedstone.testing.simulation.network import Network
from bedstone.transactions.sql import Dialect, Query


async def _append(names: list[str], name: str) -> None:
    await asyncio.sleep(0)
    names.append(name)


async def _gather(names: list[str]) -> None:
    async with asyncio.TaskGroup() as group:
        for name in "abcdef":
            group.create_task(_append(names, name))


def _order(seed: int) -> tuple[str, int]:
    names: list[str] = []
    loop = SimulationLoop(Random(seed))
    loop.run_until_complete(_gather(names))
    loop.end([])
    return "".join(names), loop.digest


def test_the_seed_decides_the_order_and_the_same_seed_gives_the_same_order() -> None:
    orders = [_order(seed) for seed in range(40)]
    assert orders == [_order(seed) for seed in range(40)]
    assert {"".join(sorted(order)) for order, _ in orders} == {"abcdef"}
    assert len({order for order, _ in orders}) > 30
    assert len({digest for _, digest in orders}) > 30


def test_time_is_virtual_and_a_deadline_is_exact() -> None:
    loop = SimulationLoop(Random(1), start=1_000.0)

    async def late() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3600):
                await asyncio.Event().wait()
        return loop.time()

    assert 4600.0 <= loop.run_until_complete(late()) < 4601.0
    loop.end([])


def test_a_killed_process_runs_nothing_more_not_even_its_clean_up() -> None:
    loop = SimulationLoop(Random(2))
    process = Process("victim")
    seen: list[str] = []

    async def victim() -> None:
        try:
            seen.append("began")
            await asyncio.sleep(10)
            seen.append("went on")
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    async def killer() -> None:
        await asyncio.sleep(1)
        loop.kill(process)
        await asyncio.sleep(100)

    loop.spawn(process, victim())
    loop.run_until_complete(killer())
    loop.end([process])
    assert seen == ["began"]


def test_what_a_dead_process_does_in_its_clean_up_is_refused() -> None:
    loop = SimulationLoop(Random(2))
    process = Process("victim")
    refused: list[BaseException] = []

    async def victim() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            try:
                await asyncio.sleep(1)
            except KilledError as error:
                refused.append(error)

    loop.spawn(process, victim())
    loop.run_until_complete(asyncio.sleep(1))
    loop.end([process])
    assert [str(error) for error in refused] == ["victim.1"]


def test_a_process_that_kills_itself_stops_at_its_next_await() -> None:
    loop = SimulationLoop(Random(3))
    process = Process("victim")
    seen: list[str] = []

    async def victim() -> None:
        loop.kill(process)
        with pytest.raises(KilledError):
            loop.create_future()
        await _append(seen, "never")

    loop.spawn(process, victim())
    loop.run_until_complete(asyncio.sleep(1))
    loop.end([process])
    assert seen == []


def test_a_paused_process_goes_on_where_it_was_and_time_has_passed() -> None:
    loop = SimulationLoop(Random(4))
    process = Process("sleeper")
    times: list[float] = []

    async def sleeper() -> None:
        for _ in range(2):
            await asyncio.sleep(1)
            times.append(loop.time())

    async def pauser() -> None:
        await asyncio.sleep(1.5)
        loop.pause(process)
        await asyncio.sleep(60)
        loop.unpause(process)
        await asyncio.sleep(60)

    loop.spawn(process, sleeper())
    loop.run_until_complete(pauser())
    loop.end([process])
    assert times == [pytest.approx(1, abs=0.01), pytest.approx(61.5, abs=0.01)]


def test_an_interrupt_comes_at_its_step_and_names_the_process() -> None:
    loop = SimulationLoop(Random(5))
    process = Process("worker")
    seen: list[tuple[int, str]] = []

    def interrupt(who: Process | None) -> None:
        seen.append((loop.steps, str(who)))
        loop.interrupt_at = loop.steps + 10

    async def work() -> None:
        for _ in range(25):
            await asyncio.sleep(0)

    loop.interrupt, loop.interrupt_at = interrupt, 5
    task = loop.spawn(process, work())
    loop.run_while(lambda: not task.done())
    loop.end([process])
    assert seen == [(5, "worker.1"), (15, "worker.1"), (25, "worker.1")]


def test_what_nobody_asked_for_is_told_unless_its_process_is_dead() -> None:
    loop = SimulationLoop(Random(6))
    living, dead = Process("living"), Process("dead")

    async def fail() -> None:
        raise ValueError("unheard")

    loop.spawn(living, fail())
    loop.spawn(dead, fail())
    loop.run_until_complete(asyncio.sleep(1))
    loop.kill(dead)
    assert [(str(who), str(error)) for who, error in loop.unheard()] == [("living.1", "unheard")]
    loop.end([living, dead])


def test_nothing_left_to_run_is_an_error_and_not_a_hang() -> None:
    loop = SimulationLoop(Random(7))

    async def forever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing can run"):
        loop.run_until_complete(forever())
    loop.end([])


SCHEMA = ("CREATE TABLE accounts (id TEXT PRIMARY KEY, balance INT)",)


def _server(rates: Rates = CALM) -> Server:
    loop = SimulationLoop(Random(8))
    network = Network(loop, Faults(Random(9), rates))
    server = Server("db", network, SCHEMA, lambda _: None, dialect=Dialect.POSTGRES)
    server.load("INSERT INTO accounts VALUES ('a', 10)")
    return server


def _close(server: Server) -> None:
    server.network.loop.end([])
    server.close()


async def _add(db: Connection, amount: int) -> None:
    await db.begin()
    await db.execute(
        Query("UPDATE accounts SET balance = balance + ?2 WHERE id = ?1", ("a", amount))
    )


async def _balance(db: Connection) -> object:
    return (await db.execute(Query("SELECT balance FROM accounts"))).rows[0][0]


def test_local_transactions_wait_for_rows_and_see_what_is_committed() -> None:
    server = _server()

    async def both() -> None:
        one, other = server.connect(), server.connect()
        await _add(one, 1)
        waiting = asyncio.ensure_future(_add(other, 5))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert (await _balance(one), server.read("SELECT balance FROM accounts")) == (11, [(10,)])
        await one.commit()
        await waiting
        assert await _balance(other) == 16
        await other.rollback()

    server.network.loop.run_until_complete(both())
    assert server.read("SELECT balance FROM accounts") == [(11,)]
    assert server.residue() == []
    _close(server)


def test_a_restart_loses_what_is_open_and_keeps_what_is_prepared_with_its_locks() -> None:
    server = _server()

    async def restart() -> None:
        one, other = server.connect(), server.connect()
        await _add(one, 1)
        await one.execute(Query("PREPARE TRANSACTION 'mine'"))
        await other.begin()
        await other.execute(Query("INSERT INTO accounts VALUES (?, ?)", ("b", 1)))
        server.restart()
        with pytest.raises(UnavailableError):
            await other.commit()
        late = server.connect()
        with pytest.raises(UnavailableError, match="lock"):
            await _add(late, 1)
        await late.rollback()
        await late.execute(Query("COMMIT PREPARED 'mine'"))
        with pytest.raises(PostgresError, match="42704"):
            await late.execute(Query("ROLLBACK PREPARED 'mine'"))

    server.network.loop.run_until_complete(restart())
    assert server.read("SELECT * FROM accounts") == [("a", 11)]
    assert server.residue() == []
    _close(server)


@pytest.mark.parametrize(("fate", "balance"), [(Fate.REFUSED, 10), (Fate.UNANSWERED, 11)])
def test_a_commit_without_an_answer_is_applied_or_not(fate: Fate, balance: int) -> None:
    server = _server(Rates(statements=((fate, 1.0),)))
    server.network.faults.active = False

    async def commit() -> None:
        db = server.connect()
        await _add(db, 1)
        server.network.faults.active = True
        with pytest.raises(UnknownOutcomeError):
            await db.commit()

    server.network.loop.run_until_complete(commit())
    server.network.loop.run_while(lambda: True)
    assert server.read("SELECT balance FROM accounts") == [(balance,)]
    assert server.residue() == []
    _close(server)
