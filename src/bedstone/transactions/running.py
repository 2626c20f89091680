"""The transactions at work in one process: at most one task for each.

Rules:
- What the log named as due before a task of ours was done with it is old news: it is not started
  again until the log names it again.
- Whatever happens in a task, those who wait for it are let go, and it is said in the log file.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from bedstone.errors import Error
from bedstone.transactions.driving import Driver, Run
from bedstone.transactions.errors import FencedError
from bedstone.transactions.model import Transaction

_log = logging.getLogger(__name__)

BATCH: Final = 100
"""What is due and started at once."""

LIMIT: Final = 1000
"""What is due and at work at once; callers' own commits and aborts come on top."""


class Runner:
    """The tasks of one coordinator.

    Args:
        driver: does the work.
        owner: the coordinator's name; others' transactions are left alone.
        wake_at: told when a failed one is due again, in the loop's time.
    """

    def __init__(self, driver: Driver, owner: str, wake_at: Callable[[float], None]) -> None:
        self._driver = driver
        self._owner = owner
        self._wake_at = wake_at
        self._runs: dict[str, Run] = {}
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._seen: set[str] = set()
        self._due: set[str] = set()
        self._asked: dict[str, bool] = {}
        self.open = False

    def room(self) -> int:
        """As `keeping.Work.room`."""
        self._seen = set(self._runs)
        left = min(BATCH, LIMIT - len(self._due))
        return len(self._runs) + left if left > 0 else 0

    def start_due(self, due: Sequence[Transaction]) -> None:
        """As `keeping.Work.start_due`."""
        for transaction in due:
            if transaction.xid not in self._seen and self.start(transaction) is not None:
                self._due.add(transaction.xid)

    def ask(self, xid: str) -> None:
        """The log is asked about it now, and what it says is for `start_answer`."""
        self._asked[xid] = xid in self._runs

    def start_answer(self, transaction: Transaction | None, xid: str) -> Run | None:
        """Start what the log answered, unless one at work meanwhile has made it old news."""
        old = self._asked.pop(xid, False)
        if transaction is None or transaction.state.ended:
            return None
        run = self._runs.get(xid)
        return self.start(transaction) if run is None and not old else run

    def start(self, transaction: Transaction) -> Run | None:
        """Put a task to work on it, unless one is; None where none may."""
        xid = transaction.xid
        run = self._runs.get(xid)
        if run is not None:
            return run
        if not self.open or transaction.owner != self._owner:
            return None
        self._runs[xid] = run = Run()
        self._seen.add(xid)
        task = asyncio.get_running_loop().create_task(
            self._work(transaction, run), name=f"transaction {xid}"
        )
        self._tasks[task] = None

        def ended(done: asyncio.Task[None]) -> None:
            del self._tasks[done], self._runs[xid]
            self._due.discard(xid)
            if xid in self._asked:
                self._asked[xid] = True
            run.attempted.set()
            run.ended.set()
            if run.again is not None:
                self._wake_at(run.again)

        # not a `finally` of the task: one that is cancelled before its first step has none
        task.add_done_callback(ended)
        return run

    async def stop(self, grace: float) -> None:
        """Start nothing more, wait so many seconds for what is at work, and end it."""
        self.open = False
        tasks = list(self._tasks)
        try:
            if tasks and grace > 0:
                await asyncio.wait(tasks, timeout=grace)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, transaction: Transaction, run: Run) -> None:
        extra: dict[str, object] = {"xid": transaction.xid, "owner": self._owner}
        try:
            await self._driver.drive(transaction, run)
        except FencedError as error:
            _log.info("left to its new owner", extra=extra | {"reason": error.message})
        except Error as error:
            _log.warning("not driven", extra=extra | {"reason": error.message})
        except Exception:  # noqa: BLE001 - a bug of ours or of a log must not pass in silence
            _log.exception("not driven", extra=extra)
