"""A bank in a simulated world: accounts in two databases, clients that transfer, many lives.

Owns `simulate`, which runs one seed from its first transfer to the last residue check.

The nodes: `app-1` and `app-2` are where clients run; each has a coordinator in its process, as the
library has. `keeper` has one too, and no clients. `bank-a` and `bank-b` serve the branches, each
with its own database. `stranger` asks for what never was. `log` is the transaction log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from bedstone.errors import Error
from bedstone.testing.simulation.bugs import planted
from bedstone.testing.simulation.database import Server
from bedstone.testing.simulation.faults import CALM, Rates, draw
from bedstone.testing.simulation.loop import Process
from bedstone.testing.simulation.oracle import Oracle, WatchedLog
from bedstone.testing.simulation.transfers import MODES, Bank, Style, Transfer
from bedstone.testing.simulation.world import World, tell
from bedstone.transactions.coordinator import Coordinator
from bedstone.transactions.errors import (
    DecisionUnknownError,
    TransactionAbortedError,
)
from bedstone.transactions.model import Branch, Phase, State, Transaction

ACCOUNTS: Final = 4
"""In each of the two databases."""
BALANCE: Final = 100
LEASE: Final = 3.0
BUSY: Final = 120.0
"""Virtual seconds that clients may go on among faults."""
PATIENCE: Final = 1_200.0
"""Virtual seconds in which everything must end once nothing goes wrong any more."""
LATEST: Final = 25.0
"""Virtual seconds after which no message is under way any more."""
GRACE: Final = 60.0
"""Virtual seconds that barrier rows are kept after their transaction's end."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one seed came to.

    Args:
        seed: the seed.
        mode: how transfers were made.
        steps: what the scheduler ran.
        transactions: how many began, by their end.
        faults: how many happened, by kind.
        digest: of the whole run.
        violation: which invariant does not hold, and how.
        timeline: what led there.
    """

    seed: int
    mode: str
    steps: int
    transactions: Counter[str]
    faults: Counter[str]
    digest: int
    violation: str | None
    timeline: str


def simulate(
    seed: int,
    *,
    mode: str = "tcc",
    bug: str | None = None,
    rates: Rates | None = None,
    transfers: int = 16,
    story: bool = False,
) -> Report:
    """Run one seed.

    Args:
        seed: decides everything.
        mode: one of `MODES`.
        bug: what to plant, by a name of `bugs.BUGS`.
        rates: what goes wrong; drawn from the seed where none is given.
        transfers: how many are tried.
        story: keep the whole time line, and give it even where nothing is violated.
    """
    if rates is None:
        rates = draw(Random(seed)) if seed % 16 else CALM  # noqa: S311 - the seed is to decide
    silence = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with planted(bug):
        town = Town(seed, rates, MODES[mode](), transfers)
        if story:
            town.world.timeline = deque()
        try:
            town.run()
        finally:
            town.world.end()
            logging.disable(silence)
    world = town.world
    states = Counter(str(it.state) for it in world.log.world.transactions.values())
    return Report(
        seed,
        mode,
        world.loop.steps,
        states,
        world.faults.counts,
        world.loop.digest,
        world.violation,
        tell(world.timeline) if world.violation or story else "",
    )


class Town:
    """The world with its bank.

    Args:
        seed: decides everything.
        rates: what goes wrong.
        style: how transfers are made.
        transfers: how many clients make.
    """

    def __init__(self, seed: int, rates: Rates, style: Style, transfers: int) -> None:
        self.world = World(seed, rates, WatchedLog)
        self.style = style
        self.oracle = Oracle(self.world, 2 * ACCOUNTS * BALANCE, tries=style.tries)
        assert isinstance(self.world.log, WatchedLog)
        self.world.log.oracle = self.oracle
        self._left = transfers
        self._number = 0
        self._in_hand: Counter[Process] = Counter()
        for letter in "ab":
            self._add_bank(letter)
        for name in ("app-1", "app-2", "keeper"):
            self.world.add(name, self._app)
        self.world.add("stranger", self._stranger)

    def run(self) -> None:
        """Run it through faults, calm, and the last checks."""
        world = self.world
        world.run(BUSY, lambda: self._left > 0 or self._busy(), steps=60_000)
        world.calm()
        self._left = 0
        ended = world.run(PATIENCE, self._busy)
        if world.violation is not None:
            return
        if not ended:
            self.oracle.finish()
            world.violate("end", "something goes on for ever")
            return
        world.run(LATEST, lambda: True)
        for name in ("app-1", "app-2", "keeper"):
            world.roll(name)
        world.run(LATEST / 2, lambda: True)
        for name in ("app-1", "app-2", "keeper"):
            world.crash(name)
        self.oracle.finish()
        world.run(GRACE * 3, lambda: True)
        for table in self.style.leftovers:
            self.oracle.rows(table)
        for _, error in world.loop.unheard():
            world.violate("error", f"a task failed and nobody heard: {error!r}")

    def _busy(self) -> bool:
        alive = any(count for process, count in self._in_hand.items() if process.alive)
        return alive or any(self.world.log.world.open.values())

    def _add_bank(self, letter: str) -> None:
        world = self.world
        server = Server(f"db-{letter}", world.network, self.style.schema, self.oracle.committed)
        for number in range(ACCOUNTS):
            server.load("INSERT INTO accounts VALUES (?, ?, 0)", f"{letter}{number}", BALANCE)
        world.servers[server.name] = server
        bank = Bank(world, server, self.style)

        async def main(process: Process) -> None:
            world.network.serve(process, bank.handle)
            await asyncio.Event().wait()

        world.add(f"bank-{letter}", main)

    async def _app(self, process: Process) -> None:
        world = self.world
        log = world.remote_log()

        async def call(transaction: Transaction, branch: Branch, phase: Phase) -> None:
            await world.network.call(branch.resource, "phase", transaction, branch, phase)

        coordinator = Coordinator(
            log, call, owner=str(process), lease=LEASE, jitter=world.random.random
        )
        async with coordinator:
            if process.name == "keeper":
                await asyncio.Event().wait()
            async with asyncio.TaskGroup() as group:
                for _ in range(2):
                    group.create_task(self._client(process, coordinator))
            await asyncio.Event().wait()

    async def _client(self, process: Process, coordinator: Coordinator) -> None:
        random = self.world.random
        while self._left > 0:
            self._left -= 1
            self._in_hand[process] += 1
            try:
                await self._transfer(coordinator, self._draw())
            finally:
                self._in_hand[process] -= 1
            await asyncio.sleep(random.random() * 0.05)

    def _draw(self) -> Transfer:
        random = self.world.random
        self._number += 1
        letters = random.choice(("ab", "ba", "ab", "ba", "aa"))
        numbers = random.sample(range(ACCOUNTS), 2)
        accounts = [f"{letter}{number}" for letter, number in zip(letters, numbers, strict=True)]
        amount = random.choice((1, 10, 60))
        return Transfer(f"t{self._number}", accounts[0], accounts[1], amount)

    async def _transfer(self, coordinator: Coordinator, transfer: Transfer) -> None:
        world, xid = self.world, transfer.xid
        world.note(f"{xid}: {transfer.amount} from {transfer.source} to {transfer.target}")
        try:
            await self.style.transfer(world, coordinator, transfer)
        except TransactionAbortedError:
            self.oracle.tell(xid, State.ABORTED)
        except DecisionUnknownError:
            world.note(f"{xid}: unknown to its caller")
        except Error as error:
            world.note(f"{xid}: {error!r}")
        else:
            self.oracle.tell(xid, State.COMMITTED)

    async def _stranger(self, process: Process) -> None:
        """Ask for ids that never were, and confirm what nobody has tried."""
        world, log = self.world, self.world.remote_log()

        async def call(transaction: Transaction, branch: Branch, phase: Phase) -> None:
            await world.network.call(branch.resource, "phase", transaction, branch, phase)

        coordinator = Coordinator(
            log, call, owner=str(process), lease=LEASE, jitter=world.random.random
        )
        number = 0
        while self._left > 0:
            number += 1
            xid = f"never-{process.number}-{number}"
            try:
                for ask in (log.get, coordinator.commit, coordinator.abort):
                    self.oracle.answered(xid, (await ask(xid)).state)
            except Error as error:
                world.note(f"stranger: {error!r}")
            try:
                await self.style.intrude(world, xid)
            except Error as error:
                world.note(f"stranger: {error!r}")
            await asyncio.sleep(1.0)


def failures(reports: Sequence[Report]) -> list[Report]:
    """Those in which an invariant did not hold."""
    return [report for report in reports if report.violation is not None]
