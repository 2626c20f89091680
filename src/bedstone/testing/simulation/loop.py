"""An event loop whose order is a seed and whose time is a number.

Owns `SimulationLoop`, a loop without selector, threads or clock, and `Process`, which groups the
tasks that live and die together.

Rules:
- Of all handles that could run, any may be next: the seed decides. So what code takes for granted
  about the order of callbacks, without being promised it, shows.
- Each step costs `STEP` virtual seconds; where nothing can run, time jumps to the next timer.
- What a killed process had in hand never runs again, not even its clean-up. A paused process's
  handles wait, as after SIGSTOP, while time goes on for all others.
- A task's hash is its number, so that sets of tasks are walked in the same order in every run.

Invariant: the same seed and the same code give the same `digest`.
"""

from __future__ import annotations

import asyncio
import heapq
import zlib
from asyncio import Future, Handle, Task, TimerHandle, events
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, Final, TypeVar

T = TypeVar("T")

STEP: Final = 20e-6
"""Virtual seconds that one step takes."""

CLOSINGS: Final = 100
"""How often a dead coroutine that goes on waiting is told that it is dead."""


class Process:
    """What lives, pauses and dies together. A restarted process is a new one of the same name.

    Args:
        name: who it is to the others.
        number: which life of it this is, from 1.
    """

    __slots__ = ("alive", "name", "number", "parked", "paused")

    def __init__(self, name: str, number: int = 1) -> None:
        self.name = name
        self.number = number
        self.alive = True
        self.paused = False
        self.parked: list[Handle] = []

    def __str__(self) -> str:
        return f"{self.name}.{self.number}"


class KilledError(BaseException):
    """A dead process tried to act: it must not, and nothing may catch this as a failure."""


PROCESS: ContextVar[Process | None] = ContextVar("simulated process", default=None)


class SimulationTask(Task[T]):
    """A task whose hash is the same in every run."""

    number = 0

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class SimulationLoop(asyncio.BaseEventLoop):
    """Runs handles in the order that a seeded generator picks.

    Args:
        random: the seeded generator.
        start: the virtual time at the start.

    Attributes:
        steps: handles run so far.
        digest: of everything that was picked and recorded so far.
        interrupt: called with the process whose handle is next, when `steps` reaches
            `interrupt_at`; may kill or pause it.
        failures: exceptions that no code handled.
    """

    def __init__(self, random: Random, start: float = 0.0) -> None:
        super().__init__()
        self.steps = 0
        self.digest = 0
        self.interrupt_at = -1
        self.interrupt: Callable[[Process | None], None] = lambda _: None
        self.failures: list[dict[str, Any]] = []
        self._random = random.random
        self._time = start
        self._runnable: list[Handle] = []
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._order = 0
        self._tasks: dict[SimulationTask[Any], Context] = {}

    def time(self) -> float:
        """Virtual seconds."""
        return self._time

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """Make a handle runnable."""
        handle = Handle(callback, args, self, context)
        self._runnable.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle:
        """The same: there are no threads."""
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> TimerHandle:
        """Make a handle runnable `delay` seconds from now."""
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> TimerHandle:
        """Make a handle runnable at a time."""
        handle = TimerHandle(when, callback, args, self, context)
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, handle))
        return handle

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:
        """Cancelled timers are passed over when their time comes."""

    def create_future(self) -> Future[Any]:
        """A future; refused to the dead, so that no clean-up of theirs can wait for anything."""
        self.check_alive()
        return Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> Task[T]:
        """A task of the current process."""
        context = copy_context() if context is None else context
        owner = context.get(PROCESS)
        if owner is None and (owner := PROCESS.get()) is not None:
            context.run(PROCESS.set, owner)  # a task in a fresh context is its creator's, too
        if owner is not None and not owner.alive:
            coro.close()
            raise KilledError(str(owner))
        self._order += 1
        task: SimulationTask[T] = SimulationTask.__new__(SimulationTask)
        task.number = self._order
        SimulationTask.__init__(task, coro, loop=self, name=name or "task", context=context)
        self._tasks[task] = context
        return task

    def spawn(self, process: Process | None, coro: Coroutine[Any, Any, T]) -> Task[T]:
        """A task of `process`."""
        context = copy_context()
        context.run(PROCESS.set, process)
        return context.run(self.create_task, coro, context=context)

    def run_in_executor(  # type: ignore[override]
        self, _executor: object, func: Callable[..., T], *args: Any
    ) -> Future[T]:
        """Run it here: a thread of its own would have an order of its own."""
        future: Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody handled, unless a dead process left it."""
        task = context.get("task") or context.get("future")
        owner = self._tasks[task].get(PROCESS) if task in self._tasks else None
        if owner is None or owner.alive:
            self.failures.append(context)

    def check_alive(self) -> None:
        """Refuse what a dead process does.

        Raises:
            KilledError: the current process is dead.
        """
        process = PROCESS.get()
        if process is not None and not process.alive:
            raise KilledError(str(process))

    def note(self, text: str) -> None:
        """Take what happened into the digest."""
        self.digest = zlib.crc32(text.encode(), self.digest)

    def kill(self, process: Process) -> None:
        """Nothing of it runs again."""
        process.alive = False
        process.paused = False
        process.parked.clear()

    def pause(self, process: Process) -> None:
        """Nothing of it runs until `unpause`."""
        process.paused = process.alive

    def unpause(self, process: Process) -> None:
        """It goes on where it was."""
        process.paused = False
        self._runnable += process.parked
        process.parked.clear()

    def step(self) -> bool:
        """Run one handle; False where none can ever run."""
        runnable = self._runnable
        while self._advance():
            index = int(self._random() * len(runnable))
            handle = runnable[index]
            last = runnable.pop()
            if last is not handle:
                runnable[index] = last
            if handle.cancelled() or not self._may_run(handle):
                continue
            self.steps += 1
            self._time += STEP
            self.digest = (self.digest * 33 + index) & 0xFFFFFFFF
            handle._run()  # noqa: SLF001
            return True
        return False

    def _advance(self) -> bool:
        """Make what is due runnable, after a jump in time if need be; False for nothing at all."""
        timers, runnable = self._timers, self._runnable
        while timers and (not runnable or timers[0][0] <= self._time):
            when, _, handle = heapq.heappop(timers)
            if not handle.cancelled():
                self._time = max(self._time, when)
                runnable.append(handle)
        return bool(runnable)

    def _may_run(self, handle: Handle) -> bool:
        process = handle._context.get(PROCESS)  # type: ignore[attr-defined] # noqa: SLF001
        if self.steps == self.interrupt_at:
            self.interrupt(process)
        if process is None:
            return True
        if process.paused:
            process.parked.append(handle)
        return process.alive and not process.paused

    def run_while(self, going_on: Callable[[], bool]) -> bool:
        """Step while `going_on()`; False where nothing could run any more before that."""
        step = self.step
        with self._running():
            while going_on():
                if not step():
                    return False
        return True

    def run_until_complete(self, future: Any) -> Any:
        """Run a coroutine to its end.

        Raises:
            RuntimeError: nothing can run any more, and it has not ended.
        """
        task = self.spawn(PROCESS.get(), future) if asyncio.iscoroutine(future) else future
        if not self.run_while(lambda: not task.done()):
            raise RuntimeError("nothing can run any more, and the task has not ended")
        return task.result()

    def unheard(self) -> list[tuple[Process | None, BaseException]]:
        """How tasks of the living failed whose result nobody has asked for."""
        found = []
        for task, context in self._tasks.items():
            owner = context.get(PROCESS)
            forgotten = task.done() and task._log_traceback  # noqa: SLF001
            if forgotten and (owner is None or owner.alive):
                error = task.exception()
                assert error is not None
                found.append((owner, error))
        return found

    def end(self, processes: list[Process]) -> None:
        """Kill every process and drop what they had in hand, without any effect."""
        for process in processes:
            self.kill(process)
        nobody = Process("nobody")
        self.kill(nobody)
        with self._running():
            for task, context in self._tasks.items():
                task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001
                if context.get(PROCESS) is None:
                    context.run(PROCESS.set, nobody)
                with suppress(BaseException):
                    for _ in range(CLOSINGS):
                        # not `close`: that gives up an inner coroutine whose clean-up waits
                        context.run(task.get_coro().throw, KilledError("the world has ended"))
        self._tasks.clear()
        self._runnable.clear()
        self._timers.clear()
        self.close()

    @contextmanager
    def _running(self) -> Iterator[None]:
        outer = events._get_running_loop()  # noqa: SLF001
        events._set_running_loop(self)  # noqa: SLF001
        try:
            yield
        finally:
            events._set_running_loop(outer)  # noqa: SLF001
