"""One connection whose writes inside a transaction are recorded, blocking or asynchronous.

Owns `SyncSession` and `AsyncSession`: what happens around a statement, a commit and a rollback.

Rules:
- Order at a commit: the branch with its locks is in the log → undo record and barrier are in the
  local transaction → local commit, once. A failure rolls the local transaction back.
- A lock conflict leaves the distributed transaction as it is: nothing was committed, its id stays,
  the local transaction may be run again. (A known failure elsewhere: a failed lock cleared the id,
  and the same work was then committed outside of the transaction.)
- Any other failure of a commit dooms the distributed transaction: what is in the log and not in the
  database must not be confirmed. The local transaction is rolled back first: it may hold rows that
  the CANCEL waits for.
- While it waits for a global lock, a local transaction holds its local ones; so the wait is bounded
  by `lock_wait`, and the holder's undo, which may need them, goes on after it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from bedstone.errors import InvalidError
from bedstone.telemetry import context as telemetry
from bedstone.transactions.connections import AsyncConnection, SyncConnection
from bedstone.transactions.errors import LockConflictError, TransactionDecidedError
from bedstone.transactions.images import ROWS
from bedstone.transactions.model import Branch, Mode
from bedstone.transactions.recording import Catalogue, Recorder
from bedstone.transactions.scope import Scope
from bedstone.transactions.sql import Dialect, Result, Style
from bedstone.transactions.statements import Action, Statement, analyse
from bedstone.transactions.undo import save

Ran: TypeAlias = tuple[int, Result | None]
"""Rows touched, and the rows that came back."""
_PAUSE = 0.02
WRITES = {Action.INSERT, Action.UPDATE, Action.DELETE}


class Owner(Protocol):
    """What a session asks of the instrumented database."""

    name: str
    policy: Policy

    def scope(self) -> Scope | None:
        """The transaction that the running code is in."""

    def resource(self) -> str:
        """Who does phase two."""

    def catalogue(self, dialect: Dialect) -> Catalogue:
        """What is known of its tables."""

    def prepare(self, connection: SyncConnection) -> None:
        """Make Bedstone's tables where they are missing."""

    async def prepare_async(self, connection: AsyncConnection | None) -> None:
        """Likewise."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How patient and how bounded.

    Args:
        lock_wait: seconds to wait for a global lock that another transaction holds.
        rows: how many rows one statement may touch.
        sleep: how blocking code waits.
        clock: seconds, monotonic.
    """

    lock_wait: float = 0.0
    rows: int = ROWS
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = field(default=time.monotonic)

    def pauses(self, scope: Scope) -> Iterator[float]:
        """How long to wait before each further attempt, until the patience ends."""
        until = self.clock() + min(self.lock_wait, scope.remaining())
        while (left := until - self.clock()) > 0:
            yield min(_PAUSE, left)


class Session:
    """What both kinds share: the recorder, and whose transaction it is part of."""

    def __init__(self, owner: Owner, dialect: Dialect, style: Style) -> None:
        self.owner = owner
        self.dialect = dialect
        self.style = style
        self.recorder: Recorder | None = None

    @property
    def recording(self) -> bool:
        """Whether something is recorded that is not committed."""
        recorder = self.recorder
        return recorder is not None and bool(recorder.changes or recorder.broken)

    def analysed(self, text: str, parameters: object) -> Statement:
        """What a statement does."""
        return analyse(text, self.dialect, self.style, bound=parameters is not None)

    def recorder_of(self, scope: Scope) -> Recorder:
        """The recorder of this local transaction.

        Raises:
            InvalidError: the local transaction is part of another distributed one.
        """
        recorder = self.recorder
        if recorder is None or (recorder.xid != scope.xid and not self.recording):
            catalogue = self.owner.catalogue(self.dialect)
            recorder = self.recorder = Recorder(catalogue, scope.xid, self.owner.policy.rows)
        if recorder.xid != scope.xid:
            raise InvalidError(
                f"the local transaction is part of transaction {recorder.xid}, got {scope.xid}",
                hint="commit or roll back before another transaction uses the connection",
            )
        return recorder

    def ending(self) -> tuple[Recorder, Scope]:
        """What a commit needs.

        Raises:
            TransactionDecidedError: the code has left the transaction.
            InvalidError: an image is missing.
        """
        recorder, scope = self.recorder, self.owner.scope()
        if recorder is None or recorder.broken is not None:
            message = recorder.broken if recorder and recorder.broken else "nothing is recorded"
            raise InvalidError(message, hint="the local transaction is rolled back; run it again")
        if scope is None or scope.xid != recorder.xid:
            raise TransactionDecidedError(
                f"the local transaction is part of transaction {recorder.xid}, which this code has "
                "left; it is rolled back",
                hint="commit inside the `with transaction():` block",
            )
        return recorder, scope

    def branch(self, recorder: Recorder) -> Branch:
        """The branch to enlist."""
        locks = recorder.locks(self.owner.name)
        return Branch(0, Mode.AT, self.owner.resource(), locks=locks)


def held_by_others(found: dict[str, str], xid: str) -> LockConflictError | None:
    """The error that says which row another transaction holds, if one does."""
    for lock, holder in found.items():
        if holder != xid:
            return LockConflictError(
                f"transaction {holder} holds the global lock {lock}",
                hint="try again; one that holds it for long may wait for a person: "
                "`bedstone tx ls --stuck`",
            )
    return None


class SyncSession(Session):
    """A blocking connection's."""

    def __init__(self, owner: Owner, db: SyncConnection, style: Style) -> None:
        super().__init__(owner, db.dialect, style)
        self.db = db

    def execute(
        self, text: str, parameters: object, run: Callable[[str], Ran], *, autocommit: bool
    ) -> None:
        """Run one statement; inside a transaction with its images.

        Args:
            text: the developer's.
            parameters: the developer's; None for none.
            run: runs a text with these parameters.
            autocommit: whether each statement is a local transaction, while none is open.
        """
        scope = self.owner.scope()
        if scope is None:
            run(text)
            return
        statement = self.analysed(text, parameters)
        alone = self._open(statement, autocommit=autocommit)
        try:
            self._recorded(scope, statement, text, parameters, run)
        except BaseException:
            if alone:
                self.rollback()
            raise
        if alone:
            self.commit()

    def _open(self, statement: Statement, *, autocommit: bool) -> bool:
        """Open a local transaction for what locks; whether it is this statement's alone."""
        self.owner.prepare(self.db)
        if statement.action not in WRITES | {Action.LOCK}:
            return False
        if self.db.in_transaction():
            return False
        self.db.begin()
        return autocommit

    def _recorded(
        self,
        scope: Scope,
        statement: Statement,
        text: str,
        parameters: object,
        run: Callable[[str], Ran],
    ) -> None:
        recorder = self.recorder_of(scope)
        locks: list[str] = []
        if statement.action is Action.LOCK:
            locks = self.db.run(recorder.locking(statement, parameters, self.owner.name))
            self.check(scope, locks)
        if statement.action in {Action.SAVEPOINT, Action.ROLLBACK_TO, Action.RELEASE}:
            run(text)
            recorder.marked(statement)
            return
        taken = self.db.run(recorder.before(statement, parameters))
        if taken is None:
            count, _ = run(text)
            if statement.action is Action.LOCK and came_between(locks, count):
                steps = recorder.locking(statement, parameters, self.owner.name)
                self.check(scope, self.db.run(steps))
            return
        count, returned = run(appended(text, taken.suffix))
        self.db.run(recorder.after(taken, parameters, count, returned))

    def check(self, scope: Scope, locks: list[str]) -> None:
        """Wait until no other transaction holds one of the locks.

        Raises:
            LockConflictError: one still does.
        """
        pauses = self.owner.policy.pauses(scope)
        while locks:
            found = scope.transactions.ask_sync(lambda _, log: log.locked(locks))
            conflict = held_by_others(found, scope.xid)
            if conflict is None:
                return
            if (pause := next(pauses, None)) is None:
                raise conflict
            self.owner.policy.sleep(pause)

    def commit(self) -> None:
        """Commit the local transaction as a branch.

        Raises:
            LockConflictError: nothing is committed, and the transaction goes on.
        """
        try:
            if self.recording:
                self.enlist()
            else:
                self.db.commit()
        finally:
            self.recorder = None

    def enlist(self) -> None:
        """Enlist, keep the record, and commit; else roll back, before the failure is told."""
        try:
            recorder, scope = self.ending()
        except BaseException:
            self.db.rollback()
            raise
        conflict: LockConflictError | None = None
        with scope.attempt_sync():
            try:
                number = str(self.registered(scope, recorder).number)
                self.db.run(save(self.dialect, scope.xid, number, recorder.record()))
                scope.check_time()
                self.db.commit()
            except LockConflictError as error:
                conflict = error
                self.db.rollback()
            except BaseException:
                self.db.rollback()
                raise
        if conflict is not None:
            raise conflict

    def registered(self, scope: Scope, recorder: Recorder) -> Branch:
        """The branch, with its locks, once they are free."""
        pauses = self.owner.policy.pauses(scope)
        while True:
            try:
                (branch,) = scope.enlist_sync(self.branch(recorder))
            except LockConflictError:
                if (pause := next(pauses, None)) is None:
                    raise
                self.owner.policy.sleep(pause)
            else:
                return branch

    def rollback(self) -> None:
        """Roll back; nothing is enlisted."""
        self.recorder = None
        self.db.rollback()


class AsyncSession(Session):
    """An asynchronous connection's; see `SyncSession`."""

    def __init__(self, owner: Owner, db: AsyncConnection, style: Style) -> None:
        super().__init__(owner, db.dialect, style)
        self.db = db

    async def execute(
        self,
        text: str,
        parameters: object,
        run: Callable[[str], Awaitable[Ran]],
        *,
        autocommit: bool,
    ) -> None:
        """Run one statement; inside a transaction with its images."""
        scope = self.owner.scope()
        if scope is None:
            await run(text)
            return
        statement = self.analysed(text, parameters)
        alone = await self._open(statement, autocommit=autocommit)
        try:
            await self._recorded(scope, statement, text, parameters, run)
        except BaseException:
            if alone:
                await self.rollback()
            raise
        if alone:
            await self.commit()

    async def _open(self, statement: Statement, *, autocommit: bool) -> bool:
        await self.owner.prepare_async(self.db)
        if statement.action not in WRITES | {Action.LOCK}:
            return False
        if self.db.in_transaction():
            return False
        await self.db.begin()
        return autocommit

    async def _recorded(
        self,
        scope: Scope,
        statement: Statement,
        text: str,
        parameters: object,
        run: Callable[[str], Awaitable[Ran]],
    ) -> None:
        recorder = self.recorder_of(scope)
        locks: list[str] = []
        if statement.action is Action.LOCK:
            steps = recorder.locking(statement, parameters, self.owner.name)
            locks = await self.db.run(steps)
            await unlocked(self.owner.policy, scope, locks)
        if statement.action in {Action.SAVEPOINT, Action.ROLLBACK_TO, Action.RELEASE}:
            await run(text)
            recorder.marked(statement)
            return
        taken = await self.db.run(recorder.before(statement, parameters))
        if taken is None:
            count, _ = await run(text)
            if statement.action is Action.LOCK and came_between(locks, count):
                steps = recorder.locking(statement, parameters, self.owner.name)
                await unlocked(self.owner.policy, scope, await self.db.run(steps))
            return
        count, returned = await run(appended(text, taken.suffix))
        await self.db.run(recorder.after(taken, parameters, count, returned))

    async def commit(self) -> None:
        """Commit the local transaction as a branch."""
        try:
            if self.recording:
                await self.enlist()
            else:
                await self.db.commit()
        finally:
            self.recorder = None

    async def enlist(self) -> None:
        """Enlist, keep the record, and commit; else roll back, before the failure is told."""
        try:
            recorder, scope = self.ending()
        except BaseException:
            await self.db.rollback()
            raise
        conflict: LockConflictError | None = None
        async with scope.attempt():
            try:
                branch = await registered(self.owner.policy, scope, self.branch(recorder))
                number = str(branch.number)
                await self.db.run(save(self.dialect, scope.xid, number, recorder.record()))
                await self.db.commit()
            except LockConflictError as error:
                conflict = error
                await self.db.rollback()
            except BaseException:
                await asyncio.shield(self.db.rollback())
                raise
        if conflict is not None:
            raise conflict

    async def rollback(self) -> None:
        """Roll back; nothing is enlisted."""
        self.recorder = None
        await self.db.rollback()


async def unlocked(policy: Policy, scope: Scope, locks: list[str]) -> None:
    """Wait until no other transaction holds one of the locks.

    Raises:
        LockConflictError: one still does.
    """
    pauses = policy.pauses(scope)
    while locks:
        found = await scope.transactions.ask(lambda _, log: log.locked(locks))
        conflict = held_by_others(found, scope.xid)
        if conflict is None:
            return
        if (pause := next(pauses, None)) is None:
            raise conflict
        await asyncio.sleep(pause)


async def registered(policy: Policy, scope: Scope, branch: Branch) -> Branch:
    """The branch, with its locks, once they are free."""
    pauses = policy.pauses(scope)
    while True:
        try:
            (numbered,) = await scope.enlist(branch)
        except LockConflictError:
            if (pause := next(pauses, None)) is None:
                raise
            await asyncio.sleep(pause)
        else:
            return numbered


def came_between(locks: list[str], count: int) -> bool:
    """Whether a locking read gave rows that were not there when its locks were asked for."""
    return len(locks) < count < sys.maxsize  # an unbuffered cursor doesn't know


def appended(text: str, suffix: str) -> str:
    """A statement with our RETURNING at its end."""
    return text.rstrip().rstrip(";") + suffix if suffix else text


def inside() -> bool:
    """Whether the running code is part of a transaction."""
    return telemetry.current().transaction is not None
