"""How a simulated bank transfers money, by mode: what callers do, and what the banks do.

Owns `Bank`, which serves branches at a database, and a `Style` for each mode.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from bedstone.errors import ConflictError, Error
from bedstone.testing.simulation.database import Connection, Server
from bedstone.testing.simulation.oracle import EFFECT
from bedstone.testing.simulation.world import World
from bedstone.transactions import barrier
from bedstone.transactions.barrier import Entered
from bedstone.transactions.coordinator import Coordinator
from bedstone.transactions.errors import TransactionAbortedError, TransactionDecidedError
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction
from bedstone.transactions.sql import Dialect, Query

ACCOUNTS: Final = "CREATE TABLE accounts (id TEXT PRIMARY KEY, balance INT, reserved INT)"
EFFECTS: Final = (
    "CREATE TABLE effects (xid TEXT, branch TEXT, phase TEXT, balance INT, reserved INT)"
)


@dataclass(frozen=True, slots=True)
class Transfer:
    """An amount from one account to another, under a transaction's id."""

    xid: str
    source: str
    target: str
    amount: int

    def branches(self, mode: Mode) -> tuple[Branch, Branch]:
        """The debit and the credit."""
        return (
            _branch(mode, self.source, -self.amount),
            _branch(mode, self.target, self.amount),
        )


class Style:
    """How transfers are made in one mode.

    Attributes:
        tries: whether a branch is tried before it is confirmed.
        schema: what every bank's database has.
        leftovers: tables that are empty once everything has ended and is swept.
    """

    tries: ClassVar[bool] = True
    schema: tuple[str, ...] = (ACCOUNTS, EFFECTS)
    leftovers: tuple[str, ...] = ()

    async def transfer(self, world: World, coordinator: Coordinator, transfer: Transfer) -> None:
        """What a caller does; returns where it is committed."""
        raise NotImplementedError

    async def serve(self, connection: Connection, xid: str, branch: Branch, phase: Phase) -> None:
        """What a bank does."""
        raise NotImplementedError

    async def intrude(self, world: World, xid: str) -> None:
        """What somebody does who has no business here; must have no effect."""


class Tcc(Style):
    """Reserve, then take or give back; every bank runs behind the barrier."""

    schema = (ACCOUNTS, EFFECTS, barrier.create_table(Dialect.SQLITE))

    async def transfer(self, world: World, coordinator: Coordinator, transfer: Transfer) -> None:
        """Both branches at once, or one after the other; then the decision."""
        timeout = world.random.choice((0.5, 3.0, 10.0))
        at_once = world.random.random() < 0.5
        xid, branches = transfer.xid, transfer.branches(Mode.TCC)
        try:
            begun = await coordinator.begin(
                "transfer", timeout, branches if at_once else (), xid=xid
            )
            if at_once:
                await asyncio.gather(*(_try(world, xid, branch) for branch in begun.branches))
            else:
                for branch in branches:
                    for registered in await coordinator.register(xid, [branch]):
                        await _try(world, xid, registered)
        except Error as error:
            await coordinator.abort(xid, str(error))
            raise TransactionAbortedError(f"{xid}: {error}") from error
        await coordinator.commit(xid)

    async def serve(self, connection: Connection, xid: str, branch: Branch, phase: Phase) -> None:
        """One phase behind the barrier, in one local transaction."""
        await connection.begin()
        try:
            entered = await connection.run(
                barrier.enter(connection.dialect, xid, str(branch.number), phase)
            )
            match entered:
                case Entered.PROCEED:
                    await _reserve_or_end(connection, xid, branch, phase)
                case Entered.SUSPENDED:
                    raise TransactionDecidedError(f"{xid}/{branch.number} is cancelled")
                case Entered.NOT_TRIED:
                    raise ConflictError(f"{xid}/{branch.number} was never tried")
                case Entered.REPEATED | Entered.EMPTY:
                    pass
            await connection.commit()
        except Error:
            await connection.rollback()
            raise

    async def intrude(self, world: World, xid: str) -> None:
        """Confirm what was never tried."""
        branch = replace(_branch(Mode.TCC, "a0", 5), number=1)
        forged = Transaction(xid, "forged", 0, 0, "stranger", 1, State.COMMITTING, (branch,))
        await world.network.call("bank-a", "phase", forged, branch, Phase.CONFIRM)


class Bank:
    """Serves branches at one database.

    Args:
        world: where it is.
        server: its database.
        style: what it does.
    """

    def __init__(self, world: World, server: Server, style: Style) -> None:
        self.world = world
        self.server = server
        self.style = style

    async def handle(self, kind: str, *request: Any) -> None:
        """Serve one call: a caller's `try`, or a coordinator's phase two."""
        if kind == "try":
            xid, branch = request
            phase = Phase.TRY
        else:
            transaction, branch, phase = request
            xid = transaction.xid
        connection = self.server.connect()
        try:
            await self.style.serve(connection, xid, branch, phase)
        finally:
            await connection.close()


MODES: Final[dict[str, Callable[[], Style]]] = {"tcc": Tcc}


def _branch(mode: Mode, account: str, amount: int) -> Branch:
    arguments = {"arguments": {"account": account, "amount": amount}}
    return Branch(0, mode, f"bank-{account[0]}", json.dumps(arguments).encode())


async def _try(world: World, xid: str, branch: Branch) -> None:
    await world.network.call(branch.resource, "try", xid, branch)


async def _reserve_or_end(connection: Connection, xid: str, branch: Branch, phase: Phase) -> None:
    arguments = json.loads(branch.payload)["arguments"]
    account, amount = arguments["account"], arguments["amount"]
    takes = max(-amount, 0)
    match phase:
        case Phase.TRY:
            balance, reserved = -takes, takes
        case Phase.CONFIRM:
            balance, reserved = max(amount, 0), -takes
        case Phase.CANCEL:
            balance, reserved = takes, -takes
    await change(connection, xid, str(branch.number), phase, account, balance, reserved)


async def change(
    connection: Connection,
    xid: str,
    branch: str,
    phase: Phase,
    account: str,
    balance: int,
    reserved: int = 0,
) -> None:
    """Change an account, and say so to the oracle, in the open local transaction.

    Raises:
        ConflictError: there is too little on it.
    """
    update = (
        "UPDATE accounts SET balance = balance + ?2, reserved = reserved + ?3 "
        "WHERE id = ?1 AND (?2 >= 0 OR balance + ?2 >= 0)"
    )
    result = await connection.execute(Query(update, (account, balance, reserved)))
    if result.count != 1:
        raise ConflictError(f"there is too little on {account}")
    await connection.execute(Query(EFFECT, (xid, branch, str(phase), balance, reserved)))
