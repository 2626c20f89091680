"""Runs one action or one compensation of a saga's step.

Owns the local transaction around a step that has a database: the barrier's row first, then the
developer's function, then its result into the barrier's row, then the commit.

Rules:
- A repeated action returns the stored result; one that comes after its compensation fails with
  `TransactionDecidedError`, and leaves nothing.
- A compensation gets the result that its own database kept, whatever the log knows.
- A blocking function is never left alone: who is cancelled waits for its end, so that nothing is
  undone while it is still being done.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakSet

from bedstone.errors import InvalidError, UnavailableError
from bedstone.telemetry import context as telemetry
from bedstone.transactions import barrier
from bedstone.transactions.barrier import Entered
from bedstone.transactions.connections import AsyncConnection, SyncConnection
from bedstone.transactions.databases import Database
from bedstone.transactions.errors import TransactionDecidedError
from bedstone.transactions.model import Phase
from bedstone.transactions.router import Threads, is_async
from bedstone.transactions.saga_plan import Context, Step, encode
from bedstone.transactions.sql import Dialect, Query, Result


class RaisedError(Exception):
    """The developer's function raised.

    Args:
        error: what it raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True, slots=True)
class Call:
    """Call the developer's function with the connection, and this."""

    function: Callable[..., Any]
    context: Context


Talk: TypeAlias = Generator[Query | Call, Any, Any]


async def act(step: Step, branch: str, context: Context, threads: Threads) -> Any:
    """Run a step's action; returns its result, as JSON gives it back.

    Raises:
        RaisedError: the action raised.
        TransactionDecidedError: it is undone already; nothing was done.
        Error: the database can't.
    """
    if step.database is None:
        value = await _call(step.action, context, threads)
        return json.loads(encode(f"the result of step {step.name}", value))
    return await _local(
        step.database, lambda dialect: _action(dialect, step, branch, context), threads
    )


async def undo(step: Step, branch: str, context: Context, threads: Threads) -> None:
    """Run a step's compensation, if there is one and something to undo.

    Raises:
        RaisedError: the compensation raised.
        Error: the database can't.
    """
    if step.database is not None:
        await _local(
            step.database, lambda dialect: _compensation(dialect, step, branch, context), threads
        )
    elif step.undo is not None:
        await _call(step.undo, context, threads)


async def recall(step: Step, xid: str, branch: str, threads: Threads) -> tuple[bool, Any]:
    """Whether a local step has ended, by its own database, and with what result."""
    if step.database is None:
        return False, None

    def talk(dialect: Dialect) -> Talk:
        if (yield from barrier.tried(dialect, xid, branch)) != Phase.TRY:
            return False, None
        return True, (yield from _stored(dialect, xid, branch))

    found: tuple[bool, Any] = await _local(step.database, talk, threads)
    return found


def _action(dialect: Dialect, step: Step, branch: str, context: Context) -> Talk:
    xid = context.xid
    match (yield from barrier.enter(dialect, xid, branch, Phase.TRY)):
        case Entered.PROCEED:
            _check_time(step)  # whoever was paused may come after the compensation was swept
            value = yield Call(step.action, context)
            text = encode(f"the result of step {step.name}", value)
            if value is not None:  # which a row without a result gives back
                yield from barrier.store_result(dialect, xid, branch, Phase.TRY, text)
            return json.loads(text)
        case Entered.SUSPENDED:
            raise TransactionDecidedError(
                f"step {step.name} of transaction {xid} was undone before it ran; nothing was done"
            )
    return (yield from _stored(dialect, xid, branch))


def _check_time(step: Step) -> None:
    if telemetry.current().remaining() == 0.0:
        raise UnavailableError(f"step {step.name}: its time had passed before it began")


def _compensation(dialect: Dialect, step: Step, branch: str, context: Context) -> Talk:
    xid = context.xid
    entered = yield from barrier.enter(dialect, xid, branch, Phase.CANCEL)
    if entered is Entered.PROCEED and step.undo is not None:
        result = yield from _stored(dialect, xid, branch)
        yield Call(step.undo, replace(context, result=result, ended=True))


def _stored(dialect: Dialect, xid: str, branch: str) -> Generator[Query, Result, Any]:
    text = yield from barrier.result(dialect, xid, branch, Phase.TRY)
    return None if text is None else json.loads(text)


async def _call(function: Callable[..., Any], context: Context, threads: Threads) -> Any:
    try:
        if is_async(function):
            return await function(context)
        value = await _to_its_end(threads, function, context)
        return await value if inspect.isawaitable(value) else value
    except Exception as error:
        raise RaisedError(error) from error


async def _local(database: Database, talk: Callable[[Dialect], Talk], threads: Threads) -> Any:
    if not database.is_async:
        return await _to_its_end(threads, _blocking, database, talk)
    async with database.connect() as db:
        if not isinstance(db, AsyncConnection):
            raise InvalidError(f"database {database.name} gives blocking connections now")
        if database not in _prepared:
            await db.begin()
            await db.run(barrier.ensure(db.dialect))
            # MySQL has committed it, and with it the transaction that `commit` would prove
            await (db.rollback() if db.dialect is Dialect.MYSQL else db.commit())
            _prepared.add(database)
        await db.begin(ours=True)
        value = await _converse(db, talk(db.dialect))
        await db.commit()
        return value


def _blocking(database: Database, talk: Callable[[Dialect], Talk]) -> Any:
    with database.connect_sync() as db:
        if database not in _prepared:
            db.begin()
            db.run(barrier.ensure(db.dialect))
            db.rollback() if db.dialect is Dialect.MYSQL else db.commit()
            _prepared.add(database)
        db.begin()
        value = _converse_blocking(db, talk(db.dialect))
        db.commit()
        return value


async def _converse(db: AsyncConnection, talk: Talk) -> Any:
    answer: Any = None
    while True:
        try:
            asked = talk.send(answer)
        except StopIteration as stop:
            return stop.value
        match asked:
            case Query():
                answer = await db.execute(asked)
            case Call(function, context):
                try:
                    answer = await function(db.raw, context)
                except Exception as error:
                    raise RaisedError(error) from error


def _converse_blocking(db: SyncConnection, talk: Talk) -> Any:
    answer: Any = None
    while True:
        try:
            asked = talk.send(answer)
        except StopIteration as stop:
            return stop.value
        match asked:
            case Query():
                answer = db.execute(asked)
            case Call(function, context):
                try:
                    answer = function(db.raw, context)
                except Exception as error:
                    raise RaisedError(error) from error


async def _to_its_end(threads: Threads, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a blocking function in a thread; who is cancelled waits for its end."""
    task = asyncio.ensure_future(threads.run(function, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # heard
        raise


_prepared: WeakSet[Database] = WeakSet()
"""Databases that have the barrier's table."""
