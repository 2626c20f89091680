"""Sagas at work, over a log in memory and databases of SQLite: both ways, waits, persons."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.testing.faults import Fault
from bedstone.testing.transaction_log import MemoryLog, in_turn
from bedstone.transactions.databases import database
from bedstone.transactions.errors import (
    FencedError,
    StuckError,
    TransactionAbortedError,
    TransactionDecidedError,
    TransactionTimeoutError,
    UnknownTransactionError,
    WaitingError,
)
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import Branch, Event, Mode, Phase, State, Transaction
from bedstone.transactions.saga import (
    Context,
    Saga,
    event,
    parallel,
    saga,
    sequence,
    signal,
    step,
    timer,
)
from bedstone.transactions.saga_plan import Step
from bedstone.transactions.saga_run import payload


class World:
    """A log, a manager, and one database with the names of what was done and not undone."""

    def __init__(self, folder: Path, log: MemoryLog, transactions: Transactions) -> None:
        self.path = folder / "d.db"
        self.log = log
        self.transactions = transactions
        self.calls: list[str] = []
        with sqlite3.connect(self.path) as db:
            db.execute("CREATE TABLE IF NOT EXISTS done (name TEXT PRIMARY KEY)")
        self.database = database(lambda: sqlite3.connect(self.path))

    def local(self, name: str, *, fails: Exception | None = None, **settings: Any) -> Step:
        def action(db: sqlite3.Connection, context: Context) -> str:
            self.calls.append(name)
            db.execute("INSERT INTO done VALUES (?)", (name,))
            if fails is not None:
                raise fails
            return f"{name} of {context.input}"

        def undo(db: sqlite3.Connection, context: Context) -> None:
            assert context.result == f"{name} of {context.input}"
            self.calls.append(f"-{name}")
            db.execute("DELETE FROM done WHERE name = ?", (name,))

        return step(name, action, undo, database=self.database, **settings)

    def remote(self, name: str, *fails: Exception, **settings: Any) -> Step:
        rest = iter(fails)

        async def action(context: Context) -> str:
            self.calls.append(name)
            if (error := next(rest, None)) is not None:
                raise error
            return context.key.split("/", 1)[1]

        async def undo(context: Context) -> None:
            self.calls.append(f"-{name}")
            assert context.key == f"{context.step_key}/undo"

        return step(name, action, undo, **settings)

    def rows(self) -> list[str]:
        with sqlite3.connect(self.path) as db:
            return [str(row[0]) for row in db.execute("SELECT name FROM done ORDER BY name")]

    def saga(self, body: Any, name: str = "s", **settings: Any) -> Saga:
        return saga(Saga(name, body, **settings), self.transactions)

    def state(self, xid: str | None = None) -> State:
        found = self.log.world.transactions
        return (found[xid] if xid else next(iter(found.values()))).state


Test = Callable[[World], Coroutine[Any, Any, None]]


@asynccontextmanager
async def world(folder: Path, log: MemoryLog | None = None) -> AsyncIterator[World]:
    log = log or MemoryLog()
    async with Transactions(log, owner="test") as transactions:
        yield World(folder, log, transactions)


def run(folder: Path, test: Test) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), world(folder) as it:
            await test(it)

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - the log tells nobody
        await asyncio.sleep(0.01)


def test_all_steps_run_and_their_results_come_back(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        book = it.saga(sequence(it.local("a"), parallel(it.local("b"), it.remote("x"))))
        assert await book.run(7) == {"a": "a of 7", "b": "b of 7", "x": "x"}
        assert it.rows() == ["a", "b"]
        await until(lambda: it.state() is State.COMMITTED)
        (xid,) = it.log.world.transactions
        assert (await book.result(xid))["a"] == "a of 7"

    run(tmp_path, test)


def test_local_steps_wait_for_the_beginning_and_the_decision_alone(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        book = it.saga(sequence(*(it.local(name) for name in "abc")))
        real = it.log.journal

        async def journal(*arguments: Any, **named: Any) -> Transaction:
            """A history that can't be written before the decision."""
            await until(lambda: it.state() is not State.ACTIVE)
            return await real(*arguments, **named)

        it.log.journal = journal  # type: ignore[method-assign]
        assert len(await book.run(1)) == 3
        (xid,) = it.log.world.transactions
        assert len(await book.result(xid)) == 3

    run(tmp_path, test)


def test_a_failure_undoes_all_in_reverse_and_tells_the_cause(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        error = ValueError("full")
        book = it.saga(
            sequence(it.local("a"), it.remote("x"), it.local("b", fails=error, attempts=2))
        )
        with pytest.raises(TransactionAbortedError, match="b failed: ValueError") as caught:
            await book.run(1)
        assert caught.value.__cause__ is error
        assert it.calls == ["a", "x", "b", "b", "-x", "-a"]
        assert it.rows() == []
        await until(lambda: it.state() is State.ABORTED)
        (xid,) = it.log.world.transactions
        with pytest.raises(TransactionAbortedError, match="b failed"):
            await book.result(xid)

    run(tmp_path, test)


def test_a_business_error_ends_it_at_once_and_what_refused_is_not_undone(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        refusing = it.remote("x", LookupError(), fails_on=(LookupError,))
        book = it.saga(sequence(it.local("a"), refusing))
        with pytest.raises(TransactionAbortedError):
            await book.run(1)
        assert it.calls == ["a", "x", "-a"]
        unsure = it.remote("y", OSError(), LookupError(), fails_on=(LookupError,))
        with pytest.raises(TransactionAbortedError):
            await it.saga(unsure, "second").run(1)
        assert it.calls[3:] == ["y", "y", "-y"]

    run(tmp_path, test)


def test_what_runs_beside_a_failure_ends_first_and_is_undone(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        failed = asyncio.Event()

        async def slow(_: Context) -> None:
            await failed.wait()
            it.calls.append("slow")

        async def failing(_: Context) -> None:
            asyncio.get_running_loop().call_later(0.02, failed.set)
            raise TransactionAbortedError("no")

        async def undo(_: Context) -> None:
            it.calls.append("-slow")

        body = sequence(parallel(step("slow", slow, undo), step("f", failing)), it.local("never"))
        with pytest.raises(TransactionAbortedError, match="f failed: no"):
            await it.saga(body).run()
        assert it.calls == ["slow", "-slow"]

    run(tmp_path, test)


def test_a_forward_saga_goes_on_until_it_succeeds(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        errors = [OSError(), TransactionAbortedError("no"), UnavailableError("x")]
        book = it.saga(it.remote("x", *errors, attempts=1), recovery="forward")
        assert await book.run() == {"x": "x"}
        assert it.calls == ["x"] * 4
        with pytest.raises(InvalidError, match="goes forward"):
            Saga("f", it.remote("y", fails_on=(OSError,)), recovery="forward")

    run(tmp_path, test)


def test_a_saga_begins_once_its_coordinator_has_a_lease(tmp_path: Path) -> None:
    async def main() -> None:
        late = MemoryLog(plan=in_turn([Fault.UNAPPLIED]))  # the first write asks for the lease
        async with asyncio.timeout(20), world(tmp_path, late) as it:
            assert await it.saga(it.local("a")).run(1, timeout=15) == {"a": "a of 1"}

    asyncio.run(main())


def test_the_deadline_undoes_what_ran(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        book = it.saga(sequence(it.local("a"), event("never")))
        with pytest.raises(TransactionTimeoutError):
            await book.run(1, timeout=0.3)
        assert it.rows() == []
        assert it.calls == ["a", "-a"]

    run(tmp_path, test)


def test_a_step_that_hangs_is_cut_off_at_the_deadline(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        async def hang(_: Context) -> None:
            await asyncio.Event().wait()

        async def undo(context: Context) -> None:
            it.calls.append(f"-hang {context.ended}")

        book = it.saga(sequence(it.local("a"), step("hang", hang, undo)))
        with pytest.raises(TransactionTimeoutError):
            await book.run(1, timeout=0.3)
        assert it.calls == ["a", "-hang False", "-a"]

    run(tmp_path, test)


def test_a_timer_pauses_and_its_seconds_come_from_the_results(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        pause = timer(lambda context: 0.05 if context.results["a"] else 99)
        book = it.saga(sequence(it.local("a"), pause, it.local("b")))
        assert await book.run(1) == {"a": "a of 1", "b": "b of 1"}
        (xid,) = it.log.world.transactions
        kinds = [line.kind for line in it.log.world.events[xid]]
        assert kinds.count("timer") == 1
        assert it.calls == ["a", "b"]

    run(tmp_path, test)


def test_an_event_wakes_a_saga_and_the_first_payload_counts(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        book = it.saga(sequence(event("early"), it.local("a"), event("paid")))
        xid = await book.start(1)
        await signal(xid, "paid", {"by": "ada"}, transactions=it.transactions)
        await signal(xid, "paid", {"by": "eve"}, transactions=it.transactions)
        assert it.rows() == []
        with pytest.raises(InvalidError, match=r"expected one of transaction .*: early, paid"):
            await signal(xid, "pade", transactions=it.transactions)
        await signal(xid, "early", transactions=it.transactions)
        result = await book.result(xid)
        assert result == {"early": None, "a": "a of 1", "paid": {"by": "ada"}}
        with pytest.raises(TransactionDecidedError):
            await signal(xid, "paid", transactions=it.transactions)
        with pytest.raises(UnknownTransactionError):
            await signal("nobody", "paid", transactions=it.transactions)

    run(tmp_path, test)


def test_an_event_that_does_not_come_fails_the_saga(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        book = it.saga(sequence(it.local("a"), event("paid", timeout=0.05)))
        with pytest.raises(TransactionAbortedError, match="paid failed: the event did not come"):
            await book.run(1)
        assert it.rows() == []

    run(tmp_path, test)


def test_a_nested_saga_has_its_own_input_results_and_output(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        inner = Saga(
            "pay",
            sequence(it.local("charge"), it.remote("mail")),
            input=lambda context: context.results["a"],
            output=lambda context: context.results["mail"],
        )
        book = it.saga(sequence(it.local("a"), inner, it.remote("end")))
        assert await book.run(1) == {"a": "a of 1", "pay": "pay.mail", "end": "end"}
        with pytest.raises(InvalidError, match="two parts"):
            Saga("twice", sequence(inner, inner))

    run(tmp_path, test)


def test_a_compensation_that_keeps_failing_needs_a_person(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        broken = True

        async def undo(_: Context) -> None:
            if broken:
                raise ValueError
            it.calls.append("-x")

        async def act(_: Context) -> int:
            return 5

        body = sequence(
            it.local("a"), step("x", act, undo), it.remote("f", TransactionAbortedError("no"))
        )
        book = it.saga(body, compensation_attempts=2)
        with pytest.raises(TransactionAbortedError, match="f failed"):
            await book.run(1)
        (xid,) = it.log.world.transactions
        with pytest.raises(StuckError, match="2 times") as caught:
            await book.result(xid)
        assert caught.value.report["step"] == "x"
        assert caught.value.report["result"] == 5
        assert it.rows() == ["a"]
        broken = False
        await it.transactions.coordinator.retry(xid, "ada", "service repaired")
        with pytest.raises(TransactionAbortedError):
            await book.result(xid)
        assert it.calls == ["a", "f", "-x", "-a"]

    run(tmp_path, test)


def test_a_compensation_waits_for_who_is_only_away(tmp_path: Path) -> None:
    """However often: no person is needed for a broken connection."""

    async def test(it: World) -> None:
        failures = [ConnectionRefusedError(), TimeoutError(), UnavailableError("away"), OSError()]

        async def undo(_: Context) -> None:
            if failures:
                raise failures.pop()
            it.calls.append("-x")

        async def act(_: Context) -> int:
            return 5

        body = sequence(step("x", act, undo), it.remote("f", TransactionAbortedError("no")))
        book = it.saga(body, compensation_attempts=2)
        with pytest.raises(TransactionAbortedError, match="f failed"):
            await book.run(1)
        (xid,) = it.log.world.transactions
        with pytest.raises(TransactionAbortedError):
            await book.result(xid)
        assert failures == []
        assert it.calls == ["f", "-x"]

    run(tmp_path, test)


async def begun(
    it: World, code: Saga, *lines: Event, xid: str = "t1"
) -> tuple[Transaction, Branch]:
    """One that another process began."""
    branch = Branch(1, Mode.SAGA, "local:saga/s", payload(code.compiled, 1))
    later = await it.log.now() + 1e6
    made = Transaction(xid, "s", later, 0.0, "test", branches=(branch,), next_attempt=later)
    await it.log.begin(made)
    it.log.world.events[xid] = list(lines)
    return made, branch


def line(path: str, mark: str, **more: object) -> Event:
    return Event(0.0, "step", 1, {"path": path, "mark": mark, **more})


async def ask(it: World, made: Transaction, branch: Branch, phase: Phase) -> None:
    result = it.transactions.participants["saga/s"](made, branch, phase)
    assert result is not None
    await result


def test_another_process_goes_on_where_it_was(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        book = it.saga(sequence(it.remote("x"), it.local("a"), it.remote("y")))
        made, branch = await begun(
            it, book, line("x", "started"), line("x", "done", result="x"), line("y", "started")
        )
        await ask(it, made, branch, Phase.TRY)
        assert it.calls == ["a", "y"]
        await ask(it, made, branch, Phase.TRY)
        assert it.calls == ["a", "y"]

    run(tmp_path, test)


def test_a_local_step_that_the_history_does_not_know_is_undone_with_its_result(
    tmp_path: Path,
) -> None:
    async def test(it: World) -> None:
        book = it.saga(sequence(it.local("a"), it.local("b"), it.local("c")))
        made, branch = await begun(it, book)
        await ask(it, made, branch, Phase.TRY)
        it.log.world.events["t1"].clear()
        fresh = World(tmp_path, it.log, Transactions(it.log))
        again = fresh.saga(sequence(fresh.local("a"), fresh.local("b"), fresh.local("c")))
        del again
        async with fresh.transactions:
            await ask(fresh, made, branch, Phase.CANCEL)
            assert fresh.calls == ["-c", "-b", "-a"]
            assert fresh.rows() == []
            await ask(fresh, made, branch, Phase.CANCEL)
            assert fresh.calls == ["-c", "-b", "-a"]

    run(tmp_path, test)


def test_a_compensation_knows_results_that_only_the_databases_have(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        def act(db: sqlite3.Connection, context: Context) -> None:
            db.execute("INSERT INTO done VALUES (?)", (context.results["a"],))

        def undo(db: sqlite3.Connection, context: Context) -> None:
            db.execute("DELETE FROM done WHERE name = ?", (context.results["a"],))

        book = it.saga(sequence(it.local("a"), step("b", act, undo, database=it.database)))
        made, branch = await begun(it, book)
        await ask(it, made, branch, Phase.TRY)
        assert it.rows() == ["a", "a of 1"]
        it.log.world.events["t1"].clear()
        async with Transactions(it.log) as other:
            saga(Saga("s", book.body), other)
            participant = other.participants["saga/s"](made, branch, Phase.CANCEL)
            assert participant is not None
            await participant
        assert it.rows() == []

    run(tmp_path, test)


def test_a_phase_that_is_asked_twice_runs_once_and_another_ends_it(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        entered = asyncio.Event()

        async def hang(_: Context) -> None:
            it.calls.append("hang")
            entered.set()
            await asyncio.Event().wait()

        async def undo(_: Context) -> None:
            it.calls.append("-hang")

        book = it.saga(sequence(it.local("a"), step("hang", hang, undo)))
        made, branch = await begun(it, book)
        tries = [asyncio.ensure_future(ask(it, made, branch, Phase.TRY)) for _ in range(2)]
        await entered.wait()
        taken = replace(made, epoch=2)
        it.log.world.transactions["t1"] = taken
        await ask(it, taken, branch, Phase.CANCEL)
        assert it.calls == ["a", "hang", "-hang", "-a"]
        ends = await asyncio.gather(*tries, return_exceptions=True)
        assert [type(end) for end in ends] == [UnavailableError] * 2

    run(tmp_path, test)


def test_an_owner_that_wakes_up_late_is_stopped_by_the_barrier(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        it.saga(sequence(it.local("a"), it.local("b")))
        code = Saga("s", sequence(it.local("a"), it.local("b")))
        made, branch = await begun(it, code)
        await ask(it, made, branch, Phase.CANCEL)
        assert it.calls == []
        fresh = World(tmp_path, it.log, Transactions(it.log, owner="late"))
        fresh.saga(sequence(fresh.local("a"), fresh.local("b")))
        it.log.world.events["t1"].clear()
        async with fresh.transactions:
            with pytest.raises(TransactionDecidedError, match="undone before it ran"):
                await ask(fresh, made, branch, Phase.TRY)
        assert it.rows() == []

    run(tmp_path, test)


def test_a_fenced_owner_calls_nobody(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        book = it.saga(sequence(it.remote("x"), it.remote("y")))
        made, branch = await begun(it, book)
        current = it.log.world.transactions["t1"]
        it.log.world.transactions["t1"] = Transaction(
            "t1", "s", current.deadline, 0.0, "other", 2, branches=(branch,)
        )
        with pytest.raises(FencedError):
            await ask(it, made, branch, Phase.TRY)
        assert it.calls == []

    run(tmp_path, test)


def test_a_saga_that_is_aborted_from_outside_calls_nobody_more(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        async def abort(context: Context) -> None:
            await it.log.decide(context.xid, State.ABORTING)

        book = it.saga(sequence(it.local("a"), step("abort", abort), it.remote("never")))
        with pytest.raises(TransactionAbortedError):
            await book.run(1)
        assert it.calls in (["a", "-a"], ["a", "-never", "-a"])  # its start may have been written
        assert it.rows() == []

    run(tmp_path, test)


def test_a_step_that_the_code_no_longer_has_needs_a_person(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        old = Saga("s", sequence(it.local("a"), it.local("gone"), it.remote("x")))
        it.saga(sequence(it.remote("new"), it.local("a"), it.remote("x")))
        made, branch = await begun(it, old)
        with pytest.raises(StuckError, match="gone, which this code does not have") as caught:
            await ask(it, made, branch, Phase.TRY)
        assert caught.value.report["step"] == "gone"
        with pytest.raises(StuckError):
            await ask(it, made, branch, Phase.CANCEL)
        assert it.calls == []
        remote = Saga("s", sequence(it.remote("a"), it.remote("x")))
        made, branch = await begun(it, remote, line("a", "started"), line("a", "done"), xid="t2")
        with pytest.raises(StuckError, match="the remote step a"):
            await ask(it, made, branch, Phase.CANCEL)

    run(tmp_path, test)


def test_a_step_that_was_added_is_not_run_by_those_that_began_before(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        old = Saga("s", sequence(it.local("a"), it.remote("x")))
        it.saga(sequence(it.remote("new"), it.local("a"), it.remote("x")))
        made, branch = await begun(it, old)
        await ask(it, made, branch, Phase.TRY)
        assert it.calls == ["a", "x"]

    run(tmp_path, test)


def test_a_history_that_was_not_written_is_completed_by_confirm(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        book = it.saga(sequence(it.local("a"), it.local("b")))
        made, branch = await begun(it, book)
        await ask(it, made, branch, Phase.TRY)
        it.log.world.events["t1"].clear()
        fresh = World(tmp_path, it.log, Transactions(it.log))
        fresh.saga(sequence(fresh.local("a"), fresh.local("b")))
        async with fresh.transactions:
            await ask(fresh, made, branch, Phase.CONFIRM)
            assert [e.detail["path"] for e in it.log.world.events["t1"]] == ["a", "b"]
            made, branch = await begun(it, book, xid="t2")
            with pytest.raises(StuckError, match="is not in its database"):
                await ask(fresh, made, branch, Phase.CONFIRM)

    run(tmp_path, test)


def test_a_wait_is_told_to_the_coordinator(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        book = it.saga(sequence(it.local("a"), timer(1000)))
        made, branch = await begun(it, book)
        before = await it.log.now()
        for _ in range(2):
            with pytest.raises(WaitingError, match="a timer") as caught:
                await ask(it, made, branch, Phase.TRY)
            assert 999 <= caught.value.until - before <= 1010
        assert it.calls == ["a"]

    run(tmp_path, test)


def test_blocking_code_runs_sagas(tmp_path: Path) -> None:
    with Transactions(MemoryLog(), owner="test") as transactions:
        it = World(tmp_path, transactions.log, transactions)  # type: ignore[arg-type]

        def act(context: Context) -> int:
            return int(context.input) + 1

        book = it.saga(sequence(it.local("a", attempts=1), step("n", act)))
        assert book.run_sync(1)["n"] == 2
        xid = book.start_sync(1)
        with pytest.raises(TransactionAbortedError, match="a failed: IntegrityError"):
            book.result_sync(xid)


def test_wrong_definitions_are_refused(tmp_path: Path) -> None:
    async def asynchronous(_db: Any, _context: Context) -> None: ...

    def plain() -> None: ...

    source = database(lambda: sqlite3.connect(tmp_path / "x.db"))
    with pytest.raises(InvalidError, match="doesn't fit a blocking database"):
        step("a", asynchronous, database=source)
    with pytest.raises(InvalidError, match="doesn't take"):
        step("a", plain)
    with pytest.raises(InvalidError, match="expected 1 to 40"):
        step("a b", asynchronous)
    with pytest.raises(InvalidError, match="as a part of a saga"):
        sequence(plain)  # type: ignore[arg-type]
    with pytest.raises(InvalidError, match="at least one"):
        parallel()
    with pytest.raises(InvalidError, match="a number from 0"):
        timer(-1)
    with pytest.raises(InvalidError, match="not registered"):
        asyncio.run(Saga("s", timer(1)).run())


def test_an_input_or_a_result_that_is_not_json_is_refused(tmp_path: Path) -> None:
    async def test(it: World) -> None:
        async def act(_: Context) -> object:
            return object()

        book = it.saga(sequence(it.local("a"), step("x", act)))
        with pytest.raises(InvalidError, match="input of saga s"):
            await book.run(object())
        with pytest.raises(TransactionAbortedError, match="the result of step x"):
            await book.run(1)
        assert it.rows() == []

    run(tmp_path, test)


def test_a_saga_that_waits_does_not_revive_a_manager_that_is_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        log = MemoryLog()
        async with world(tmp_path, log) as it:
            xid = await it.saga(sequence(event("paid"))).start()
        await asyncio.sleep(0)
        assert await log.leases() == {}
        with pytest.raises(InvalidError, match="not started"):
            _ = it.transactions.coordinator
        assert (await log.get(xid)).state is State.ACTIVE

    asyncio.run(main())


def test_who_waits_goes_on_waiting_while_the_log_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That nothing was done would be a lie: the caller would run it again."""
    monkeypatch.setattr(sys.modules[Saga.__module__], "_LAST_LOOK", 0.01)

    async def test(world: World) -> None:
        asked, go_on = asyncio.Event(), asyncio.Event()
        get = world.log.get

        async def away(xid: str) -> Transaction:
            if asked.is_set():
                return await get(xid)
            asked.set()
            raise UnavailableError("the log is away")

        async def action(context: Context) -> str:
            await go_on.wait()
            return "done"

        trip = world.saga(step("slow", action))
        monkeypatch.setattr(world.log, "get", away)
        running = asyncio.create_task(trip.run())
        await asyncio.wait(
            [running, asyncio.create_task(asked.wait())], return_when="FIRST_COMPLETED"
        )
        go_on.set()
        assert await running == {"slow": "done"}

    run(tmp_path, test)


def test_an_end_that_nobody_waits_for_any_more_is_no_unhandled_error(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        unhandled: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, it: unhandled.append(it))
        trip = world.saga(world.remote("a"))
        service = trip._service
        assert service is not None
        coordinator = world.transactions.coordinator
        begun = await trip._begin(coordinator, None, 5.0)
        end = service.go(coordinator, begun)
        end.set_exception(TransactionAbortedError("nobody waits"))
        await asyncio.sleep(0)
        service.forget(begun.xid)
        del end
        gc.collect()
        assert unhandled == []

    run(tmp_path, test)
