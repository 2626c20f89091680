"""TCC over real SQLite files: what each phase does, and what is refused before anything runs."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bedstone.errors import InvalidError, UnavailableError
from bedstone.telemetry import context as telemetry
from bedstone.testing.faults import Fault
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions import (
    StuckError,
    Tcc,
    TransactionAbortedError,
    TransactionDecidedError,
    Transactions,
    barrier,
    tcc,
    together,
    together_sync,
    transaction,
    use,
)
from bedstone.transactions.model import Branch, Mode, Phase, State
from bedstone.transactions.tcc import Action


class Move(Tcc):
    """Change a balance; below zero is refused in TRY."""

    def try_(self, db: sqlite3.Connection, *, account: str, amount: int) -> int:
        (balance,) = db.execute("SELECT balance FROM a WHERE id = ?", (account,)).fetchone()
        if balance + amount < 0:
            raise ValueError("insufficient funds")
        if amount < 0:
            db.execute("UPDATE a SET balance = balance + ? WHERE id = ?", (amount, account))
        db.execute("UPDATE a SET held = held + ? WHERE id = ?", (abs(amount), account))
        return int(balance)

    def confirm(self, db: sqlite3.Connection, *, account: str, amount: int) -> None:
        db.execute("UPDATE a SET held = held - ? WHERE id = ?", (abs(amount), account))
        if amount > 0:
            db.execute("UPDATE a SET balance = balance + ? WHERE id = ?", (amount, account))

    def cancel(self, db: sqlite3.Connection, *, account: str, amount: int) -> None:
        db.execute("UPDATE a SET held = held - ? WHERE id = ?", (abs(amount), account))
        if amount < 0:
            db.execute("UPDATE a SET balance = balance - ? WHERE id = ?", (amount, account))


class AsyncMove(Tcc):
    """The same for an asynchronous connection."""

    async def try_(self, db: Any, account: str, amount: int) -> None:
        await db.execute(
            "UPDATE a SET balance = balance + ?, held = held - ? WHERE id = ?",
            (amount, amount, account),
        )

    async def confirm(self, db: Any, account: str, amount: int) -> None:
        await db.execute("UPDATE a SET held = held + ? WHERE id = ?", (amount, account))

    async def cancel(self, db: Any, account: str, amount: int) -> None:
        await db.execute(
            "UPDATE a SET balance = balance - ?, held = held + ? WHERE id = ?",
            (amount, amount, account),
        )


class Bank:
    """Two files, one account in each."""

    def __init__(self, folder: Path) -> None:
        self.log = MemoryLog()
        self.transactions = Transactions(self.log)
        self._folder = folder
        for name in "ab":
            with closing(self._open(name)) as db, db:
                db.execute("CREATE TABLE a (id TEXT PRIMARY KEY, balance INT, held INT)")
                db.execute("INSERT INTO a VALUES (?, 100, 0)", (name,))
        self.a, self.b = self.move("a"), self.move("b")

    def _open(self, name: str) -> sqlite3.Connection:
        return sqlite3.connect(self._folder / name, timeout=10)

    def move(self, name: str) -> Action:
        return tcc(Move, lambda: self._open(name), name=name, transactions=self.transactions)

    def rows(self, name: str) -> tuple[int, int]:
        with closing(self._open(name)) as db:
            balance, held = db.execute("SELECT balance, held FROM a").fetchone()
            return balance, held

    @property
    def states(self) -> list[State]:
        """What is decided of each; that phase two is recorded is waited for by nobody."""
        ended = {State.COMMITTING: State.COMMITTED, State.ABORTING: State.ABORTED}
        found = [it.state for it in self.log.world.transactions.values()]
        return [ended.get(state, state) for state in found]

    def writes(self) -> list[str]:
        """Note each write to the log from here on."""
        noted: list[str] = []

        def plan(operation: str) -> Fault:
            if operation in {"begin", "register", "decide", "record"}:
                noted.append(operation)
            return Fault.NONE

        self.log.plan = plan
        return noted


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    it = Bank(tmp_path)
    use(it.transactions)
    return it


def run(bank: Bank, test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), bank.transactions:
            await test()

    asyncio.run(main())


def test_a_transfer_commits_in_both(bank: Bank) -> None:
    async def test() -> None:
        async with transaction("transfer"):
            assert await bank.a(account="a", amount=-30) == 100
            await bank.b(account="b", amount=30)
            assert bank.rows("a") == (70, 30)
        assert (bank.rows("a"), bank.rows("b")) == ((70, 0), (130, 0))

    run(bank, test)


def test_a_refused_try_aborts_and_gives_everything_back(bank: Bank) -> None:
    async def test() -> None:
        with pytest.raises(ValueError, match="insufficient funds"):  # noqa: PT012
            async with transaction():
                await bank.b(account="b", amount=300)
                await bank.a(account="a", amount=-300)
        assert (bank.rows("a"), bank.rows("b")) == ((100, 0), (100, 0))
        assert bank.states == [State.ABORTED]

    run(bank, test)


def test_together_is_two_log_writes_before_the_answer(bank: Bank) -> None:
    async def test() -> None:
        noted = bank.writes()
        first, second = await together(
            bank.a.call(account="a", amount=-1), bank.b.call(account="b", amount=1), name="both"
        )
        assert (first, second) == (100, 100)
        assert noted[:2] == ["begin", "decide"]
        assert "register" not in noted
        assert (bank.rows("a"), bank.rows("b")) == ((99, 0), (101, 0))

    run(bank, test)


def test_together_inside_a_transaction_is_one_more_write(bank: Bank) -> None:
    async def test() -> None:
        noted = bank.writes()
        async with transaction():
            await together(bank.a.call(account="a", amount=-1), bank.b.call(account="b", amount=1))
            assert noted == ["begin", "register"]
        assert bank.states == [State.COMMITTED]

    run(bank, test)


def test_together_fails_with_the_first_error_and_cancels_the_other(bank: Bank) -> None:
    async def test() -> None:
        with pytest.raises(ValueError, match="insufficient funds"):
            await together(
                bank.b.call(account="b", amount=900), bank.a.call(account="a", amount=-900)
            )
        assert bank.states == [State.ABORTED]
        assert (bank.rows("a"), bank.rows("b")) == ((100, 0), (100, 0))

    run(bank, test)


def test_together_wants_a_call(bank: Bank) -> None:
    with pytest.raises(InvalidError, match="no call"):
        asyncio.run(together())


def test_phase_two_that_comes_twice_acts_once(bank: Bank) -> None:
    async def test() -> None:
        async with transaction() as scope:
            await bank.a(account="a", amount=-30)
        held = bank.log.world.transactions[scope.xid]
        router = await bank.transactions.router()
        await router(held, held.branches[0], Phase.CONFIRM)
        assert bank.rows("a") == (70, 0)

    run(bank, test)


def test_a_try_that_comes_after_its_cancel_is_refused(bank: Bank) -> None:
    async def test() -> None:
        call = bank.a.call(account="a", amount=-30)
        with pytest.raises(RuntimeError, match="stop"):  # noqa: PT012
            async with transaction() as scope:
                (branch,) = await scope.enlist(call.branch())
                raise RuntimeError("stop")
        with pytest.raises(TransactionDecidedError, match="before its TRY"):
            await bank.a.attempt(scope.xid, branch, call.arguments)
        assert bank.rows("a") == (100, 0)

    run(bank, test)


def test_a_confirm_without_its_try_needs_a_person(bank: Bank) -> None:
    async def test() -> None:
        async with transaction() as scope:
            await scope.enlist(bank.a.call(account="a", amount=-30).branch())
        held = bank.log.world.transactions[scope.xid]
        assert held.state is State.COMMITTING
        assert bank.rows("a") == (100, 0)
        router = await bank.transactions.router()
        with pytest.raises(UnavailableError, match="may be under way"):
            await router(held, held.branches[0], Phase.CONFIRM)
        often = replace(held.branches[0], attempts=barrier.UNDER_WAY)
        with pytest.raises(StuckError, match="not in the database"):
            await router(held, often, Phase.CONFIRM)

    run(bank, test)


@contextmanager
def elsewhere() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Run functions in a thread without a loop, and wait."""

    def call(function: Callable[[], None]) -> None:
        failed: list[BaseException] = []

        def guarded() -> None:
            try:
                function()
            except BaseException as error:  # noqa: BLE001
                failed.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        if failed:
            raise failed[0]

    yield call


class TestBlocking:
    """`with` instead of `async with`, with no event loop of the caller's."""

    def test_a_transfer_commits(self, bank: Bank) -> None:
        with bank.transactions:
            with transaction("transfer") as scope:
                bank.a.sync(account="a", amount=-30)
                bank.b.sync(account="b", amount=30)
            assert telemetry.current().transaction is None
            assert scope.xid in bank.log.world.transactions
            assert (bank.rows("a"), bank.rows("b")) == ((70, 0), (130, 0))
        assert bank.states == [State.COMMITTED]
        assert not [it for it in threading.enumerate() if it.name == "bedstone-transactions"]

    def test_an_error_aborts(self, bank: Bank) -> None:
        with bank.transactions:
            with pytest.raises(ValueError, match="insufficient"), transaction():
                bank.a.sync(account="a", amount=-900)
            assert bank.states == [State.ABORTED]

    def test_an_overlooked_error_aborts_all_the_same(self, bank: Bank) -> None:
        with bank.transactions:
            with pytest.raises(TransactionAbortedError), transaction():  # noqa: PT012
                bank.b.sync(account="b", amount=5)
                with pytest.raises(ValueError):
                    bank.a.sync(account="a", amount=-900)
            assert bank.rows("b") == (100, 0)

    def test_together_works_too(self, bank: Bank) -> None:
        with bank.transactions:
            together_sync(bank.a.call(account="a", amount=-1), bank.b.call(account="b", amount=1))
            assert (bank.rows("a"), bank.rows("b")) == ((99, 0), (101, 0))

    def test_it_needs_no_start(self, bank: Bank) -> None:
        with transaction():
            bank.a.sync(account="a", amount=-30)
        assert bank.rows("a") == (70, 0)
        bank.transactions.close()

    def test_inside_a_running_loop_it_is_refused(self, bank: Bank) -> None:
        async def test() -> None:
            with pytest.raises(InvalidError, match="blocking"), transaction():
                pytest.fail("entered")

        run(bank, test)

    def test_threads_use_the_loop_that_the_manager_is_in(self, bank: Bank) -> None:
        def handler() -> None:
            with transaction("thread"):
                bank.a.sync(account="a", amount=-1)

        async def test() -> None:
            # more than the default executor has threads: they must not wait for each other
            async with asyncio.TaskGroup() as group:
                for _ in range(40):
                    group.create_task(asyncio.to_thread(handler))
            assert bank.rows("a") == (60, 0)
            assert not [it for it in threading.enumerate() if it.name == "bedstone-transactions"]

        run(bank, test)

    def test_without_a_log_it_says_what_to_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("BEDSTONE_TRANSACTIONS_URL", raising=False)
        monkeypatch.delenv("TRANSACTIONS_URL", raising=False)
        use(Transactions())
        with pytest.raises(InvalidError, match="BEDSTONE_TRANSACTIONS_URL"), transaction():
            pytest.fail("entered")


def test_an_asynchronous_database_takes_async_methods(tmp_path: Path) -> None:
    it = Bank(tmp_path)
    use(it.transactions)
    move = tcc(AsyncMove, f"sqlite:///{tmp_path / 'a'}", name="async", transactions=it.transactions)

    async def test() -> None:
        async with transaction():
            await move("a", amount=-30)
        assert it.rows("a") == (70, 0)
        with pytest.raises(RuntimeError):  # noqa: PT012
            async with transaction():
                await move("a", -30)
                raise RuntimeError
        assert it.rows("a") == (70, 0)

    run(it, test)


class TestRefused:
    """Before anything runs or is written."""

    @pytest.mark.parametrize("amount", [object(), {1, 2}, b"x", float("nan"), 1j])
    def test_arguments_that_are_not_json(self, bank: Bank, amount: Any) -> None:
        with pytest.raises(InvalidError, match="JSON"):
            bank.a.call(account="a", amount=amount)

    def test_arguments_that_do_not_fit(self, bank: Bank) -> None:
        with pytest.raises(InvalidError, match="amount"):
            bank.a.call(account="a")
        with pytest.raises(InvalidError, match="sum"):
            bank.a.call(account="a", amount=1, sum=2)

    def test_a_call_outside_of_a_transaction(self, bank: Bank) -> None:
        async def test() -> None:
            with pytest.raises(InvalidError, match="not inside"):
                await bank.a(account="a", amount=1)

        run(bank, test)
        assert bank.rows("a") == (100, 0)

    def test_methods_that_do_not_fit_the_database(self, bank: Bank) -> None:
        with pytest.raises(InvalidError, match="asynchronous database"):
            tcc(Move, "postgresql://localhost/x", transactions=bank.transactions)
        with pytest.raises(InvalidError, match="blocking database"):
            tcc(AsyncMove, lambda: None, transactions=bank.transactions)

    def test_methods_that_do_not_fit_each_other(self, bank: Bank) -> None:
        class Mixed(Move):
            async def cancel(  # type: ignore[override]
                self, db: Any, *, account: str, amount: int
            ) -> None: ...

        class Other(Move):
            def confirm(self, db: Any, *, account: str) -> None: ...  # type: ignore[override]

        class Many(Move):
            def try_(self, db: Any, *amounts: int) -> int:  # type: ignore[override]
                return sum(amounts)

        for kind, said in ((Mixed, "all of one kind"), (Other, "amount"), (Many, "amounts")):
            with pytest.raises(InvalidError, match=said):
                tcc(kind, lambda: None, transactions=bank.transactions)

    def test_a_class_that_lacks_a_method(self, bank: Bank) -> None:
        class Half(Tcc):
            def try_(self, db: Any) -> None: ...

        with pytest.raises(InvalidError, match="confirm"):
            tcc(
                Half,  # type: ignore[type-abstract]
                lambda: None,
                transactions=bank.transactions,
            )

    def test_a_name_that_is_taken(self, bank: Bank) -> None:
        with pytest.raises(InvalidError, match="two participants"):
            bank.move("a")

    def test_a_class_without_a_database(self) -> None:
        with pytest.raises(InvalidError, match="without a database"):
            tcc(Move)


def test_arguments_reach_every_phase_as_json_gives_them_back(bank: Bank) -> None:
    call = bank.a.call(account="a", amount=(1, 2))
    assert call.arguments["amount"] == [1, 2]
    branch = call.branch()
    assert branch == Branch(0, Mode.TCC, "local:tcc/a", call.payload)
