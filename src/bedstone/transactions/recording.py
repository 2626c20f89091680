"""What one local transaction has written so far: its changes, ready to be an undo record.

Owns `Recorder`, one for each local transaction, and `Catalogue`, what a process knows of a
database's tables.

Rules:
- A savepoint that is rolled back takes the changes since with it.
- After a statement whose image failed, the local transaction is broken: it can't be committed.
- A statement that fails in the database changes nothing that is recorded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bedstone.errors import InvalidError
from bedstone.transactions.catalogue import Table, describe, effects, stamp
from bedstone.transactions.images import ROWS, Capture, Change, Key, capture, keys_of, lock
from bedstone.transactions.sql import Dialect, Result, Steps
from bedstone.transactions.statement_text import refused
from bedstone.transactions.statements import Action, Name, Statement
from bedstone.transactions.undo import Record, exact, settings

_KNOWN = 1000


@dataclass
class Catalogue:
    """What is known of a database's tables, as long as their stamps stay."""

    dialect: Dialect
    _tables: dict[tuple[Name, tuple[str, ...]], Table] = field(default_factory=dict)
    _harmless: set[tuple[str, ...]] = field(default_factory=set)

    def table(
        self, name: Name, settings: tuple[str, ...] = ()
    ) -> Steps[tuple[Table, dict[str, str]]]:
        """The table's description, read again when it has changed; and the session's settings."""
        seen, found = yield from stamp(self.dialect, name, settings)
        place = (name, seen)
        if place not in self._tables:
            if len(self._tables) >= _KNOWN:
                self._tables.clear()
            self._tables[place] = yield from describe(self.dialect, name)
        return self._tables[place], found

    def check(self, functions: tuple[str, ...]) -> Steps[None]:
        """Refuse functions that may write.

        Raises:
            UnsupportedStatementError: there is one.
        """
        if not functions or functions in self._harmless:
            return
        writing = yield from effects(self.dialect, functions)
        if writing is not None:
            raise refused(
                f"the function {writing} may write",
                "declare it STABLE or IMMUTABLE (MySQL: READS SQL DATA) if it does not",
            )
        if len(self._harmless) >= _KNOWN:
            self._harmless.clear()
        self._harmless.add(functions)


class Recorder:
    """The changes of one local transaction.

    Args:
        catalogue: of its database.
        xid: the distributed transaction that it is part of.
        limit: how many rows one statement may touch.
    """

    def __init__(self, catalogue: Catalogue, xid: str, limit: int = ROWS) -> None:
        self.xid = xid
        self.changes: list[Change] = []
        self.broken: str | None = None
        self._catalogue = catalogue
        self._limit = limit
        self._sequence = 0
        self._tables: dict[Name, Table] = {}
        self._settings: dict[str, str] | None = None
        self._savepoints: list[tuple[str, int]] = []

    def record(self) -> Record:
        """What undoes it all."""
        return Record(tuple(self.changes), self._settings or {})

    def locks(self, resource: str) -> tuple[str, ...]:
        """The global locks of the rows changed, each once."""
        places = ((c.schema, c.table, c.key) for c in self.changes)
        return tuple(
            dict.fromkeys(
                lock(resource, f"{schema}.{table}" if schema else table, key)
                for schema, table, key in places
            )
        )

    def before(self, statement: Statement, parameters: object) -> Steps[Capture | None]:
        """Before a statement runs; None for one that writes nothing.

        Raises:
            UnsupportedStatementError: it must not run.
            InvalidError: an earlier one broke the local transaction.
        """
        if self.broken is not None:
            raise InvalidError(self.broken, hint="roll back the local transaction")
        if statement.action is Action.BEGIN and self.changes:
            raise refused("MySQL commits what is open first", "commit or roll back before it")
        yield from self._catalogue.check(statement.functions)
        if statement.action not in {Action.INSERT, Action.UPDATE, Action.DELETE}:
            return None
        table = yield from self._table(statement)
        return (yield from capture(table, statement, parameters, self._limit))

    def after(
        self, taken: Capture, parameters: object, count: int, returned: Result | None = None
    ) -> Steps[None]:
        """After it has run.

        Raises:
            UnavailableError: others wrote in between; the local transaction is broken.
        """
        self.broken = "the images of a statement are missing; its local transaction can't commit"
        found = yield from taken.after(parameters, count, returned)
        self._sequence += 1
        table = taken.table
        self.changes.extend(
            Change(self._sequence, table.schema, table.name, key, before, after)
            for key, before, after in found
        )
        self.broken = None

    def locking(self, statement: Statement, parameters: object, resource: str) -> Steps[list[str]]:
        """The global locks of the rows that a locking read gives; it takes their local locks."""
        if statement.reading is None:
            return []
        table = yield from self._table(statement)
        keys: tuple[Key, ...] = yield from keys_of(table, statement.reading, parameters)
        return [lock(resource, table.full, key) for key in keys]

    def _table(self, statement: Statement) -> Steps[Table]:
        name = statement.name
        if name is None:
            raise refused("it names no table")
        if name not in self._tables:
            asked = settings(self._catalogue.dialect) if self._settings is None else ()
            table, found = yield from self._catalogue.table(name, asked)
            if asked:
                self._settings = exact(found)
            self._tables[name] = table
        return self._tables[name]

    def marked(self, statement: Statement) -> None:
        """Follow savepoints; an unknown one is left to the database's own refusal."""
        if statement.action is Action.SAVEPOINT:
            self._savepoints.append((statement.savepoint, len(self.changes)))
            return
        names = [name for name, _ in self._savepoints]
        if statement.savepoint not in names:
            return
        place = len(names) - 1 - names[::-1].index(statement.savepoint)
        if statement.action is Action.ROLLBACK_TO:
            del self.changes[self._savepoints[place][1] :]
            del self._savepoints[place + 1 :]
        else:
            del self._savepoints[place:]
