"""Bedstone's own tables in the databases of applications: whether one is there, and making it."""

from __future__ import annotations

from typing import Final

from bedstone.errors import DeniedError, InvalidError
from bedstone.transactions.sql import Dialect, Query, Steps

NOW: Final = {
    Dialect.POSTGRES: "extract(epoch FROM clock_timestamp())",
    Dialect.MYSQL: "UNIX_TIMESTAMP(NOW(6))",
    Dialect.SQLITE: "((julianday('now') - 2440587.5) * 86400.0)",
}
"""The database's clock, in seconds since the epoch."""
_EXISTS: Final = {
    Dialect.POSTGRES: "SELECT 1 FROM pg_class WHERE oid = to_regclass(?)",
    Dialect.MYSQL: "SELECT 1 FROM information_schema.tables "
    "WHERE table_schema = database() AND table_name = ?",
    Dialect.SQLITE: "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?",
}


def exists(dialect: Dialect, table: str) -> Steps[bool]:
    """Whether a table is there."""
    return bool((yield Query(_EXISTS[dialect], (table,))).rows)


def make(dialect: Dialect, table: str, statement: str) -> Steps[bool]:
    """Make a table where it is missing, in a local transaction of its own; says whether it did.

    MySQL commits the statement, and with it the local transaction.

    Raises:
        InvalidError: it is missing and can't be made.
    """
    if (yield from exists(dialect, table)):
        return False
    if dialect is Dialect.POSTGRES:  # IF NOT EXISTS alone fails when two make it at once
        yield Query("SELECT pg_advisory_xact_lock(hashtext(?))", (table,))
    try:
        yield Query(statement)
    except DeniedError as error:
        raise InvalidError(
            f"the table {table} is missing, and this role may not create it",
            hint=f"run as the owner of the schema: {statement}",
        ) from error
    return True
