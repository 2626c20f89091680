"""TCC: a participant that reserves in TRY, takes in CONFIRM, and gives back in CANCEL.

Owns `Tcc`, what a developer writes, and `Action`, what callers call.

Rules:
- Each phase is one local transaction of the participant's database: barrier row first, then the
  developer's method, then the commit. It runs at most once with effect, in the right order.
- Arguments are written into the log as JSON before TRY runs; all three phases get them as JSON
  gives them back. What JSON can't hold is refused before anything runs.
- The methods are `async def` for an asynchronous database and plain for a blocking one. Blocking
  ones run in threads when awaited.
- A failed TRY is never tried again by us, and dooms its transaction.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

from bedstone.errors import InvalidError, UnavailableError
from bedstone.transactions import barrier
from bedstone.transactions.barrier import Entered
from bedstone.transactions.connections import AsyncConnection
from bedstone.transactions.databases import Database, Source
from bedstone.transactions.databases import database as as_database
from bedstone.transactions.errors import StuckError, TransactionDecidedError
from bedstone.transactions.manager import Transactions, current, process, register
from bedstone.transactions.model import Branch, Mode, Phase, Transaction
from bedstone.transactions.router import Threads, is_async
from bedstone.transactions.scope import Scope
from bedstone.transactions.sql import Dialect

PREFIX = "tcc/"
_THREADS = Threads(32, "bedstone-try")


class Tcc(ABC):
    """A participant: three methods over one database.

    Each gets the database's own connection, in an open local transaction that Bedstone commits,
    and the same arguments. Use plain `def` with a blocking database.

    Example:
        >>> class Debit(Tcc):
        ...     async def try_(self, db, *, account, amount):
        ...         changed = await db.execute(
        ...             "UPDATE accounts SET balance = balance - %s, held = held + %s"
        ...             " WHERE id = %s AND balance >= %s",
        ...             (amount, amount, account, amount),
        ...         )
        ...         if changed.rowcount != 1:
        ...             raise ValueError("insufficient funds")
        ...
        ...     async def confirm(self, db, *, account, amount):
        ...         await db.execute(
        ...             "UPDATE accounts SET held = held - %s WHERE id = %s", (amount, account)
        ...         )
        ...
        ...     async def cancel(self, db, *, account, amount):
        ...         await db.execute(
        ...             "UPDATE accounts SET balance = balance + %s, held = held - %s"
        ...             " WHERE id = %s",
        ...             (amount, amount, account),
        ...         )
    """

    @abstractmethod
    def try_(self, db: Any, *args: Any, **kwargs: Any) -> Any:
        """Check and reserve; raise to refuse. Its result is the caller's."""

    @abstractmethod
    def confirm(self, db: Any, *args: Any, **kwargs: Any) -> Any:
        """Take what was reserved. It must succeed in the end: it is repeated until it does."""

    @abstractmethod
    def cancel(self, db: Any, *args: Any, **kwargs: Any) -> Any:
        """Give back what was reserved; likewise repeated. It is never asked without a TRY."""


class Action:
    """A TCC participant that can be called. Made by `tcc`.

    Args:
        kind: the developer's class; one instance serves all calls.
        database: where its local transactions run.
        name: its name in the log; by default the class's. It must not change while transactions
            that have it are open.
        transactions: the manager; by default the process's own, at each call.
    """

    def __init__(
        self,
        kind: type[Tcc],
        database: Database,
        name: str | None = None,
        transactions: Transactions | None = None,
    ) -> None:
        self.name = PREFIX + (name or kind.__name__)
        self.database = database
        self._own = transactions
        try:
            self._tcc = kind()
        except TypeError as error:
            raise InvalidError(
                f"{kind.__name__} can't be made: {error}",
                hint="define try_, confirm and cancel, and no arguments of its own",
            ) from error
        self._async = is_async(self._tcc.try_)
        self._prepared = False
        _check(self._tcc, database)
        self._signature = inspect.signature(self._tcc.try_)
        self._methods: dict[Phase, Callable[..., Any]] = {
            Phase.TRY: self._tcc.try_,
            Phase.CONFIRM: self._tcc.confirm,
            Phase.CANCEL: self._tcc.cancel,
        }
        participant = self._second_async if self._async else self._second_sync
        if transactions is None:
            register(self.name, participant, database)
        else:
            transactions.participant(self.name, participant, database)

    def __repr__(self) -> str:
        return f"Action({self.name!r}, {self.database!r})"

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Enlist and run TRY, inside a transaction; returns what `try_` returned.

        Raises:
            InvalidError: not inside a transaction, or arguments that don't fit or aren't JSON.
            TransactionDecidedError: too late; nothing was done.
            Exception: what `try_` raised; the transaction is aborted.
        """
        call = self.call(*args, **kwargs)
        scope = current()
        (branch,) = await scope.enlist(call.branch())
        return await call.perform(scope, branch)

    def sync(self, *args: Any, **kwargs: Any) -> Any:
        """`__call__` for blocking code."""
        call = self.call(*args, **kwargs)
        scope = current()
        (branch,) = scope.enlist_sync(call.branch())
        if self._async:
            return scope.transactions.run(call.perform(scope, branch))
        with scope.attempt_sync():
            return self._run(scope.xid, branch, Phase.TRY, call.arguments)

    def call(self, *args: Any, **kwargs: Any) -> TccCall:
        """The call, not run yet, for `together`.

        Raises:
            InvalidError: arguments that don't fit or aren't JSON.
        """
        try:
            bound = self._signature.bind(None, *args, **kwargs)
        except TypeError as error:
            raise InvalidError(f"{self.name}: {error}") from error
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        text = _encoded(self.name, arguments)
        return TccCall(self, text, json.loads(text)["arguments"])

    def resource(self) -> str:
        """What a branch's phase two is reached by."""
        return (self._own or process()).resource(self.name)

    async def attempt(self, xid: str, branch: Branch, arguments: dict[str, Any]) -> Any:
        """Run TRY as `branch`."""
        if self._async:
            return await self._run_async(xid, branch, Phase.TRY, arguments)
        return await _THREADS.run(self._run, xid, branch, Phase.TRY, arguments)

    async def _second_async(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        await self._run_async(transaction.xid, branch, phase, _arguments(branch))

    def _second_sync(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        self._run(transaction.xid, branch, phase, _arguments(branch))

    async def _run_async(
        self, xid: str, branch: Branch, phase: Phase, arguments: dict[str, Any]
    ) -> Any:
        async with self.database.connect() as db:
            if not isinstance(db, AsyncConnection):
                raise _mismatch(self._tcc, self.database)
            if not self._prepared:
                await db.begin()
                await db.run(barrier.ensure(db.dialect))
                # MySQL has committed it, and with it the transaction that `commit` would prove
                await (db.rollback() if db.dialect is Dialect.MYSQL else db.commit())
                self._prepared = True
            await db.begin(ours=True)
            entered = await db.run(barrier.enter(db.dialect, xid, str(branch.number), phase))
            result = None
            if _proceeds(entered, xid, branch, phase):
                result = await self._methods[phase](db.raw, **arguments)
            await db.commit()
            return result

    def _run(self, xid: str, branch: Branch, phase: Phase, arguments: dict[str, Any]) -> Any:
        with self.database.connect_sync() as db:
            if not self._prepared:
                db.begin()
                db.run(barrier.ensure(db.dialect))
                db.rollback() if db.dialect is Dialect.MYSQL else db.commit()
                self._prepared = True
            db.begin()
            entered = db.run(barrier.enter(db.dialect, xid, str(branch.number), phase))
            result = None
            if _proceeds(entered, xid, branch, phase):
                if phase is Phase.TRY:
                    current().check_time()
                result = self._methods[phase](db.raw, **arguments)
            db.commit()
            return result


@dataclass(frozen=True, slots=True)
class TccCall:
    """A call of an action that has not run yet; see `calls.Call`.

    Args:
        action: what is called.
        payload: what phase two needs.
        arguments: what TRY gets.
    """

    action: Action
    payload: bytes
    arguments: dict[str, Any]

    def branch(self) -> Branch:
        """What to register for it."""
        return Branch(0, Mode.TCC, self.action.resource(), self.payload)

    async def perform(self, scope: Scope, branch: Branch) -> Any:
        """Run TRY; see `Action.__call__`."""
        async with scope.attempt():
            return await self.action.attempt(scope.xid, branch, self.arguments)


@overload
def tcc(
    kind: type[Tcc],
    database: Source,
    *,
    name: str | None = None,
    transactions: Transactions | None = None,
) -> Action: ...


@overload
def tcc(
    kind: Source,
    database: None = None,
    *,
    name: str | None = None,
    transactions: Transactions | None = None,
) -> Callable[[type[Tcc]], Action]: ...


def tcc(
    kind: Any,
    database: Source | None = None,
    *,
    name: str | None = None,
    transactions: Transactions | None = None,
) -> Any:
    """Make a `Tcc` class callable, over a database: a function, and a decorator.

    Example:
        >>> debit = tcc(Debit, "postgresql://localhost/bank")
        >>> async def main() -> None:
        ...     async with transaction():
        ...         await debit(account="a", amount=5)

    Example:
        >>> @tcc("postgresql://localhost/bank")
        ... class Credit(Debit): ...

    Args:
        kind: the class; or, as a decorator, the database.
        database: see `databases.Source`.
        name: the participant's name in the log; by default the class's.
        transactions: the manager; by default the process's own.

    Raises:
        InvalidError: the three methods don't fit each other or the database, or the name is taken.
    """
    if database is not None:
        return Action(kind, as_database(database), name, transactions)
    if inspect.isclass(kind) and issubclass(kind, Tcc):
        raise InvalidError(
            f"got {kind.__name__} without a database",
            hint="write `tcc(Debit, database)`, or `@tcc(database)` above the class",
        )
    return lambda cls: Action(cls, as_database(kind), name, transactions)


def _check(instance: Tcc, database: Database) -> None:
    """Refuse methods that could not be called in phase two as they were in phase one."""
    kind = type(instance).__name__
    methods = {"try_": instance.try_, "confirm": instance.confirm, "cancel": instance.cancel}
    if len({is_async(method) for method in methods.values()}) > 1:
        raise InvalidError(f"{kind}: got plain and `async def` methods, expected all of one kind")
    if is_async(instance.try_) is not database.is_async:
        raise _mismatch(instance, database)
    parameters = list(inspect.signature(instance.try_).parameters.values())
    if not parameters:
        raise InvalidError(f"{kind}.try_ takes no connection, expected (self, db, …)")
    rest = parameters[1:]
    for parameter in rest:
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise InvalidError(
                f"{kind}.try_: got the parameter {parameter}, expected one with a name of its own",
                hint="what is called by name can be written into the log, and read back",
            )
    for name, method in methods.items():
        try:
            inspect.signature(method).bind(None, **{it.name: None for it in rest})
        except TypeError as error:
            raise InvalidError(
                f"{kind}.{name} doesn't take the arguments of try_: {error}",
                hint="give all three methods the same parameters",
            ) from error


def _mismatch(instance: Tcc, database: Database) -> InvalidError:
    kind, given = type(instance).__name__, "an asynchronous" if database.is_async else "a blocking"
    return InvalidError(
        f"{kind}: its methods don't fit {given} database ({database.name})",
        hint="write `async def` for asynchronous databases, which URLs of PostgreSQL open too, and "
        "plain methods for blocking engines, pools and functions",
    )


def _encoded(name: str, arguments: dict[str, Any]) -> bytes:
    try:
        return json.dumps({"arguments": arguments}, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(
            f"{name}: the arguments can't be written into the log as JSON: {error}",
            hint="pass text, numbers, booleans, lists and mappings; amounts as whole numbers of "
            "the smallest unit, or as text",
        ) from error


def _arguments(branch: Branch) -> dict[str, Any]:
    arguments: dict[str, Any] = json.loads(branch.payload)["arguments"]
    return arguments


def _proceeds(entered: Entered, xid: str, branch: Branch, phase: Phase) -> bool:
    """Whether the developer's method is to run; if not, and nothing is raised, all is done."""
    what = f"branch {branch.number} of transaction {xid}"
    match entered:
        case Entered.PROCEED:
            return True
        case Entered.REPEATED if phase is Phase.TRY:
            raise InvalidError(f"{what} was tried before, expected a branch of its own")
        case Entered.REPEATED | Entered.EMPTY:
            return False
        case Entered.SUSPENDED:
            raise TransactionDecidedError(
                f"{what} was cancelled before its TRY came; nothing was done"
            )
        case Entered.NOT_TRIED if branch.attempts < barrier.UNDER_WAY:
            raise UnavailableError(f"{what} is to be confirmed, and its TRY may be under way")
        case Entered.NOT_TRIED:
            raise StuckError(
                f"{what} is to be confirmed, and its TRY is not in the database",
                report={"resource": branch.resource, "xid": xid, "branch": branch.number},
                hint="was the database restored from a backup? do by hand what the payload says, "
                "then `bedstone tx repair`",
            )
