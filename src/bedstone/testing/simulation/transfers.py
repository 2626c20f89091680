"""How a simulated bank transfers money, by mode: what callers do, and what the banks do.

Owns a `Style` for each mode. What it calls is the library's public interface.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, ClassVar, Final

from bedstone.errors import ConflictError
from bedstone.telemetry import context as telemetry
from bedstone.testing.simulation.database import Connection
from bedstone.testing.simulation.edges import Home
from bedstone.testing.simulation.faults import Fate
from bedstone.testing.simulation.oracle import Effect, Part
from bedstone.testing.simulation.world import World
from bedstone.transactions import barrier, undo, web
from bedstone.transactions.automatic import Automatic, automatic
from bedstone.transactions.automatic_sessions import AsyncSession, Ran
from bedstone.transactions.calls import together
from bedstone.transactions.errors import (
    DecisionUnknownError,
    LockConflictError,
    TransactionAbortedError,
)
from bedstone.transactions.model import Branch, Mode, Phase, State, Transaction
from bedstone.transactions.router import PATH
from bedstone.transactions.saga import Context, Saga, parallel, saga, sequence, step
from bedstone.transactions.sql import Dialect, Query
from bedstone.transactions.sql import Style as SqlStyle
from bedstone.transactions.tcc import Tcc, tcc
from bedstone.transactions.xa import xa

ACCOUNTS: Final = "CREATE TABLE accounts (id TEXT PRIMARY KEY, balance INT, reserved INT)"
EFFECTS: Final = (
    "CREATE TABLE effects (xid TEXT, branch TEXT, phase TEXT, balance INT, reserved INT)"
)
EFFECT: Final = "INSERT INTO effects VALUES (?, ?, ?, ?, ?)"
"""Written with every change of an account: xid, branch, phase, change of balance, of reserved."""


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
        whole: whether its databases lock as a whole.
        dialect: whose SQL they understand.
    """

    tries: ClassVar[bool] = True
    schema: tuple[str, ...] = (ACCOUNTS, EFFECTS)
    leftovers: tuple[str, ...] = ()
    whole: ClassVar[bool] = False
    dialect: ClassVar[Dialect] = Dialect.SQLITE

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

    def effects(self, writes: Sequence[Query], change: int) -> Iterable[Effect]:
        """What a local transaction has done, by what it has written."""
        del change
        for write in writes:
            if write.text == EFFECT:
                xid, branch, phase, balance, reserved = tuple(write.parameters)
                total = int(str(balance)) + int(str(reserved))
                yield Effect(str(xid), str(branch), Phase(str(phase)), total)

    def means_aborted(self, error: Exception) -> bool:
        """Whether a caller who gets this may rely on the abort."""
        return not isinstance(error, DecisionUnknownError)

    def well_ended(self, state: State, parts: Sequence[Part]) -> bool:
        """Whether an ended transaction's parts all took effect, or left none."""
        if state is State.COMMITTED:
            return [part.phases[Phase.CONFIRM] for part in parts] == [1, 1]
        return all(
            part.phases[Phase.TRY] == part.phases[Phase.CANCEL] and part.change == 0
            for part in parts
        )


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
        await _forge(world, xid, Mode.TCC, "tcc/account-a")


class SagaStyle(Style):
    """A saga of two local steps, one after the other or side by side, with compensations."""

    schema = TccStyle.schema
    leftovers = TccStyle.leftovers

    def settle(self, home: Home) -> None:
        """Every process that has the code may go on with what another began."""
        for source, target in ("ab", "ba", "aa"):
            debit = step(
                "debit",
                partial(_move, "source", -1, Phase.TRY),
                undo=partial(_move, "source", 1, Phase.CANCEL),
                database=home.databases[source],
                fails_on=(ConflictError,),
            )
            credit = step(
                "credit",
                partial(_move, "target", 1, Phase.TRY),
                undo=partial(_move, "target", -1, Phase.CANCEL),
                database=home.databases[target],
            )
            for how in (sequence, parallel):
                name = f"{how.__name__}-{source}{target}"
                home.tools[name] = saga(Saga(name, how(debit, credit)), home.transactions)

    async def transfer(self, home: Home, transfer: Transfer) -> None:
        """Run it to its end."""
        # what a saga has put on an account may be spent before it is undone; so it goes to others
        transfer = replace(
            transfer, source=_account(transfer.source, 0), target=_account(transfer.target, 2)
        )
        how = home.world.random.choice(("sequence", "parallel"))
        made = home.tools[f"{how}-{transfer.source[0]}{transfer.target[0]}"]
        timeout = home.world.random.choice((0.5, 3.0, 10.0))
        await made.run(asdict(transfer), timeout=timeout)

    def means_aborted(self, error: Exception) -> bool:
        """Another error leaves the saga to go on."""
        return isinstance(error, TransactionAbortedError)

    def well_ended(self, state: State, parts: Sequence[Part]) -> bool:
        """All steps took effect; or none, or each was undone."""
        if state is State.COMMITTED:
            tried = [part.phases[Phase.TRY] - part.phases[Phase.CANCEL] for part in parts]
            return tried == [1, 1] and sum(part.change for part in parts) == 0
        return super().well_ended(state, parts)


class AutomaticStyle(Style):
    """AT: plain updates that are recorded, at the banks' services or at their databases."""

    schema = (ACCOUNTS, barrier.create_table(Dialect.SQLITE), undo.create_table(Dialect.SQLITE))
    leftovers = (barrier.TABLE, undo.TABLE)
    whole = True

    def __init__(self) -> None:
        self._confirmed: set[tuple[str, str]] = set()

    def settle(self, home: Home) -> None:
        """Every process may own such transactions."""
        for letter in "ab":
            home.tools[letter] = automatic(
                home.databases[letter], name=f"accounts-{letter}", transactions=home.transactions
            )

    async def transfer(self, home: Home, transfer: Transfer) -> None:
        """Two updates, each in a local transaction of its own."""
        random = home.world.random
        here = random.random() < 0.5
        parts = ((transfer.source, -transfer.amount), (transfer.target, transfer.amount))
        async with home.transactions.transaction("at", timeout=random.choice((0.5, 3.0, 10.0))):
            for account, amount in parts:
                if here:
                    await _update(home, account, amount)
                else:
                    await _ask_bank(home.world, account, amount)

    async def serve(self, home: Home, *request: Any) -> None:
        """A request that carries a transaction."""
        xid, remaining, account, amount = request
        with telemetry.with_transaction(xid), telemetry.deadline(max(remaining, 0.001)):
            await _update(home, account, amount)

    async def intrude(self, world: World, xid: str) -> None:
        """Confirm what was never committed."""
        await _forge(world, xid, Mode.AT, "at/accounts-a")

    def effects(self, writes: Sequence[Query], change: int) -> Iterable[Effect]:
        """By Bedstone's own rows: the barrier's, and the undo record's going."""
        own = [tuple(it.parameters) for it in writes if f"INTO {barrier.TABLE}" in it.text]
        empty = any(row[2:4] == (str(Phase.TRY), str(Phase.CANCEL)) for row in own)
        for xid, branch, phase, *_ in own:
            if not empty:
                yield Effect(str(xid), str(branch), Phase(str(phase)), change)
        if not own:
            for it in writes:
                if it.text.startswith("DELETE") and undo.TABLE in it.text:
                    values = [str(value) for value in it.parameters]
                    for xid, branch in zip(values[::2], values[1::2], strict=True):
                        if (xid, branch) not in self._confirmed:  # a record goes only once
                            self._confirmed.add((xid, branch))
                            yield Effect(xid, branch, Phase.CONFIRM, change)


class XaStyle(Style):
    """XA: local transactions that are prepared, and end as the log says."""

    tries = False
    schema = (*TccStyle.schema, undo.create_table(Dialect.SQLITE))
    leftovers = TccStyle.leftovers
    dialect = Dialect.POSTGRES

    def settle(self, home: Home) -> None:
        """Every process may end what is prepared."""
        for letter in "ab":
            home.tools[letter] = xa(
                home.databases[letter], name=f"accounts-{letter}", transactions=home.transactions
            )

    async def transfer(self, home: Home, transfer: Transfer) -> None:
        """Two local transactions, at the banks or from here."""
        random = home.world.random
        here = random.random() < 0.5
        parts = ((transfer.source, -transfer.amount), (transfer.target, transfer.amount))
        async with home.transactions.transaction("xa", timeout=random.choice((0.5, 3.0, 10.0))):
            for account, amount in parts:
                if here:
                    async with home.tools[account[0]].xa() as db:
                        await change(db, Phase.CONFIRM, account, amount)
                else:
                    await _ask_bank(home.world, account, amount)

    async def serve(self, home: Home, *request: Any) -> None:
        """A request that carries a transaction."""
        xid, remaining, account, amount = request
        with telemetry.with_transaction(xid), telemetry.deadline(max(remaining, 0.001)):
            async with home.tools[account[0]].xa() as db:
                await change(db, Phase.CONFIRM, account, amount)

    async def intrude(self, world: World, xid: str) -> None:
        """Commit what was never prepared."""
        await _forge(world, xid, Mode.XA, "xa/accounts-a")


MODES: Final[dict[str, Callable[[], Style]]] = {
    "at": AutomaticStyle,
    "saga": SagaStyle,
    "tcc": TccStyle,
    "xa": XaStyle,
}


async def _update(home: Home, account: str, amount: int) -> None:
    """Change an account by two updates; where it is locked, try again a little later."""
    for pause in (0.02, 0.2, None):
        try:
            await _update_once(home.tools[account[0]], account, amount)
            return
        except LockConflictError:
            if pause is None:
                raise
            await asyncio.sleep(pause)


async def _update_once(at: Automatic, account: str, amount: int) -> None:
    text = "UPDATE accounts SET balance = balance + ? WHERE id = ? AND balance + ? >= 0"
    async with at.database.connect() as db:
        assert isinstance(db, Connection)
        session = AsyncSession(at, db, SqlStyle.QMARK)
        for part in (amount - amount // 2, amount // 2):
            values = (part, account, part)
            touched: list[int] = []

            async def run(changed: str, values: Any = values, touched: Any = touched) -> Ran:
                result = await db.execute(Query(changed, values))
                touched.append(result.count)
                return result.count, None

            await session.execute(text, values, run, autocommit=False)
            if touched != [1]:
                await session.rollback()
                raise ConflictError(f"there is too little on {account}")
        await session.commit()


async def _forge(world: World, xid: str, mode: Mode, name: str) -> None:
    resource = f"http://bank-a{PATH}{name}"
    payload = json.dumps({"arguments": {"account": "a0", "amount": 5}}).encode()
    branch = Branch(1, mode, resource, payload)
    forged = Transaction(xid, "forged", 0, 0, "stranger", 1, State.COMMITTING, (branch,))
    body = web.encode(forged, branch, Phase.CONFIRM)
    await world.network.call("bank-a", "phase", body, resource)


def _account(name: str, first: int) -> str:
    return f"{name[0]}{first + int(name[1:]) % 2}"


async def _move(end: str, sign: int, phase: Phase, db: Connection, context: Context) -> None:
    await change(db, phase, context.input[end], sign * context.input["amount"])


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
