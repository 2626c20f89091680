"""The edges of the code under test: where it would reach for clock, chance, process or network.

Owns `Home`, what a simulated process has of the library, and `edges`, which puts the library's few
globals (the clock of deadlines, the process's own manager, ids, jitter) on the simulated world.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from bedstone.errors import InvalidError
from bedstone.telemetry import context as telemetry
from bedstone.testing.simulation.database import Connection, Server
from bedstone.testing.simulation.loop import PROCESS, Process
from bedstone.testing.simulation.world import World
from bedstone.transactions import manager, web
from bedstone.transactions.coordinator import Coordinator
from bedstone.transactions.databases import Database
from bedstone.transactions.manager import Transactions
from bedstone.transactions.model import Branch, Log, Participant, Phase, Transaction

Patch = Callable[[Any, str, object], None]

BEGUN: ContextVar[Callable[[str], None]] = ContextVar(
    "told the ids that are given", default=lambda _: None
)
"""Told the id of a transaction that the running code begins."""


@dataclass(slots=True)
class Home:
    """The library in one simulated process.

    Args:
        world: where it is.
        process: whose it is.
        transactions: its manager.
        databases: by the last letter of their names.
        tools: what a mode keeps here.
    """

    world: World
    process: Process
    transactions: Transactions
    databases: dict[str, Database]
    tools: dict[str, Any] = field(default_factory=dict)


def make_home(world: World, process: Process, lease: float, *, address: bool) -> Home:
    """The library as a process has it.

    Args:
        world: where it is.
        process: whose it is.
        lease: its coordinator's, in virtual seconds.
        address: whether others reach its participants.
    """
    transactions = Transactions(
        world.remote_log(),
        owner=str(process),
        address=f"http://{process.name}" if address else None,
        lease=lease,
        post=_poster(world),
    )
    databases = {name[-1]: _database(server) for name, server in world.servers.items()}
    return Home(world, process, transactions, databases)


async def serve_phase(home: Home, body: bytes, resource: str) -> None:
    """Do what the HTTP endpoint of participants does with a message."""
    router = await home.transactions.router()
    await router(*web.decode(body, resource))


@contextmanager
def edges(world: World, homes: dict[Process, Home]) -> Iterator[None]:
    """Put the library's globals on the world."""
    numbers = itertools.count(1)

    def process() -> Transactions:
        current = PROCESS.get()
        if current not in homes:
            raise InvalidError(f"got {current}, expected a process with a manager")
        return homes[current].transactions

    def coordinator(log: Log, call: Participant, owner: str, lease: float) -> Coordinator:
        return Coordinator(
            log,
            call,
            owner=owner,
            lease=lease,
            jitter=world.random.random,
            new_id=new_id,
        )

    def new_id() -> str:
        xid = f"t{next(numbers)}"
        BEGUN.get()(xid)
        return xid

    random.seed(0)  # what has no edge for its jitter draws from the module's own generator
    clock = SimpleNamespace(monotonic=world.loop.time, time=world.loop.time)
    chance = SimpleNamespace(random=world.random.random)
    with patches() as patch:
        patch(telemetry, "time", clock)
        patch(manager, "process", process)
        patch(manager, "_common", {})  # what this program has registered is not of this world
        patch(manager, "_common_databases", {})
        patch(import_module("bedstone.transactions.tcc"), "process", process)
        patch(import_module("bedstone.transactions.automatic"), "process", process)
        patch(import_module("bedstone.transactions.saga"), "random", chance)
        patch(manager, "_coordinator", coordinator)
        yield


@contextmanager
def patches() -> Iterator[Patch]:
    """A function that replaces attributes; all are put back in the end."""
    saved: list[tuple[Any, str, object]] = []

    def patch(owner: Any, attribute: str, value: object) -> None:
        saved.append((owner, attribute, vars(owner)[attribute]))
        setattr(owner, attribute, value)

    try:
        yield patch
    finally:
        for owner, attribute, value in reversed(saved):
            setattr(owner, attribute, value)


def _database(server: Server) -> Database:
    @asynccontextmanager
    async def opening() -> AsyncIterator[Connection]:
        connection = server.connect()
        try:
            yield connection
        finally:
            await connection.close()

    return Database(server.name, opening, is_async=True)


def _poster(world: World) -> Participant:
    async def post(transaction: Transaction, branch: Branch, phase: Phase) -> None:
        host = urlsplit(branch.resource).hostname or ""
        body = web.encode(transaction, branch, phase)
        await world.network.call(host, "phase", body, branch.resource)

    return post
