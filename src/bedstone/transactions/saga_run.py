"""Runs one saga: forward, backward, or to the end of its history.

Owns `Life`: one phase of one saga in one process.

Rules:
- What `saga_machine` says is written first is written first: a remote step's start before it, and
  its end, a timer and an event before what follows. Local steps' ends are written behind, together,
  after `LINGER` seconds or at the end, whichever is earlier.
- A log that refuses the owner (`FencedError`) stops the saga here at once.
- A running saga goes by the plan that it began with. A step of it that the code no longer has, or
  has in another way, needs a person: it is never left out.
- A step that fails for good lets those beside it come to their end, and starts nothing more.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from bedstone.errors import Error, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.telemetry import context as telemetry
from bedstone.transactions import machine, saga_machine, saga_step, sql_errors
from bedstone.transactions.asking import Asker
from bedstone.transactions.errors import (
    StuckError,
    TransactionAbortedError,
    TransactionDecidedError,
    TransactionTimeoutError,
    WaitingError,
)
from bedstone.transactions.model import Branch, Log, Transaction
from bedstone.transactions.router import Threads
from bedstone.transactions.saga_history import Record
from bedstone.transactions.saga_machine import Done, Failed, Kind, Leaf, Mark, Wait, Work
from bedstone.transactions.saga_plan import Compiled, Placed, Step, Timer, encode, seconds_of
from bedstone.transactions.saga_plan import Event as Awaited

_log = logging.getLogger(__name__)

LINGER: Final = 0.05
"""Seconds for which ends of local steps may stay unwritten."""

LONGEST_ERROR: Final = 500


def payload(compiled: Compiled, given: Any) -> bytes:
    """What a saga's branch keeps.

    Raises:
        InvalidError: the input is not JSON.
    """
    return encode(
        f"the input of saga {compiled.root.name}",
        {
            "input": given,
            "version": saga_machine.digest(compiled.plan),
            "plan": saga_machine.to_json(compiled.plan),
        },
    )


class Life(Record):
    """One phase of one saga.

    Args:
        code: the definition that this process has.
        transaction: the saga's.
        branch: its branch, with its input and plan.
        log: where its history is.
        asker: asks it again, and knows its clock.
        threads: run blocking functions.
        jitter: a random number from 0 to 1.
    """

    def __init__(
        self,
        code: Compiled,
        transaction: Transaction,
        branch: Branch,
        log: Log,
        asker: Asker,
        threads: Threads,
        jitter: Callable[[], float],
    ) -> None:
        kept = json.loads(branch.payload)
        plan = saga_machine.from_json(kept["plan"])
        super().__init__(plan, transaction, branch.number, log, asker)
        self.input = kept["input"]
        self.error: Exception | None = None
        self._version = kept["version"]
        self._code = code
        self._threads = threads
        self._jitter = jitter
        self._failing = asyncio.Event()

    async def forward(self) -> None:
        """Run to the end, or as far as it goes.

        Raises:
            WaitingError: as far as it goes.
            TransactionAbortedError: it can't succeed.
            StuckError: the code no longer has one of its steps.
            FencedError: another coordinator owns it.
        """
        for leaf in saga_machine.leaves(self.plan):
            self._find(leaf)
        left = self.transaction.deadline - await self.asker.now()
        self.trying = True
        try:
            async with asyncio.timeout(left) as timer:
                await self._run_all()
        except TimeoutError as error:
            if not timer.expired():
                raise
            await self.write()
            raise TransactionTimeoutError(
                f"saga {self._name} of transaction {self.xid} is aborted: its deadline passed"
            ) from error
        finally:
            self.trying = False

    async def backward(self) -> None:
        """Undo everything that may have run.

        Raises:
            StuckError: a compensation fails again and again, or is not there.
            Exception: a compensation failed; try again later.
        """
        await self._recall()
        for leaf in saga_machine.undoing(self.plan, self.history):
            placed = self._find(leaf)
            self._demand_undo(leaf, placed)
            try:
                await self._undo(leaf)
            except saga_step.RaisedError as raised:
                await self._not_undone(leaf, raised.error)
                raise raised.error from None
            except Error as error:
                await self._not_undone(leaf, error)
                raise
            self.note(leaf, Mark.UNDONE)
            if leaf.kind is Kind.REMOTE:
                await self.write()
        await self.write()

    async def complete(self) -> None:
        """Complete the history of a saga that succeeded, from its databases.

        Raises:
            StuckError: a database has forgotten a step.
        """
        await self._recall()
        missing = self.missing()
        if missing:
            raise StuckError(
                f"saga {self._name} of transaction {self.xid} succeeded, and {missing[0]} is not "
                "in its database",
                report={"saga": self._name, "steps": missing},
                hint="was the database restored from a backup? do by hand what the steps do, then "
                "`bedstone tx repair`",
            )
        await self.write()

    def missing(self) -> list[str]:
        """What of a saga that succeeded is not known here to have ended."""
        return [
            leaf.path
            for leaf in saga_machine.leaves(self.plan)
            if leaf.path not in self.history.ended
        ]

    def output(self) -> Any:
        """What the saga returns, once it succeeded."""
        return self._code.output(self.xid, self.input, self.history.ended)

    @property
    def late(self) -> bool:
        """Whether its deadline, and nothing else, stopped it."""
        return not self.history.failed and self.asker.estimate() >= self.transaction.deadline

    @property
    def _name(self) -> str:
        return self._code.root.name

    async def _run_all(self) -> None:
        running: dict[asyncio.Task[None], Leaf] = {}
        writing: set[asyncio.Task[None]] = set()
        try:
            while True:
                paths = frozenset(leaf.path for leaf in running.values())
                now = self.asker.estimate()
                match saga_machine.following(self.plan, self.history, now, paths):
                    case Work() as work:
                        await self._begin(work, running)
                    case Wait(until, _) if running:
                        await self._some(running, writing, until)
                    case Wait(until, events):
                        await self._pause(until, events)
                    case Failed(path, text):
                        self._failing.set()
                        while running:
                            await self._some(running, writing, None)
                        await self.write()
                        raise TransactionAbortedError(
                            f"saga {self._name}: {path} failed: {text}",
                            hint="what it did is undone; run it again under a new id",
                        ) from self.error
                    case Done():
                        if self.urgent:
                            await self.write()
                        return
        finally:
            tasks = [*running, *writing]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self, work: Work, running: dict[asyncio.Task[None], Leaf]) -> None:
        for leaf in work.arm:
            await self._arm(leaf)
        for leaf, result in work.over:
            self.note(leaf, Mark.DONE, result=result)
        for leaf in work.missed:
            self.note(leaf, Mark.FAILED, error="the event did not come in time")
        for leaf in work.run:
            if leaf.kind is Kind.REMOTE:
                self.note(leaf, Mark.STARTED)
        if self.urgent:
            await self.write()
        for leaf in work.run:
            running[_task(self._step(leaf), leaf.path)] = leaf

    async def _some(
        self,
        running: dict[asyncio.Task[None], Leaf],
        writing: set[asyncio.Task[None]],
        until: float | None,
    ) -> None:
        """Wait until a running step has ended, or until a time by the log's clock."""
        if self.unwritten and not writing:
            writing.add(_task(self._write_behind(), "history"))
        left = None if until is None else max(0.0, until - self.asker.estimate())
        await asyncio.wait([*running, *writing], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for task in [task for task in running if task.done()]:
            del running[task]
            task.result()
        for task in [task for task in writing if task.done()]:
            writing.discard(task)
            task.result()

    async def _write_behind(self) -> None:
        await asyncio.sleep(LINGER)
        await self.write()

    async def _pause(self, until: float | None, events: tuple[str, ...]) -> None:
        """Look for signals; without one, let go until a time.

        Raises:
            WaitingError: nothing came.
        """
        await self.write()
        if events:
            await self.listen()
            if any(path in self.history.signals for path in events):
                return
        what = f"event {', '.join(events)}" if events else "a timer"
        raise WaitingError(
            f"saga {self._name} waits for {what}",
            until=self.transaction.deadline if until is None else until,
        )

    async def _arm(self, leaf: Leaf) -> None:
        part = self._find(leaf).part
        seconds: float | None = None
        try:
            match part:
                case Timer(seconds=asked):
                    context = self._context(leaf)
                    seconds = seconds_of(asked(context) if callable(asked) else asked)
                case Awaited(timeout=timeout):
                    seconds = timeout
        except Exception as error:  # noqa: BLE001 - the developer's function raised
            self._fail(leaf, Mark.FAILED, error)
            return
        until = machine.NEVER if seconds is None else await self.asker.now() + seconds
        self.arm(leaf, until)

    async def _step(self, leaf: Leaf) -> None:
        """Try a step until it ends, or fails for good."""
        placed, step = self._find(leaf), self._step_of(leaf)
        failures = 0
        while True:
            try:
                async with asyncio.timeout(step.timeout):
                    result = await self._act(leaf, step)
            except TransactionDecidedError:
                raise
            except Exception as failure:  # noqa: BLE001 - the developer's, or a database's
                failures += 1
                error, refused, final = failure, False, isinstance(failure, InvalidError)
                if isinstance(failure, saga_step.RaisedError):
                    error = failure.error
                    final = isinstance(error, (*step.fails_on, TransactionAbortedError))
                    first = failures == 1 and self.history.started.get(leaf.path, 0) <= 1
                    refused = final and first and leaf.kind is Kind.REMOTE
                if not placed.forward and (final or failures >= step.attempts):
                    self._fail(leaf, Mark.REFUSED if refused else Mark.FAILED, error)
                    return
                extra = {"xid": self.xid, "step": leaf.path, "reason": _told(error)}
                _log.warning(
                    "a saga's step failed, and is tried again", extra=extra, exc_info=error
                )
            else:
                self.note(leaf, Mark.DONE, result=result)
                return
            try:
                async with asyncio.timeout(machine.delay(failures, self._jitter())):
                    await self._failing.wait()
            except TimeoutError:
                continue
            return

    async def _act(self, leaf: Leaf, step: Step) -> Any:
        left = self.transaction.deadline - self.asker.estimate()
        bound = max(0.001, min(left, step.timeout or left))
        try:
            context = self._context(leaf)
        except Exception as error:
            raise saga_step.RaisedError(error) from error
        with telemetry.deadline(bound):
            return await saga_step.act(step, self._key(leaf), context, self._threads)

    async def _undo(self, leaf: Leaf) -> None:
        try:
            context = self._context(leaf, undo=True)
        except Exception as error:
            raise saga_step.RaisedError(error) from error
        step, key = self._step_of(leaf), self._key(leaf)
        await saga_step.undo(step, key, context, self._threads)

    async def _not_undone(self, leaf: Leaf, error: Exception) -> None:
        """Count a failed compensation, unless what it failed for passes by itself.

        Raises:
            StuckError: it was one too many.
        """
        told = _told(error)
        extra = {"xid": self.xid, "step": leaf.path, "reason": told}
        _log.warning("a saga's compensation failed", extra=extra, exc_info=error)
        if _passes(error):
            return
        self.note(leaf, Mark.NOT_UNDONE, error=told)
        await self.write()
        times = self.history.troubles[leaf.path]
        if times >= self._code.root.undo_attempts:
            raise StuckError(
                f"saga {self._name}: the compensation of {leaf.path} failed {times} times: {told}",
                report=self._report(leaf, error=told, attempts=times),
                hint="remove the cause, then `bedstone tx retry`",
            ) from error

    def _demand_undo(self, leaf: Leaf, placed: Placed) -> None:
        """Refuse to leave standing what a saga that was to go forward did."""
        part = placed.part
        if placed.forward and isinstance(part, Step) and part.undo is None:
            ran = leaf.path in self.history.ended or leaf.path in self.history.started
            if ran:
                raise StuckError(
                    f"saga {self._name} goes forward and was aborted; {leaf.path} has run, and has "
                    "no compensation",
                    report=self._report(leaf, error="no compensation"),
                    hint="undo it by hand, then `bedstone tx repair`; or give the step `undo=`",
                )

    async def _recall(self) -> None:
        """Ask the databases about local steps that the history does not know."""
        unknown = [
            leaf
            for leaf in reversed(saga_machine.undoing(self.plan, self.history))
            if leaf.kind is Kind.LOCAL
            and leaf.path not in self.history.ended
            and leaf.path not in self.history.failed
        ]
        for leaf in unknown:
            step = self._step_of(leaf)
            found, result = await saga_step.recall(step, self.xid, self._key(leaf), self._threads)
            if found:
                self.note(leaf, Mark.DONE, result=result)

    def _find(self, leaf: Leaf) -> Placed:
        """The code of a leaf.

        Raises:
            StuckError: it is not there.
        """
        placed = self._code.find(leaf)
        if placed is None:
            now = saga_machine.digest(self._code.plan)
            raise StuckError(
                f"saga {self._name} of transaction {self.xid} needs the {leaf.kind} step "
                f"{leaf.path}, which this code does not have",
                report=self._report(leaf, version=self._version, code=now),
                hint="deploy code that has the step as it was, and `bedstone tx retry`; to change "
                "a saga while some run, give the new one another name and keep the old one",
            )
        return placed

    def _step_of(self, leaf: Leaf) -> Step:
        match self._find(leaf).part:
            case Step() as step:
                return step
            case part:
                raise InvalidError(f"got {part}, expected a step")

    def _report(self, leaf: Leaf, **more: object) -> dict[str, object]:
        return {
            "saga": self._name,
            "step": leaf.path,
            "input": self.input,
            "result": self.history.ended.get(leaf.path),
            "repair": "undo the step's effect by hand if it is there, then repair the branch",
            **more,
        }

    def _context(self, leaf: Leaf, *, undo: bool = False) -> Any:
        return self._code.context(self.xid, self.input, self.history.ended, leaf, undo=undo)

    def _key(self, leaf: Leaf) -> str:
        """The step's branch in its barrier."""
        return f"{self.number}/{leaf.path}"

    def _fail(self, leaf: Leaf, mark: Mark, error: Exception) -> None:
        if self.error is None:
            self.error = error
        self._failing.set()
        self.note(leaf, mark, error=_told(error))


def _told(error: Exception) -> str:
    """An error for people; without the values that a foreign error's text may hold."""
    match error:
        case Error():
            return error.message[:LONGEST_ERROR]
        case TimeoutError():
            return "no answer in time"
        case _:
            return type(error).__name__


def _task(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work, name=f"saga {name}")


def _passes(error: Exception) -> bool:
    """Whether somebody was only away: no person is needed for that, however often it happens."""
    away = (UnavailableError, UnknownOutcomeError, OSError, TimeoutError)
    return isinstance(error, away) or isinstance(sql_errors.meaning(error), away)
