"""Random concurrent transactions over real databases, and the history that they leave.

Owns `Load`, `record` and `Recording`.

Rules:
- Some transactions abort of themselves, some when all is done but the decision; some
  initiators fall silent then, and are aborted at their deadline by whoever owns them.
- Who fails is told by its error; only where that can't be known, by the log, when all have ended.
- A last transaction reads everything when all have ended. A committed append that it does not see,
  and an aborted one that it sees, are `astray`.
- The choice is by seed; how they interleave is not: a history is what happened, once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bedstone.testing.histories import (
    Anomaly,
    Kind,
    Level,
    Operation,
    Txn,
    anomalies,
    strongest_level,
)
from bedstone.testing.history_files import dumped
from bedstone.transactions.errors import DecisionUnknownError
from bedstone.transactions.model import Log, State

if TYPE_CHECKING:
    from bedstone.testing.history_modes import Mode

IDS: Final = ("l0", "l1", "l2", "l3", "r0", "r1")
"""A database's registers: lists and values."""
_LOOK = 0.05
_LOST_TIMEOUT = 1.0


class End(StrEnum):
    """How a client ends a transaction."""

    COMMIT = "commit"
    EARLY = "early"  # an error within the work
    LATE = "late"  # an error when all is done but the decision
    LOST = "lost"  # silence, when all is done but the decision


@dataclass(frozen=True, slots=True)
class Load:
    """What clients do.

    Args:
        transactions: how many.
        clients: how many at once.
        registers: their names.
        longest: how many operations a transaction has at most.
        ends: how often each end is chosen.
        seed: what is chosen.
    """

    transactions: int = 120
    clients: int = 5
    registers: Sequence[str] = tuple(f"{place}/{it}" for place in "ab" for it in IDS)
    longest: int = 4
    ends: Mapping[End, int] = field(
        default_factory=lambda: {End.COMMIT: 85, End.EARLY: 5, End.LATE: 7, End.LOST: 3}
    )
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Recording:
    """What happened.

    Args:
        events: how each ended, by its own knowledge: ok, fail or unknown.
        history: all, the last being who read everything; what was unknown is known from the log.
        orders: of written registers.
    """

    events: tuple[tuple[str, Txn], ...]
    history: tuple[Txn, ...]
    orders: Mapping[str, Sequence[int]]

    @property
    def committed(self) -> int:
        """How many transactions."""
        return sum(txn.committed for txn in self.history) - 1

    def anomalies(self) -> tuple[Anomaly, ...]:
        """Those found."""
        return anomalies(self.history, self.orders)

    def names(self) -> set[str]:
        """What was found."""
        return {anomaly.name for anomaly in self.anomalies()}

    def level(self) -> Level:
        """The strongest level that is not disproved."""
        return strongest_level(self.history, self.orders)

    def astray(self) -> tuple[tuple[str, int], ...]:
        """Appends that are there and should not be, or are not there and should be."""
        there = {(it.register, value) for it in self.history[-1].operations for value in it.seen}
        there |= {(register, value) for register, order in self.orders.items() for value in order}
        right = {
            (it.register, it.value)
            for txn in self.history
            for it in txn.operations
            if txn.committed and it.kind in {Kind.APPEND, Kind.WRITE} and it.value is not None
        }
        return tuple(sorted(there ^ right))

    def save(self, path: Path) -> None:
        """Write it where `python -m bedstone.testing.histories` reads it."""
        import json

        lines = [json.dumps({"type": "invoke", "name": txn.name}) for _, txn in self.events]
        lines += [dumped(event, txn) for event, txn in self.events]
        unknown = {txn.name for event, txn in self.events if event == "unknown"} | {"last"}
        told = [txn for txn in self.history if txn.name in unknown]
        lines += [dumped("ok" if txn.committed else "fail", txn) for txn in told]
        orders = {register: list(order) for register, order in self.orders.items()}
        lines += [json.dumps({"type": "orders", "orders": orders})]
        path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True, slots=True)
class _Plan:
    operations: tuple[tuple[str, int | None], ...]
    end: End


class _PlannedError(Exception):
    """The client changes its mind."""


async def record(mode: Mode, load: Load) -> Recording:
    """Run a load through a mode."""
    plans = iter(_plans(load))
    events: list[tuple[str, Txn]] = []

    async def client() -> None:
        for plan in plans:
            events.append(await _run(mode, plan, f"T{len(events)}"))

    async with asyncio.TaskGroup() as group:
        for _ in range(load.clients):
            group.create_task(client())
    states = await settled(mode)
    known = [
        Txn(txn.name, txn.operations, committed=_committed(event, states.get(txn.name)))
        for event, txn in events
    ]
    last = Txn("last", tuple(await mode.all()))
    return Recording(tuple(events), (*known, last), await mode.orders())


def _plans(load: Load) -> Sequence[_Plan]:
    chance = random.Random(load.seed)  # noqa: S311 - repeatable
    fresh = count(1)
    ends, weights = list(load.ends), list(load.ends.values())
    return [
        _Plan(
            tuple(
                (register, next(fresh) if chance.random() < 0.5 else None)
                for register in chance.choices(load.registers, k=chance.randint(2, load.longest))
            ),
            chance.choices(ends, weights)[0],
        )
        for _ in range(load.transactions)
    ]


async def _run(mode: Mode, plan: _Plan, name: str) -> tuple[str, Txn]:
    """Run one."""
    notes: list[Operation] = []
    lost = plan.end is End.LOST
    scope = mode.transactions.transaction(name, timeout=_LOST_TIMEOUT if lost else 30.0)
    event = "ok"
    try:
        async with scope:
            await _work(mode, plan, notes)
            if lost:
                event = "unknown"
                await _silence(mode, scope.xid)
            if plan.end is not End.COMMIT:
                raise _PlannedError
    except DecisionUnknownError:
        event = "unknown"
    except Exception:  # noqa: BLE001 - whatever it is, it has aborted
        event = "unknown" if event == "unknown" else "fail"
    return event, Txn(scope.xid or name, tuple(notes), committed=event == "ok")


async def _silence(mode: Mode, xid: str) -> None:
    """Do nothing until others have ended it."""
    while True:
        found = await mode.transactions.ask(lambda _, log: log.get(xid))
        if found.state.ended:
            return
        await asyncio.sleep(_LOOK)


async def _work(mode: Mode, plan: _Plan, notes: list[Operation]) -> None:
    async with mode.session(notes) as session:
        for register, value in plan.operations:
            if value is None:
                await session.read(register)
            else:
                await session.change(register, value)
        if plan.end is End.EARLY:
            raise _PlannedError


async def settled(mode: Mode) -> dict[str, State]:
    """Every transaction's state, once all have ended."""

    async def states(log: Log) -> dict[str, State]:
        return {it.xid: it.state for it in await log.list(limit=100_000)}

    while True:
        found = await mode.transactions.ask(lambda _, log: states(log))
        if all(state.ended for state in found.values()):
            return found
        await asyncio.sleep(_LOOK)


def _committed(event: str, state: State | None) -> bool:
    return event == "ok" if event != "unknown" else state is State.COMMITTED
