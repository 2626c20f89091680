"""The killer: chooses by seed whom, how and when, and keeps the time line.

Kinds: `kill` (SIGKILL), `stop` (SIGSTOP for longer than the lease, then SIGCONT, for the process
and all below it), `cut` (all connections to a server are cut, and new ones refused for a while).
Only processes of this run, by id; what the killer stopped goes on when it ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.accounts import asked
from tests.chaos.world import LEASE, World

_OWNERS = """
SELECT owner FROM bedstone.transactions WHERE ended_at IS NULL
GROUP BY owner ORDER BY count(*) DESC LIMIT 1
"""
OFTEN = 2
"""Services and databases are victims so many times as often as Envoy, node and server."""
PREFIX = "instance/chaos/default/"


@dataclass(frozen=True, slots=True)
class Deed:
    """What was done to whom."""

    at: float
    kind: str
    victim: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.at:7.2f}  {self.kind:<5} {self.victim}  {self.detail}".rstrip()


@dataclass
class Killer:
    """Kills until stopped.

    Args:
        world: whose processes.
        seed: of what it does.
        pause: seconds between two deeds, from and to.
    """

    world: World
    seed: int
    pause: tuple[float, float] = (1.0, 4.0)
    deeds: list[Deed] = field(default_factory=list)
    _start: float = field(default_factory=time.monotonic)
    _busy: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._dice = random.Random(f"{self.seed}/killer")
        self._kinds: dict[str, Callable[[str], Coroutine[Any, Any, None]]] = {
            "kill": self._kill,
            "stop": self._stop,
            "cut": self._cut,
        }

    def victims(self) -> dict[str, tuple[str, ...]]:
        """Who there is, and what can be done to them."""
        found: dict[str, tuple[str, ...]] = dict.fromkeys(
            ("teller", "coordinator", *self.world.banks), ("kill", "stop") * OFTEN
        )
        # Without these nothing moves at all, so that there is less to see.
        found |= dict.fromkeys(("envoy", "node", "server"), ("kill", "stop"))
        every = ("kill", "stop", "cut") * OFTEN
        found |= dict.fromkeys(("postgres-north", "postgres-south", "nats"), every)
        return found | ({"mariadb": every} if self.world.mariadb else {})

    def counts(self) -> Counter[str]:
        """How often each kind was done to whom."""
        return Counter(f"{deed.kind} {deed.victim}" for deed in self.deeds)

    async def run(self, seconds: float) -> None:
        """Do deeds for so long; afterwards everybody goes on who was stopped."""
        self._start = time.monotonic()
        # Whatever the seed, a short run too sees what outlives its coordinator.
        deck = [("coordinator", "stop"), ("coordinator", "kill")]
        async with asyncio.TaskGroup() as group:
            while (left := seconds - (time.monotonic() - self._start)) > 0:
                if not deck:
                    deck = [(v, kind) for v, kinds in self.victims().items() for kind in kinds]
                    self._dice.shuffle(deck)
                victim, kind = deck.pop()
                if victim not in self._busy:
                    self._busy.add(victim)
                    group.create_task(self._do(kind, victim))
                await asyncio.sleep(min(left, self._dice.uniform(*self.pause)))

    async def _do(self, kind: str, victim: str) -> None:
        try:
            await self._kinds[kind](victim)
        except (ProcessLookupError, LookupError) as error:
            self._note("none", victim, f"{kind}: {error!r}")
        finally:
            self._busy.discard(victim)

    def _note(self, kind: str, victim: str, detail: str = "") -> None:
        self.deeds.append(Deed(time.monotonic() - self._start, kind, victim, detail))

    async def _kill(self, victim: str) -> None:
        match victim:
            case "mariadb":
                assert self.world.mariadb is not None, "there is no MariaDB"
                self._note("kill", victim)
                await asyncio.to_thread(self.world.mariadb.restart, signal.SIGKILL)
            case "nats":
                self._note("kill", victim)
                self.world.nats.stop(signal.SIGKILL)
                await asyncio.sleep(self._dice.uniform(0.0, 2.0))
                await self.world.nats.start()
            case _:
                name, pid = await self._found(victim)
                os.kill(pid, signal.SIGKILL)
                self._note("kill", victim, name)

    async def _stop(self, victim: str) -> None:
        name, pid = await self._found(victim)
        seconds = LEASE + self._dice.uniform(0.5, 2.5)
        stopped = _signal([pid, *below(pid)], signal.SIGSTOP)
        try:
            stopped += _signal(set(below(pid)) - set(stopped), signal.SIGSTOP)
            self._note("stop", victim, f"{name} for {seconds:.1f} s")
            await asyncio.sleep(seconds)
        finally:
            _signal(stopped, signal.SIGCONT)

    async def _cut(self, victim: str) -> None:
        if victim.startswith("postgres-"):
            _, pid = await self._found(victim)
            clients = [p for p in below(pid) if b" 127.0.0.1(" in _command(p)]
            _signal(clients, signal.SIGTERM)
            self._note("cut", victim, f"{len(clients)} connections")
            return
        proxy = self.world.nats_proxy if victim == "nats" else self.world.mariadb_proxy
        assert proxy is not None, "there is no MariaDB"
        seconds = self._dice.uniform(0.0, LEASE)
        proxy.refusing = True
        proxy.cut()
        self._note("cut", victim, f"for {seconds:.1f} s")
        await asyncio.sleep(seconds)
        proxy.refusing = False

    async def _found(self, victim: str) -> tuple[str, int]:
        """The name and the process of one of them."""
        match victim:
            case "mariadb":
                assert self.world.mariadb is not None, "there is no MariaDB"
                return victim, self.world.mariadb.pid
            case "nats":
                assert self.world.nats.process is not None, "NATS is not running"
                return victim, self.world.nats.process.pid
            case "coordinator":
                rows = await asyncio.to_thread(self._owners)
                owner = str(rows[0][0])
                pids = await self.world.pids()
                at = re.search(r"-(\d+)-[0-9a-f]{8}$", owner)
                pid = int(at[1]) if at else pids.get("server", 0)
                if pid not in pids.values():
                    raise LookupError(f"{owner} has gone")
                return owner, pid
            case "postgres-north" | "postgres-south":
                start = f"postgres-chaos-default-{victim.removeprefix('postgres-')}"
            case "envoy" | "node" | "server":
                start = victim
            case _:
                start = f"{PREFIX}{victim}"
        pids = await self.world.pids()
        return self._dice.choice(sorted(it for it in pids.items() if it[0].startswith(start)))

    def _owners(self) -> list[tuple[Any, ...]]:
        try:
            return asked(self.world.url("north"), _OWNERS)
        except Exception as error:
            raise LookupError("the log does not answer") from error


def below(pid: int) -> list[int]:
    """All processes that descend from one."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                stat = (entry / "stat").read_text()
                parent = int(stat.rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, open_ = [], [pid]
    while open_:
        children = parents.get(open_.pop(), [])
        found += children
        open_ += children
    return found


def _signal(pids: Iterable[int], number: signal.Signals) -> list[int]:
    reached = []
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            reached.append(pid)
    return reached


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
