"""A simulated world: nodes that live several lives, databases, the log, and what befalls them.

Rules:
- A node's main runs in a process of its own; a crash ends the process, and a later life is a new
  process that knows nothing of the former one.
- The first violated invariant ends the run; the time line of what led there is kept.
- After `calm` nothing goes wrong any more: whatever is cut, paused or down comes back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from bedstone.testing.simulation import log as remote
from bedstone.testing.simulation.database import Server
from bedstone.testing.simulation.faults import Faults, Rates, Strike
from bedstone.testing.simulation.log import RemoteLog
from bedstone.testing.simulation.loop import Process, SimulationLoop
from bedstone.testing.simulation.network import Network
from bedstone.testing.transaction_log import MemoryLog

START: Final = 1_700_000_000.0
"""Virtual time at the start of every world."""
SHUTDOWN: Final = 5.0
"""Virtual seconds that a node may take to stop, before it is killed."""

Main = Callable[[Process], Awaitable[None]]


@dataclass(slots=True)
class Node:
    """A place where one process at a time lives.

    Args:
        name: its name on the network.
        main: what each life does; cancelled when it is to stop.
        process: the current life.
        task: what runs `main`.
    """

    name: str
    main: Main
    process: Process
    task: asyncio.Task[None] | None = None


class World:
    """Everything around the code under test.

    Args:
        seed: decides everything.
        rates: what goes wrong.
        log: the log's class.

    Attributes:
        violation: which invariant was violated, and how.
    """

    def __init__(self, seed: int, rates: Rates, log: type[MemoryLog] = MemoryLog) -> None:
        self.random = Random(seed)  # noqa: S311 - the seed is to decide
        self.loop = SimulationLoop(Random(seed + 1), START)  # noqa: S311
        self.faults = Faults(Random(seed + 2), rates)  # noqa: S311
        self.network = Network(self.loop, self.faults)
        self.log = log(self.loop.time)
        self.violation: str | None = None
        self.timeline: deque[tuple[float, int, str]] = deque(maxlen=60)
        self.nodes: dict[str, Node] = {}
        self.servers: dict[str, Server] = {}
        self._lives: list[Process] = []
        self.loop.interrupt = self._interrupt
        self.loop.interrupt_at = self.faults.next_strike()
        self.add(remote.NAME, self._serve_log)

    def remote_log(self) -> RemoteLog:
        """The log as a process reaches it."""
        return RemoteLog(self.network)

    def add(self, name: str, main: Main) -> None:
        """A node, and its first life."""
        self.nodes[name] = Node(name, main, Process(name, 0))
        self.boot(name)

    def boot(self, name: str) -> None:
        """Begin a node's next life, if it has none."""
        node = self.nodes[name]
        if node.process.alive and node.process.number:
            return
        node.process = Process(name, node.process.number + 1)
        self._lives.append(node.process)
        self.note(f"{node.process} starts")
        node.task = self.loop.spawn(node.process, self._live(node.main, node.process))

    def crash(self, name: str) -> None:
        """End a node's life with all that it had in hand."""
        process = self.nodes[name].process
        self.note(f"{process} is killed")
        self.loop.kill(process)
        for server in self.servers.values():
            server.disconnect(process)

    def roll(self, name: str) -> None:
        """Stop a node as an orchestrator does, and start it again."""
        node = self.nodes[name]
        if node.task is None or not node.process.alive:
            return
        self.note(f"{node.process} is told to stop")
        process = node.process
        node.task.add_done_callback(lambda _: self._stopped(process))
        node.task.cancel()
        self.network.later(SHUTDOWN, self._stopped, node.process)

    def calm(self) -> None:
        """Nothing goes wrong from now on."""
        self.note("calm")
        self.faults.active = False
        names = [*self.nodes, *self.servers]
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                self.network.heal(one, other)
        for node in self.nodes.values():
            self.loop.unpause(node.process)
            self.boot(node.name)

    def note(self, text: str) -> None:
        """Add to the time line."""
        self.loop.note(text)
        self.timeline.append((self.loop.time() - START, self.loop.steps, text))

    def violate(self, invariant: str, detail: str) -> None:
        """An invariant does not hold."""
        if self.violation is None:
            self.violation = f"{invariant}: {detail}"
            self.note(f"VIOLATED {self.violation}")

    def run(self, seconds: float, going_on: Callable[[], bool], *, steps: int = 200_000) -> bool:
        """Run while `going_on()`; False where time, steps or the world ended before."""
        end, last = self.loop.time() + seconds, self.loop.steps + steps

        def unfinished() -> bool:
            return (
                self.violation is None
                and self.loop.steps < last
                and self.loop.time() < end
                and going_on()
            )

        self.loop.run_while(unfinished)
        return not going_on()

    def end(self) -> None:
        """Drop everything."""
        self.loop.end(self._lives)
        for server in self.servers.values():
            server.close()

    async def _live(self, main: Main, process: Process) -> None:
        try:
            await main(process)
        except Exception as error:  # noqa: BLE001 - a process that fails ends, and is started again
            self.note(f"{process} fails: {error!r}")
            self.network.later(0.5, self._stopped, process)

    async def _serve_log(self, process: Process) -> None:
        await remote.serve(process, self.network, self.log)

    def _stopped(self, process: Process) -> None:
        if process.alive:
            self.note(f"{process} has stopped")
            self.loop.kill(process)
            for server in self.servers.values():
                server.disconnect(process)
            self.network.later(self.faults.delay(), self.boot, process.name)

    def _interrupt(self, process: Process | None) -> None:
        self.loop.interrupt_at = self.loop.steps + self.faults.next_strike()
        strike = self.faults.strike()
        if strike is None:
            return
        random = self.faults.random
        victim = process or self.nodes[random.choice(list(self.nodes))].process
        if not victim.alive or victim.paused:
            return
        self.faults.count(strike.value)
        match strike:
            case Strike.CRASH:
                self._crash_for_a_while(victim.name, 10 ** random.uniform(-2, 1.3))
            case Strike.PAUSE:
                seconds = 10 ** random.uniform(-1, 1.3)
                self.note(f"{victim} is paused for {seconds:.2f} s")
                self.loop.pause(victim)
                self.network.later(seconds, self._unpause, victim)
            case Strike.ROLL:
                self.roll(victim.name)
            case Strike.PARTITION:
                self._partition(victim.name, 10 ** random.uniform(-1, 1.2))
            case Strike.DATABASE:
                name = random.choice(list(self.servers))
                self.note(f"{name} restarts")
                self.servers[name].restart()
            case Strike.LOG:
                self._crash_for_a_while(remote.NAME, 10 ** random.uniform(-3, 0.5))

    def _crash_for_a_while(self, name: str, seconds: float) -> None:
        self.crash(name)
        self.network.later(seconds, self.boot, name)

    def _partition(self, name: str, seconds: float) -> None:
        others = [other for other in (*self.nodes, *self.servers) if other != name]
        other = self.faults.random.choice(others)
        self.note(f"{name} and {other} are cut off for {seconds:.2f} s")
        self.network.cut(name, other)
        self.network.later(seconds, self.network.heal, name, other)

    def _unpause(self, process: Process) -> None:
        if process.paused:
            self.note(f"{process} goes on")
            self.loop.unpause(process)


def tell(timeline: Sequence[tuple[float, int, str]]) -> str:
    """A time line for people."""
    return "\n".join(f"  {at:10.4f} s  step {step:>7}  {text}" for at, step, text in timeline)
