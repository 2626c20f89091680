"""The manager: where it lives, how often, and how its participants are found."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bedstone.errors import InvalidError, NotFoundError, UnavailableError
from bedstone.telemetry import context as telemetry
from bedstone.testing.faults import Fault
from bedstone.testing.transaction_log import MemoryLog
from bedstone.transactions.machine import group_of
from bedstone.transactions.manager import Transactions, process, transaction, use
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction
from bedstone.transactions.portal import Portal, run_in
from bedstone.transactions.router import Router


async def nothing(transaction: Transaction, branch: Branch, phase: Phase) -> None:
    """A participant with nothing to do."""


def part(resource: str) -> tuple[Transaction, Branch, Phase]:
    branch = Branch(1, Mode.TCC, resource)
    return Transaction("x", "", 1.0, 0.0, "me", branches=(branch,)), branch, Phase.CONFIRM


class TestHome:
    def test_making_one_does_nothing(self) -> None:
        transactions = Transactions("nothing://at all")
        with pytest.raises(InvalidError, match="not started"):
            transactions.log  # noqa: B018

    def test_it_outlives_the_loop_it_started_in(self) -> None:
        log = MemoryLog()
        use(Transactions(log))

        async def work() -> None:
            async with transaction():
                pass

        for _ in range(2):
            asyncio.run(work())
        owners = {it.owner for it in log.world.transactions.values()}
        assert len(owners) == 2
        assert log.world.leases == {}  # each life gave its lease back

    def test_two_loops_use_one_home(self) -> None:
        log = MemoryLog()
        use(Transactions(log))

        async def work() -> None:
            async with transaction():
                pass

        async def main() -> None:
            async with process():
                await work()
                await asyncio.to_thread(asyncio.run, work())
                assert len(log.world.leases) == 1

        asyncio.run(main())
        assert len({it.owner for it in log.world.transactions.values()}) == 1

    def test_a_request_that_starts_it_leaves_nothing_of_itself(self) -> None:
        seen: list[telemetry.RequestContext] = []

        class Log(MemoryLog):
            async def claim(self, owner: str, lease: float, limit: int) -> tuple[Transaction, ...]:
                seen.append(telemetry.current())
                return tuple(await super().claim(owner, lease, limit))

        async def main() -> None:
            with telemetry.deadline(5.0):
                async with Transactions(Log()).transaction():
                    pass

        asyncio.run(main())
        assert seen
        assert set(seen) == {telemetry.RequestContext()}

    def test_a_start_that_failed_is_tried_again(self) -> None:
        transactions = Transactions("sqlite:////no/such/folder/log")

        async def main() -> None:
            for _ in range(2):
                with pytest.raises((UnavailableError, InvalidError)):
                    await transactions.start()

        asyncio.run(main())

    def test_a_blocking_start_that_failed_leaves_no_thread(self) -> None:
        with pytest.raises(InvalidError), Transactions("nothing://x"):
            pytest.fail("entered")
        assert not [it for it in threading.enumerate() if it.name == "bedstone-transactions"]

    def test_who_waited_for_its_end_and_was_cancelled_hides_no_failure(self) -> None:
        """A loop that fails cancels whoever waits; the manager still ends without a word."""

        async def main() -> None:
            transactions = Transactions(MemoryLog())
            await transactions.start()
            home = transactions._home
            assert home is not None
            assert home.task is not None
            home.ended.cancel()
            home.stop.set()
            await home.task

        asyncio.run(main())

    def test_stopping_twice_and_stopping_what_never_ran_is_nothing(self) -> None:
        async def main() -> None:
            transactions = Transactions(MemoryLog())
            await transactions.stop()
            async with transactions:
                await transactions.stop()

        asyncio.run(main())
        Transactions(MemoryLog()).close()

    def test_a_fork_starts_a_life_of_its_own(self, tmp_path: Path) -> None:
        """Parent and child must never share a lease."""
        program = tmp_path / "program.py"
        program.write_text(
            "import os, sys\n"
            "from bedstone.transactions import Transactions, transaction, use\n"
            "transactions = use(Transactions(sys.argv[1]))\n"
            "def work():\n"
            "    with transaction() as scope:\n"
            "        return transactions.run(transactions.log.get(scope.xid)).owner\n"
            "first = work()\n"
            "if os.fork() == 0:\n"
            "    second = work()\n"
            "    transactions.close()\n"
            "    os._exit(0 if first != second else 3)\n"
            "_, status = os.wait()\n"
            "sys.exit(os.waitstatus_to_exitcode(status))\n"
        )
        done = subprocess.run(
            [sys.executable, str(program), f"sqlite:///{tmp_path / 'log'}"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_has_threads_of_its_own_for_what_blocks(tmp_path: Path) -> None:
    """Servers that load the application and then fork: what ran before must not hang after."""
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio, os, sys\n"
        "from bedstone.transactions.router import Threads\n"
        "threads = Threads()\n"
        "async def work():\n"
        "    async with asyncio.timeout(10):\n"
        "        return await threads.run(os.getpid)\n"
        "assert asyncio.run(work()) == os.getpid()\n"
        "if os.fork() == 0:\n"
        "    os._exit(0 if asyncio.run(work()) == os.getpid() else 3)\n"
        "_, status = os.wait()\n"
        "sys.exit(os.waitstatus_to_exitcode(status))\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_instances_of_a_workload_take_over_from_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BEDSTONE_INSTANCE", "accounts/1")

    async def owner() -> str:
        async with Transactions(MemoryLog()) as transactions:
            return transactions.coordinator.owner

    monkeypatch.delenv("BEDSTONE_WORKLOAD", raising=False)
    assert group_of(asyncio.run(owner())) == ""
    monkeypatch.setenv("BEDSTONE_WORKLOAD", "accounts")
    monkeypatch.delenv("BEDSTONE_CELL", raising=False)
    names = {asyncio.run(owner()) for _ in range(2)}
    assert {group_of(name) for name in names} == {"accounts"}
    assert len(names) == 2
    monkeypatch.setenv("BEDSTONE_CELL", "second")
    assert group_of(asyncio.run(owner())) == "accounts.second"


class TestAddress:
    @pytest.fixture(autouse=True)
    def _clean(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("BEDSTONE_WORKLOAD", "BEDSTONE_TRANSACTIONS_ADDRESS"):
            monkeypatch.delenv(name, raising=False)

    def test_alone_a_participant_is_of_this_process(self) -> None:
        assert Transactions().resource("tcc/A") == "local:tcc/A"

    def test_a_workload_is_reached_by_its_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BEDSTONE_WORKLOAD", "accounts")
        there = "http://accounts/.bedstone/transactions/tcc/A"
        assert Transactions().resource("tcc/A") == there
        monkeypatch.setenv("BEDSTONE_TRANSACTIONS_ADDRESS", "http://elsewhere:8000/")
        assert Transactions().resource("a").startswith("http://elsewhere:8000/.bedstone/")

    @pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a b", "ä", "../a?", "a" * 201])
    def test_a_name_that_no_url_can_have_is_refused(self, name: str) -> None:
        with pytest.raises(InvalidError, match="participant name"):
            Transactions().participant(name, nothing)

    def test_a_name_has_one_function(self) -> None:
        transactions = Transactions()
        transactions.participant("a", nothing)
        transactions.participant("a", nothing)
        with pytest.raises(InvalidError, match="two participants"):
            transactions.participant("a", print)


class TestRouter:
    def call(self, router: Router, resource: str) -> None:
        async def main() -> None:
            async with router:
                await router(*part(resource))

        asyncio.run(main())

    @pytest.fixture
    def posted(self) -> list[str]:
        return []

    def router(self, posted: list[str], address: str | None = "http://me") -> Router:
        async def post(transaction: Transaction, branch: Branch, phase: Phase) -> None:
            posted.append(branch.resource)

        def here(transaction: Transaction, branch: Branch, phase: Phase) -> None:
            posted.append(threading.current_thread().name)

        return Router({"here": here}, address, post)

    @pytest.mark.parametrize("resource", ["local:here", "http://me/.bedstone/transactions/here"])
    def test_what_is_here_is_called_here_in_a_thread(
        self, posted: list[str], resource: str
    ) -> None:
        self.call(self.router(posted), resource)
        assert posted[0].startswith("bedstone-participant")

    @pytest.mark.parametrize("path", ["me/", "you/", "me/below/"])
    def test_any_other_participant_is_posted_to(self, posted: list[str], path: str) -> None:
        url = f"http://{path}.bedstone/transactions/there"
        self.call(self.router(posted), url)
        assert posted == [url]

    @pytest.mark.parametrize("resource", ["local:there", "here", "ftp://me/here", ""])
    def test_what_nobody_has_is_said(self, posted: list[str], resource: str) -> None:
        with pytest.raises(NotFoundError, match="no participant"):
            self.call(self.router(posted), resource)
        assert posted == []


class TestPortal:
    def test_it_runs_in_the_callers_context_and_ends(self) -> None:
        portal = Portal()

        async def seen() -> str | None:
            return telemetry.current().transaction

        try:
            with telemetry.with_transaction("x-1"):
                assert run_in(portal.loop, seen()) == "x-1"
        finally:
            portal.stop()
        portal.stop()
        with pytest.raises(UnavailableError, match="has ended"):
            run_in(portal.loop, seen())

    def test_an_error_comes_out(self) -> None:
        portal = Portal()

        async def fail() -> None:
            raise KeyError("x")

        try:
            with pytest.raises(KeyError):
                run_in(portal.loop, fail())
        finally:
            portal.stop()


def test_a_program_that_ends_without_stopping_gives_its_lease_back(tmp_path: Path) -> None:
    program = (
        "import sys; from bedstone.transactions import *\n"
        "use(Transactions(sys.argv[1]))\n"
        "with transaction(): pass\n"
    )
    url = f"sqlite:///{tmp_path / 'log'}"
    subprocess.run([sys.executable, "-c", program, url], check=True, timeout=60)

    async def leases() -> dict[str, float]:
        from bedstone.transactions.logs import open_log

        async with open_log(url) as log:
            (ended,) = await log.list()
            assert ended.state is State.COMMITTED
            return await log.leases()

    assert asyncio.run(leases()) == {}


def test_the_environment_names_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSACTIONS_URL", f"sqlite:///{tmp_path / 'second'}")
    monkeypatch.setenv("BEDSTONE_TRANSACTIONS_URL", f"sqlite:///{tmp_path / 'first'}")

    async def main() -> None:
        async with Transactions().transaction():
            pass

    asyncio.run(main())
    assert (tmp_path / "first").exists()
    assert not (tmp_path / "second").exists()


def test_what_was_not_applied_to_the_log_is_said_so() -> None:
    log = MemoryLog()
    log.plan = lambda operation: Fault.UNAPPLIED if operation == "register" else Fault.NONE

    async def main() -> None:
        with pytest.raises(UnavailableError):
            async with Transactions(log).transaction() as scope:
                await scope.enlist(Branch(0, Mode.TCC, "local:x"))

    asyncio.run(main())
    assert [it.branches for it in log.world.transactions.values()] == [()]
