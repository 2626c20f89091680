"""SQLAlchemy's engines, instrumented by events: connections and sessions are used as before.

Owns `instrument`.

Rules:
- SQLAlchemy's `commit` event runs before the driver's commit: the branch is enlisted and its record
  written there. A failure there rolls the driver's transaction back at once, and is raised.
- Rows that RETURNING gave are read for the images, and given to SQLAlchemy from memory.
- Many rows that the database numbers itself, in one statement (`insertmanyvalues`), are refused.
"""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from bedstone.errors import InvalidError
from bedstone.transactions.automatic_sessions import (
    Session,
    SyncSession,
    appended,
    came_between,
    registered,
    unlocked,
)
from bedstone.transactions.connections import adapt
from bedstone.transactions.connections_sync import SQLAlchemy
from bedstone.transactions.errors import LockConflictError
from bedstone.transactions.images import Capture
from bedstone.transactions.recording import Recorder
from bedstone.transactions.scope import Scope
from bedstone.transactions.sql import Result
from bedstone.transactions.sqlalchemy_dialects import refuse_autocommit
from bedstone.transactions.statement_text import refused
from bedstone.transactions.statements import Action, Statement
from bedstone.transactions.undo import save

if TYPE_CHECKING:
    from bedstone.transactions.automatic import Automatic

T = TypeVar("T")
_KEY = "bedstone_automatic"


def instrument(owner: Automatic, engine: Any) -> None:
    """Record what an Engine's or an AsyncEngine's connections write inside transactions."""
    from sqlalchemy import event

    target = getattr(engine, "sync_engine", engine)
    events = _Events(owner)
    event.listen(target, "before_cursor_execute", events.before, retval=True)
    event.listen(target, "after_cursor_execute", events.after)
    for name in ("begin", "commit", "rollback"):
        event.listen(target, name, getattr(events, name))
    for name in ("savepoint", "rollback_savepoint", "release_savepoint"):
        event.listen(target, name, getattr(events, name))
    event.listen(target, "prepare_twophase", events.prepare_twophase)
    event.listen(target, "handle_error", events.handle_error)


class _State(SyncSession):
    """One connection's recording. Its queries pass the events by."""

    def __init__(self, owner: Automatic, connection: Any) -> None:
        db = adapt(connection)
        if not isinstance(db, SQLAlchemy):
            raise InvalidError(f"got {connection!r}, expected a SQLAlchemy connection")
        Session.__init__(self, owner, db.dialect, db.style)
        self.db = db
        self.busy = False
        self.taken: list[tuple[Capture, Any]] = []
        self.reading: tuple[Statement, Any, list[str]] | None = None
        self.enlisted: Scope | None = None

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work inside an asynchronous engine's event."""
        from sqlalchemy.util import await_only

        return await_only(work)


class _Events:
    """The listeners of one engine."""

    def __init__(self, owner: Automatic) -> None:
        self._owner = owner

    def _state(self, connection: Any) -> _State:
        """A connection's state lives as long as its driver's transaction may."""
        state = connection.info.get(_KEY)
        if state is None or state.db.raw is not connection:
            recorder = state.recorder if state is not None else None
            state = connection.info[_KEY] = _State(self._owner, connection)
            state.recorder = recorder
        return state  # type: ignore[no-any-return]

    def before(
        self,
        connection: Any,
        cursor: Any,
        text: str,
        parameters: Any,
        context: Any,
        executemany: bool,  # noqa: FBT001 - SQLAlchemy's signature
    ) -> tuple[str, Any]:
        del cursor
        scope = self._owner.scope()
        if scope is None:
            return text, parameters
        state = self._state(connection)
        if state.busy:
            return text, parameters
        state.busy = True
        try:
            return self._before(state, scope, text, parameters, context, many=executemany)
        finally:
            state.busy = False

    def _before(
        self, state: _State, scope: Scope, text: str, parameters: Any, context: Any, *, many: bool
    ) -> tuple[str, Any]:
        connection = state.db.raw
        state.taken, state.reading = [], None
        style = getattr(context, "execute_style", None)
        if getattr(style, "name", "") == "INSERTMANYVALUES":
            raise refused(
                "many rows are inserted at once and their keys come back in any order",
                "create the engine with use_insertmanyvalues=False",
            )
        statement = state.analysed(text, parameters)
        refuse_autocommit(connection.dialect, connection.connection.dbapi_connection)
        recorder = state.recorder_of(scope)
        if statement.action in {Action.INSERT, Action.UPDATE, Action.DELETE}:
            self._prepare(state)
        elif statement.action is Action.LOCK:
            locks = state.db.run(recorder.locking(statement, parameters, self._owner.name))
            self._check(state, scope, locks)
            state.reading = (statement, parameters, locks)
        for each in parameters if many else [parameters]:
            taken = state.db.run(recorder.before(statement, each))
            if taken is not None:
                state.taken.append((taken, each))
        if many and statement.action is Action.INSERT:
            self._refuse_unknown(state, statement)
        suffix = state.taken[0][0].suffix if state.taken else ""
        return appended(text, suffix), parameters

    def _refuse_unknown(self, state: _State, statement: Statement) -> None:
        for taken, _ in state.taken:
            given = {taken.table.column(name) for name in statement.columns or taken.table.order}
            if taken.suffix or not given.issuperset(taken.table.key):
                raise refused(
                    "many rows are inserted whose keys the database makes",
                    "insert them one by one, or give the keys",
                )

    def _prepare(self, state: _State) -> None:
        if not state.db.raw.dialect.is_async:
            self._owner.prepare(state.db)
        elif not self._owner.prepared(state.db):
            state.wait(self._owner.prepare_async(None))

    def _check(self, state: _State, scope: Scope, locks: list[str]) -> None:
        if not state.db.raw.dialect.is_async:
            state.check(scope, locks)
            return
        state.wait(unlocked(self._owner.policy, scope, locks))

    def after(
        self,
        connection: Any,
        cursor: Any,
        text: str,
        parameters: Any,
        context: Any,
        executemany: bool,  # noqa: FBT001 - SQLAlchemy's signature
    ) -> None:
        del text, parameters, executemany
        state = connection.info.get(_KEY)
        if state is None or state.busy:
            return
        self._again(state, cursor.rowcount)
        if not state.taken:
            return
        taken, state.taken = state.taken, []
        recorder: Recorder = state.recorder
        count = cursor.rowcount if len(taken) == 1 else -1
        returned = None
        if cursor.description is not None:
            returned = self._returned(cursor, context, hidden=bool(taken[0][0].suffix))
        state.busy = True
        try:
            for one, parameters_ in taken:
                state.db.run(recorder.after(one, parameters_, count, returned))
        finally:
            state.busy = False

    def _again(self, state: _State, count: int) -> None:
        """After a locking read: ask also for the locks of rows that came in between."""
        reading, state.reading = state.reading, None
        if reading is None or state.recorder is None:
            return
        statement, parameters, locks = reading
        scope = self._owner.scope()
        if scope is not None and came_between(locks, count):
            state.busy = True
            try:
                steps = state.recorder.locking(statement, parameters, self._owner.name)
                self._check(state, scope, state.db.run(steps))
            finally:
                state.busy = False

    def _returned(self, cursor: Any, context: Any, *, hidden: bool) -> Result:
        from sqlalchemy.engine.cursor import FullyBufferedCursorFetchStrategy

        rows = cursor.fetchall()
        context.cursor_fetch_strategy = FullyBufferedCursorFetchStrategy(
            cursor, initial_buffer=[] if hidden else rows
        )
        columns = tuple(column[0] for column in cursor.description)
        return Result(tuple(tuple(row) for row in rows), columns, len(rows))

    def begin(self, connection: Any) -> None:
        """What fails from here on is no commit of the transaction before."""
        state = connection.info.get(_KEY)
        if state is not None and not state.busy:
            state.enlisted = None

    def commit(self, connection: Any) -> None:
        state = connection.info.get(_KEY)
        if state is None or not state.recording:
            if state is not None:
                state.recorder = None
            return
        state = self._state(connection)
        state.busy = True
        try:
            recorder, scope = state.ending()
            state.enlisted = scope
            if connection.dialect.is_async:
                branch = state.wait(registered(self._owner.policy, scope, state.branch(recorder)))
            else:
                branch = state.registered(scope, recorder)
            state.db.run(save(state.dialect, scope.xid, str(branch.number), recorder.record()))
        except BaseException as error:
            connection.connection.rollback()
            self._doom(state, error)
            raise
        finally:
            state.busy = False
            state.recorder = None

    def _doom(self, state: _State, error: BaseException) -> None:
        """What was enlisted and is not committed must not be confirmed."""
        scope, state.enlisted = state.enlisted, None
        if scope is None or isinstance(error, LockConflictError):
            return
        if state.db.raw.dialect.is_async:
            state.wait(scope.doom(error))
        else:
            scope.doom_sync(error)

    def handle_error(self, context: Any) -> None:
        state = context.connection.info.get(_KEY) if context.connection is not None else None
        if state is not None and state.enlisted is not None and not state.busy:
            with suppress(Exception):  # first: it may hold rows that the CANCEL waits for
                context.connection.connection.rollback()
            self._doom(state, context.original_exception)

    def rollback(self, connection: Any) -> None:
        state = connection.info.get(_KEY)
        if state is not None:
            state.recorder, state.taken, state.enlisted = None, [], None

    def savepoint(self, connection: Any, name: str | None) -> None:
        self._savepoint(connection, Action.SAVEPOINT, name)

    def rollback_savepoint(self, connection: Any, name: str, context: Any = None) -> None:
        del context
        self._savepoint(connection, Action.ROLLBACK_TO, name)

    def release_savepoint(self, connection: Any, name: str, context: Any = None) -> None:
        del context
        self._savepoint(connection, Action.RELEASE, name)

    def _savepoint(self, connection: Any, action: Action, name: str | None) -> None:
        scope = self._owner.scope()
        if scope is None:
            return
        recorder = self._state(connection).recorder_of(scope)
        recorder.marked(Statement(action, savepoint=(name or "").lower()))

    def prepare_twophase(self, connection: Any, xid: Any) -> None:
        del xid
        state = connection.info.get(_KEY)
        if state is not None and state.recording:
            raise refused("PREPARE TRANSACTION would commit it elsewhere")
