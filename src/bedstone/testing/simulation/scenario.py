"""A bank in a simulated world: accounts in two databases, clients that transfer, many lives.

Owns `simulate`, which runs one seed from its first transfer to the last residue check.

The nodes: `app-1` and `app-2` are where clients run. `bank-a` and `bank-b` are services, each with
its own database, that take part in transfers. `keeper` has the application's code, and no clients.
All of them have the library, with a coordinator each. `stranger` asks for what never was, `janitor`
sweeps the barriers and has what is stuck tried again, and `log` is the transaction log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final

from bedstone.errors import Error
from bedstone.testing.simulation.bugs import planted
from bedstone.testing.simulation.database import Server
from bedstone.testing.simulation.edges import BEGUN, Home, edges, make_home, serve_phase
from bedstone.testing.simulation.faults import CALM, Rates, draw
from bedstone.testing.simulation.loop import Process
from bedstone.testing.simulation.oracle import Oracle, WatchedLog
from bedstone.testing.simulation.transfers import MODES, Style, Transfer
from bedstone.testing.simulation.world import World, tell
from bedstone.transactions.coordinator import Coordinator
from bedstone.transactions.model import Event, Log, State, Transaction
from bedstone.transactions.sweeper import Sweeper

LIBRARY: Final = ("bank-a", "bank-b", "app-1", "app-2", "keeper")
"""The nodes that have the library."""
ACCOUNTS: Final = 4
"""In each of the two databases."""
BALANCE: Final = 100
LEASE: Final = 3.0
BUSY: Final = 120.0
"""Virtual seconds that clients may go on among faults."""
PATIENCE: Final = 400.0
"""Virtual seconds in which everything must end once nothing goes wrong any more."""
LATEST: Final = 25.0
"""Virtual seconds after which no message is under way any more."""
GRACE: Final = 90.0
"""Virtual seconds that barrier rows are kept after their transaction's end: longer than anybody is
paused, and any message late."""
RETRIES: Final = 3
"""How often a person has the same transaction tried again."""
SWEEP: Final = 5.0
"""Virtual seconds between two sweeps."""


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
            with edges(town.world, town.homes):
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
        self.oracle = Oracle(
            self.world,
            2 * ACCOUNTS * BALANCE,
            style.effects,
            style.well_ended,
            tries=style.tries,
        )
        assert isinstance(self.world.log, WatchedLog)
        self.world.log.oracle = self.oracle
        self._left = transfers
        self._in_hand: Counter[Process] = Counter()
        self.homes: dict[Process, Home] = {}
        for letter in "ab":
            self._add_server(letter)
        for name in LIBRARY:
            self.world.add(name, self._live)
        self.world.add("stranger", self._stranger)
        self.world.add("janitor", self._janitor)

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
        for name in LIBRARY:
            world.roll(name)
        world.run(LATEST / 2, lambda: True)
        for name in (*LIBRARY, "stranger"):
            world.crash(name)
        self.oracle.finish()
        world.run(GRACE + 4 * SWEEP, lambda: True)
        for table in self.style.leftovers:
            self.oracle.rows(table)
        for _, error in world.loop.unheard():
            world.violate("error", f"a task failed and nobody heard: {error!r}")

    def _busy(self) -> bool:
        alive = any(count for process, count in self._in_hand.items() if process.alive)
        return alive or any(self.world.log.world.open.values())

    def _add_server(self, letter: str) -> None:
        world = self.world
        server = Server(
            f"db-{letter}",
            world.network,
            self.style.schema,
            self.oracle.committed,
            dialect=self.style.dialect,
            whole=self.style.whole,
        )
        for number in range(ACCOUNTS):
            server.load("INSERT INTO accounts VALUES (?, ?, 0)", f"{letter}{number}", BALANCE)
        world.servers[server.name] = server

    async def _live(self, process: Process) -> None:
        """What every process with the application's code does."""
        bank = process.name.startswith("bank-")
        home = make_home(self.world, process, LEASE, address=bank)
        self.homes[process] = home
        self.style.settle(home)
        async with home.transactions:
            self.world.network.serve(process, partial(self._serve, home))
            if process.name.startswith("app-"):
                async with asyncio.TaskGroup() as group:
                    for _ in range(2):
                        group.create_task(self._client(home))
            await asyncio.Event().wait()

    async def _serve(self, home: Home, kind: str, *request: Any) -> None:
        if kind == "phase":
            await serve_phase(home, *request)
        else:
            await self.style.serve(home, *request)

    async def _client(self, home: Home) -> None:
        random = self.world.random
        while self._left > 0:
            self._left -= 1
            self._in_hand[home.process] += 1
            try:
                await self._transfer(home, self._draw())
            finally:
                self._in_hand[home.process] -= 1
            await asyncio.sleep(random.random() * 0.05)

    def _draw(self) -> Transfer:
        random = self.world.random
        letters = random.choice(("ab", "ba", "ab", "ba", "aa"))
        numbers = random.sample(range(ACCOUNTS), 2)
        accounts = [f"{letter}{number}" for letter, number in zip(letters, numbers, strict=True)]
        return Transfer(accounts[0], accounts[1], random.choice((1, 10, 60)))

    async def _transfer(self, home: Home, transfer: Transfer) -> None:
        world, xids = self.world, [""]
        what = f"{transfer.amount} from {transfer.source} to {transfer.target}"

        def begun(xid: str) -> None:
            xids[:] = [xid]
            world.note(f"{xid}: {home.process} transfers {what}")

        BEGUN.set(begun)
        try:
            await self.style.transfer(home, transfer)
        except (Error, ExceptionGroup) as error:
            world.note(f"{xids[0]}: {error!r}")
            if xids[0] and self.style.means_aborted(error):
                self.oracle.tell(xids[0], State.ABORTED)
        else:
            self.oracle.tell(xids[0], State.COMMITTED)

    async def _janitor(self, process: Process) -> None:
        home = make_home(self.world, process, LEASE, address=False)
        log = self.world.remote_log()
        async with asyncio.TaskGroup() as group:
            for source in home.databases.values():
                group.create_task(Sweeper(source, log, GRACE).run(SWEEP))
            group.create_task(self._operate(log))

    async def _operate(self, log: Log) -> None:
        """A person: once nothing goes wrong any more, has what is stuck tried again, some times."""
        tried: Counter[str] = Counter()
        while True:
            await asyncio.sleep(20.0)
            if self.world.faults.active:
                continue
            for transaction in await log.list(stuck=True):
                tried[transaction.xid] += 1
                if tried[transaction.xid] <= RETRIES and not transaction.state.ended:
                    detail: dict[str, object] = {"by": "operator", "why": "it is repaired"}
                    with suppress(Error):
                        await log.amend(transaction.xid, Event(0.0, "retried", detail=detail))

    async def _stranger(self, process: Process) -> None:
        """Ask for ids that never were, and confirm what nobody has tried."""
        world = self.world
        home = make_home(world, process, LEASE, address=False)
        self.style.settle(home)
        number = 0
        async with home.transactions as transactions:
            while self._left > 0:
                number += 1
                xid = f"never-{process.number}-{number}"
                for ask in (_get, _commit, _abort):
                    try:
                        found = await transactions.ask(partial(ask, xid))
                        self.oracle.answered(xid, found.state)
                    except Error as error:
                        world.note(f"stranger: {error!r}")
                try:
                    await self.style.intrude(world, xid)
                except Error as error:
                    world.note(f"stranger: {error!r}")
                await asyncio.sleep(1.0)
            await asyncio.Event().wait()


def failures(reports: Sequence[Report]) -> list[Report]:
    """Those in which an invariant did not hold."""
    return [report for report in reports if report.violation is not None]


async def _get(xid: str, _coordinator: Coordinator, log: Log) -> Transaction:
    return await log.get(xid)


async def _commit(xid: str, coordinator: Coordinator, _log: Log) -> Transaction:
    return await coordinator.commit(xid)


async def _abort(xid: str, coordinator: Coordinator, _log: Log) -> Transaction:
    return await coordinator.abort(xid)
