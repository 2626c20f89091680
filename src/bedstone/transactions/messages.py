"""Messages that go out if, and only if, a transaction commits.

Owns `Messages` (`publish`, inside a transaction) and `TwoPhaseMessage` (one local transaction and
one message, without any other participant).

Rules:
- Nothing is sent before the decision. CONFIRM publishes, under the id `xid/branch`, until the
  broker has it; CANCEL does nothing. It may arrive twice: the consumer's barrier takes that out.
- A two-phase message begins with one log write; the local transaction holds a barrier row. If the
  process dies before the decision, whoever takes over asks the database: row there → commit; row
  missing → its place is taken, so that a late local commit fails → abort. Never a guess.
- A two-phase message has no deadline: time alone does not tell whether the local commit was.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final

from bedstone.errors import Error, InvalidError, UnavailableError, UnknownOutcomeError
from bedstone.transactions import barrier
from bedstone.transactions.barrier import Entered
from bedstone.transactions.broker import Broker, Message, composed, open_broker, packed, unpacked
from bedstone.transactions.connections import AsyncConnection
from bedstone.transactions.databases import Database, Source
from bedstone.transactions.databases import database as as_database
from bedstone.transactions.errors import TransactionAbortedError
from bedstone.transactions.manager import Transactions, current, process, register
from bedstone.transactions.model import Branch, Event, Mode, Phase, Transaction
from bedstone.transactions.scope import whole
from bedstone.transactions.sql import Dialect

PREFIX: Final = "message/"
VARIABLE: Final = "BEDSTONE_BROKER_URL"
BRANCH: Final = "message"
"""The two-phase message's place in the barrier."""
FOREVER: Final = 100 * 365.25 * 86400


class Messages:
    """What a transaction publishes, through one broker.

    Example:
        >>> async def order(messages: Messages) -> None:
        ...     async with transaction("order"):
        ...         await reserve(item="lamp")
        ...         await messages.publish("orders.placed", {"item": "lamp"})

    Args:
        broker: or its URL; by default what $BEDSTONE_BROKER_URL says, at the first use.
        name: its name in the log; another process that has it can send what this one could not.
        transactions: the manager; by default the process's own.
        source: for CloudEvents; by default `/` and the workload's name.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        name: str = "default",
        transactions: Transactions | None = None,
        source: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = PREFIX + name
        self.clock = clock
        self.source = source or "/" + os.environ.get("BEDSTONE_WORKLOAD", "")
        self._broker = broker
        self._own = transactions
        self.register(self.name, self._second)

    def register(self, name: str, participant: Any, *databases: Database) -> None:
        """Let a participant be found by whoever goes on with a transaction."""
        if self._own is None:
            register(name, participant, *databases)
        else:
            self._own.participant(name, participant, *databases)

    @property
    def transactions(self) -> Transactions:
        """The manager."""
        return self._own or process()

    async def publish(
        self, subject: str, data: Any, *, headers: Mapping[str, str] | None = None
    ) -> str:
        """Send a message if the running transaction commits; returns the message's id.

        Raises:
            InvalidError: not inside a transaction, or the message can't be sent.
            TransactionDecidedError: too late; it will not be sent.
        """
        scope = current()
        (branch,) = await scope.enlist(self._branch(subject, data, headers))
        return identity(scope.xid, branch.number)

    def publish_sync(
        self, subject: str, data: Any, *, headers: Mapping[str, str] | None = None
    ) -> str:
        """`publish` for blocking code."""
        scope = current()
        (branch,) = scope.enlist_sync(self._branch(subject, data, headers))
        return identity(scope.xid, branch.number)

    async def deliver(self, transaction: Transaction, branch: Branch) -> None:
        """Send a branch's message, under the id that it always has."""
        message = unpacked(branch.payload)
        name = identity(transaction.xid, branch.number)
        headers = {**message.headers, "ce-id": name}
        await self.broker().publish(replace(message, id=name, headers=headers))

    def broker(self) -> Broker:
        """The broker; opened by its URL at the first use.

        Raises:
            InvalidError: none is named.
        """
        found = self._broker or os.environ.get(VARIABLE)
        if not found:
            raise InvalidError(
                f"no message broker: ${VARIABLE} is not set",
                hint="set it to a URL such as nats://user:password@host:4222, or give "
                "`Messages(broker)`",
            )
        if isinstance(found, str):
            found = self._broker = open_broker(found)
        return found

    def message(self, subject: str, data: Any, headers: Mapping[str, str] | None) -> Message:
        """The message, without its id, which the branch's number gives."""
        at = self.clock()
        return composed(subject, "", data, headers or {}, source=self.source, at=at)

    def _branch(self, subject: str, data: Any, headers: Mapping[str, str] | None) -> Branch:
        payload = packed(self.message(subject, data, headers))
        return Branch(0, Mode.MESSAGE, self.transactions.resource(self.name), payload)

    async def _second(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        if phase is Phase.CONFIRM:
            await self.deliver(transaction, branch)


class TwoPhaseMessage:
    """One local transaction of one database, and one message: both or neither.

    Example:
        >>> placed = TwoPhaseMessage(database, messages, name="orders")
        >>> async def order() -> None:
        ...     async with placed("orders.placed", {"item": "lamp"}) as db:
        ...         await db.execute("INSERT INTO orders (item) VALUES ('lamp')")

    Args:
        database: an asynchronous one; its connection is given to the block.
        messages: what sends.
        name: its name in the log; every process of the service makes the same, so that any of
            them can ask the database back.
    """

    def __init__(self, database: Source, messages: Messages, *, name: str) -> None:
        self.database: Database = as_database(database)
        if not self.database.is_async:
            raise InvalidError(
                f"database {self.database.name} blocks, expected an asynchronous one",
                hint="use the outbox with blocking databases (`publish_with_sync`)",
            )
        self.name = f"{messages.name}/{name}"
        self._messages = messages
        self._prepared = False
        messages.register(self.name, self._participant, self.database)

    @asynccontextmanager
    async def __call__(
        self, subject: str, data: Any, *, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Any]:
        """Open the local transaction, for the block; at its end commit it, then send.

        Raises:
            TransactionAbortedError: the commit was too late; nothing of it stays.
            UnknownOutcomeError: no answer; both or neither will be, once database and log answer.
        """
        manager = self._messages.transactions
        payload = packed(self._messages.message(subject, data, headers))
        branch = Branch(0, Mode.SAGA, manager.resource(self.name), payload)
        async with AsyncExitStack() as stack:
            db = await stack.enter_async_context(self.database.connect())
            if not isinstance(db, AsyncConnection):
                raise InvalidError(f"got a blocking connection of {self.database.name}")
            await self._prepare(db)
            begun = await manager.ask(
                lambda coordinator, _: coordinator.begin(self.name, FOREVER, [branch])
            )
            try:
                await db.begin(ours=True)
                entered = await db.run(barrier.enter(db.dialect, begun.xid, BRANCH, Phase.TRY))
                if entered is not Entered.PROCEED:
                    raise TransactionAbortedError(f"transaction {begun.xid} was given up before")
                yield db.raw
            except BaseException:
                await self._free(db, stack)
                await whole(self._given_up(begun))
                raise
            try:
                await db.commit()
            except BaseException as error:
                await self._free(db, stack)
                if not isinstance(error, UnknownOutcomeError):
                    await whole(self._given_up(begun))
                    raise
                await whole(self._settle(begun))
                return
        await whole(self._commit(begun))

    async def _free(self, db: AsyncConnection, stack: AsyncExitStack) -> None:
        """End what is open, and give the connection up: asking back takes one, maybe the same."""
        with suppress(Exception):  # a connection that can't has lost its transaction
            await db.rollback()
        with suppress(Exception):
            await stack.aclose()

    async def _given_up(self, begun: Transaction) -> None:
        """`_settle`, where the block has an error of its own, which says it all."""
        with suppress(Error):
            await self._settle(begun)

    async def _commit(self, begun: Transaction) -> None:
        """The local commit stands: so does the message, whatever the log says now."""
        manager = self._messages.transactions
        try:
            await manager.ask(lambda coordinator, _: coordinator.commit(begun.xid))
        except (UnavailableError, UnknownOutcomeError):
            await self._hand_over(begun)

    async def _settle(self, begun: Transaction) -> None:
        """Ask the database what became of the local transaction, and decide so.

        Raises:
            TransactionAbortedError: it was not committed, where the block had no error of its own.
            UnknownOutcomeError: the database does not say; the coordinator goes on asking.
        """
        manager = self._messages.transactions
        try:
            await self._ask_back(begun)
        except TransactionAbortedError:
            try:
                await manager.ask(
                    lambda coordinator, _: coordinator.abort(begun.xid, "not committed locally")
                )
            except Error:
                await self._hand_over(begun)
            raise
        except Error as error:
            await self._hand_over(begun)
            raise UnknownOutcomeError(
                f"the database does not say whether transaction {begun.xid} was committed",
                hint="its coordinator goes on asking; see `bedstone tx show`",
            ) from error
        await self._commit(begun)

    async def _hand_over(self, begun: Transaction) -> None:
        """Make it due now, for whoever owns it; if that fails too, for who takes over."""
        manager = self._messages.transactions
        event = Event(0.0, "signal", 1, {"name": "ask-back"})
        try:
            await manager.ask(lambda _, log: log.amend(begun.xid, event))
            manager.coordinator.wake()
        except Error:
            return

    async def _participant(self, transaction: Transaction, branch: Branch, phase: Phase) -> None:
        match phase:
            case Phase.TRY:
                await self._ask_back(transaction)
            case Phase.CONFIRM:
                await self._messages.deliver(transaction, branch)
            case Phase.CANCEL:
                return

    async def _ask_back(self, transaction: Transaction) -> None:
        """Return if the local transaction was committed; else see to it that it never will be.

        Raises:
            TransactionAbortedError: it was not.
            UnavailableError: the database does not answer, or the transaction is under way.
        """
        async with self.database.connect() as db:
            if not isinstance(db, AsyncConnection):
                raise InvalidError(f"got a blocking connection of {self.database.name}")
            await self._prepare(db)
            await db.begin(ours=True)
            cancel = barrier.enter(db.dialect, transaction.xid, BRANCH, Phase.CANCEL)
            entered = await db.run(cancel)
            if entered is Entered.PROCEED:  # the row is there: keep it, without a cancel beside it
                await db.rollback()
                return
            await db.commit()
        raise TransactionAbortedError(
            f"the local transaction of {transaction.xid} was not committed, and never will be"
        )

    async def _prepare(self, db: AsyncConnection) -> None:
        if not self._prepared:
            await db.begin()
            await db.run(barrier.ensure(db.dialect))
            await (db.rollback() if db.dialect is Dialect.MYSQL else db.commit())
            self._prepared = True


def identity(xid: str, branch: int) -> str:
    """The id of a branch's message."""
    return f"{xid}/{branch}"


default = Messages(name="process")
"""The process's own, of the broker that $BEDSTONE_BROKER_URL names."""


async def publish(subject: str, data: Any, *, headers: Mapping[str, str] | None = None) -> str:
    """Send a message if the running transaction commits; returns the message's id.

    Example:
        >>> async def order() -> None:
        ...     async with transaction("order"):
        ...         await publish("orders.placed", {"item": "lamp"})

    Raises:
        InvalidError: not inside a transaction, or the message can't be sent.
        TransactionDecidedError: too late; it will not be sent.
    """
    return await default.publish(subject, data, headers=headers)
