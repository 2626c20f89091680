"""How a simulated bank transfers money, by mode: what callers do, and what the banks do.

Owns a `Style` for each mode. What it calls is the library's public interface.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from bedstone.errors import ConflictError
from bedstone.telemetry import context as telemetry
from bedstone.testing.simulation.database import Connection
from bedstone.testing.simulation.edges import Home
from bedstone.testing.simulation.faults import Fate
from bedstone.testing.simulation.oracle import EFFECT
from bedstone.testing.simulation.world import World
from bedstone.transactions import barrier, web
from bedstone.transactions.calls import together
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction
from bedstone.transactions.router import PATH
from bedstone.transactions.sql import Dialect, Query
from bedstone.transactions.tcc import Tcc, tcc

ACCOUNTS: Final = "CREATE TABLE accounts (id TEXT PRIMARY KEY, balance INT, reserved INT)"
EFFECTS: Final = (
    "CREATE TABLE effects (xid TEXT, branch TEXT, phase TEXT, balance INT, reserved INT)"
)


@dataclass(frozen=True, slots=True)
class Transfer:
    """An amount from one account to another."""

    source: str
    target: str
    amount: int


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

    def settle(self, home: Home) -> None:
        """Make participants known in a process: a bank's, or one with the application's code."""
        raise NotImplementedError

    async def transfer(self, home: Home, transfer: Transfer) -> None:
        """What a caller does; returns where it is committed."""
        raise NotImplementedError

    async def serve(self, home: Home, *request: Any) -> None:
        """What a bank does in phase one."""
        raise NotImplementedError

    async def intrude(self, world: World, xid: str) -> None:
        """What somebody does who has no business here; must have no effect."""


class _Account(Tcc):
    """Reserve, then take or give back."""

    async def try_(self, db: Connection, *, account: str, amount: int) -> None:
        """Reserve a debit; look at a credit."""
        takes = max(-amount, 0)
        await change(db, Phase.TRY, account, -takes, takes)

    async def confirm(self, db: Connection, *, account: str, amount: int) -> None:
        """Take, or put."""
        await change(db, Phase.CONFIRM, account, max(amount, 0), -max(-amount, 0))

    async def cancel(self, db: Connection, *, account: str, amount: int) -> None:
        """Give back."""
        takes = max(-amount, 0)
        await change(db, Phase.CANCEL, account, takes, -takes)


class TccStyle(Style):
    """TCC through the public interface: at the banks' own services, or at their databases."""

    schema = (ACCOUNTS, EFFECTS, barrier.create_table(Dialect.SQLITE))
    leftovers = (barrier.TABLE,)

    def settle(self, home: Home) -> None:
        """One action for each database: whoever takes over must have the application's code."""
        for letter in "ab":
            home.tools[letter] = tcc(
                _Account,
                home.databases[letter],
                name=f"account-{letter}",
                transactions=home.transactions,
            )

    async def transfer(self, home: Home, transfer: Transfer) -> None:
        """Calls to the banks, one after the other or at once; or all of it from here."""
        random = home.world.random
        way = random.choice(("calls", "calls at once", "here", "together"))
        timeout = random.choice((0.5, 3.0, 10.0))
        parts = ((transfer.source, -transfer.amount), (transfer.target, transfer.amount))
        calls = [home.tools[it[0]].call(account=it, amount=amount) for it, amount in parts]
        if way == "together":
            await together(*calls, name=way, timeout=timeout)
            return
        async with home.transactions.transaction(way, timeout=timeout):
            match way:
                case "calls":
                    for account, amount in parts:
                        await _ask_bank(home.world, account, amount)
                case "calls at once":
                    async with asyncio.TaskGroup() as group:
                        for account, amount in parts:
                            group.create_task(_ask_bank(home.world, account, amount))
                case _:
                    for account, amount in parts:
                        await home.tools[account[0]](account=account, amount=amount)

    async def serve(self, home: Home, *request: Any) -> None:
        """A request that carries a transaction."""
        xid, remaining, account, amount = request
        with telemetry.with_transaction(xid), telemetry.deadline(max(remaining, 0.001)):
            await home.tools[account[0]](account=account, amount=amount)

    async def intrude(self, world: World, xid: str) -> None:
        """Confirm what was never tried."""
        resource = f"http://bank-a{PATH}tcc/account-a"
        payload = json.dumps({"arguments": {"account": "a0", "amount": 5}}).encode()
        branch = Branch(1, Mode.TCC, resource, payload)
        forged = Transaction(xid, "forged", 0, 0, "stranger", 1, State.COMMITTING, (branch,))
        body = web.encode(forged, branch, Phase.CONFIRM)
        await world.network.call("bank-a", "phase", body, resource)


MODES: Final[dict[str, Callable[[], Style]]] = {"tcc": TccStyle}


async def _ask_bank(world: World, account: str, amount: int) -> None:
    """Call a bank's service, as over HTTP: the id and the time that is left go along.

    Such a request never comes twice: whoever repeats a business request asks for a second branch.
    """
    context, fate = telemetry.current(), world.faults.message()
    fate = Fate.DONE if fate is Fate.TWICE else fate
    request = (context.transaction, context.remaining(), account, amount)
    await world.network.call(f"bank-{account[0]}", "try", *request, fate=fate)


async def change(
    db: Connection, phase: Phase, account: str, balance: int, reserved: int = 0
) -> None:
    """Change an account, and say so to the oracle, in the open local transaction.

    Raises:
        ConflictError: there is too little on it.
    """
    update = (
        "UPDATE accounts SET balance = balance + ?2, reserved = reserved + ?3 "
        "WHERE id = ?1 AND (?2 >= 0 OR balance + ?2 >= 0)"
    )
    result = await db.execute(Query(update, (account, balance, reserved)))
    if result.count != 1:
        raise ConflictError(f"there is too little on {account}")
    xid, branch = db.branch
    await db.execute(Query(EFFECT, (xid, branch, str(phase), balance, reserved)))
