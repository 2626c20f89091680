"""Coordinators over one log in memory, in virtual time: what their tests are played on.

Owns `Scene`: a simulation loop, the world of a log, and participants that do as they are told and
note who called them.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, TypeVar

from bedstone.testing.simulation.loop import Process, SimulationLoop
from bedstone.testing.transaction_log import MemoryLog, Plan, World, no_faults
from bedstone.transactions.coordinator import Coordinator
from bedstone.transactions.model import Branch, Event, Mode, Phase, State, Transaction

T = TypeVar("T")
Doing = Callable[[Transaction, Branch, Phase], Awaitable[None]]

EPOCH: Final = 1_700_000_000.0
"""What the log's clock shows when the loop's shows 0."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a participant."""

    owner: str
    xid: str
    number: int
    phase: Phase
    at: float


@dataclass(slots=True)
class Scene:
    """One play.

    Args:
        seed: of the order in which tasks run.
    """

    seed: int = 1
    world: World = field(default_factory=World)
    calls: list[Call] = field(default_factory=list)
    doing: dict[str, Doing] = field(default_factory=dict)
    """What a participant does, by resource; without an entry it succeeds."""
    loop: SimulationLoop = field(init=False)
    ids: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.loop = SimulationLoop(Random(self.seed))  # noqa: S311 - an order

    def play(self, scene: Coroutine[Any, Any, T]) -> T:
        """Run it to its end; what nobody handled fails it."""
        try:
            result: T = self.loop.run_until_complete(scene)
            assert self.loop.failures == []
            assert self.loop.unheard() == []
            return result
        finally:
            self.loop.end([])

    def now(self) -> float:
        """The log's clock."""
        return EPOCH + self.loop.time()

    def log(self, plan: Plan = no_faults) -> MemoryLog:
        """A way to the one log, with its own faults."""
        return MemoryLog(self.now, world=self.world, plan=plan)

    def coordinator(
        self, owner: str = "one", log: MemoryLog | None = None, **settings: Any
    ) -> Coordinator:
        """A coordinator of that name."""

        async def call(transaction: Transaction, branch: Branch, phase: Phase) -> None:
            at = self.loop.time()
            self.calls.append(Call(owner, transaction.xid, branch.number, phase, at))
            if branch.resource in self.doing:
                await self.doing[branch.resource](transaction, branch, phase)

        defaults = {"jitter": lambda: 1.0, "new_id": lambda: f"{owner}-{next(self.ids)}"}
        return Coordinator(log or self.log(), call, owner=owner, **(defaults | settings))

    def process(self, name: str, life: Coroutine[Any, Any, object]) -> Process:
        """A process of its own, which may be paused or killed, and lives this."""
        process = Process(name)
        self.loop.spawn(process, life)
        return process

    def told(self, xid: str) -> list[tuple[int, Phase]]:
        """Which branches of a transaction were called for what, in order."""
        return [(call.number, call.phase) for call in self.calls if call.xid == xid]

    def transaction(self, xid: str) -> Transaction:
        """As the log holds it."""
        return self.world.transactions[xid]

    def state(self, xid: str) -> State:
        """As the log holds it."""
        return self.transaction(xid).state

    def history(self, xid: str, kind: str) -> list[Event]:
        """Its events of a kind."""
        return [event for event in self.world.events[xid] if event.kind == kind]


def branches(*resources: str, mode: Mode = Mode.TCC) -> list[Branch]:
    """Branches of these resources, each with a lock of that name."""
    return [Branch(0, mode, resource, locks=(resource,)) for resource in resources]
