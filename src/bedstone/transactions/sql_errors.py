"""What a database driver's error means for the caller, for every driver that Bedstone knows.

Rules:
- What the server said decides (SQLSTATE, error number, SQLite's error name); a driver's class is
  asked only where there is no such code, because the connection is gone.
- A lost connection means "nothing applied", except while committing: then nobody knows.
- What is not recognised is not translated: `meaning` returns None.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from bedstone.errors import DeniedError, Error, UnavailableError, UnknownOutcomeError
from bedstone.transactions.sql import DuplicateError

_RETRY_STATES = ("40001", "40P01", "55P03", "57014", "53", "57P01", "57P02", "57P03", "25P03")
_RETRY_NUMBERS = {1205, 1213, 3572, 1020, 1040, 1041, 1053, 1203, 1226, 1317, 1969, 3024}
_LOST_NUMBERS = {0, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 2002, 2003, 2006, 2013, 2014, 2055}
_XA_RETRY = {1402, 1613, 1614}  # XA_RBROLLBACK, XA_RBTIMEOUT, XA_RBDEADLOCK
_DENIED_NUMBERS = {1044, 1142, 1143, 1227}
_DUPLICATE_NUMBERS = {1062, 1586}
_RETRY_SQLITE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_FULL")
_ENDING_STATES = {"57P01", "57P02", "57P03", "25P03"}  # the session is ended by the server
_GONE = (ConnectionError, TimeoutError, EOFError)
_LOST_CLASSES = {
    "ConnectionDoesNotExistError",
    "ConnectionFailureError",
    "ConnectionResetError",
    "InternalClientError",  # asyncpg, when the end of the session comes between two messages
    "OperationalError",
}


def meaning(error: BaseException, *, committing: bool = False) -> Error | None:
    """What an error means, or None for a plain mistake that the driver tells best itself.

    Args:
        error: what the driver raised; SQLAlchemy's is looked into.
        committing: whether COMMIT was under way, so that a lost answer leaves the outcome unknown.
    """
    inner = getattr(error, "orig", None) or error
    if _lost(error, inner):
        if committing:
            return UnknownOutcomeError(
                f"the connection to the database was lost while it committed: {_words(inner)}",
                hint="ask for the transaction's outcome before it is run again",
            )
        return UnavailableError(f"the connection to the database was lost: {_words(inner)}")
    state, number, name = _state(inner), _number(inner), _sqlite(inner)
    if state == "23505" or number in _DUPLICATE_NUMBERS or _unique(name):
        return DuplicateError(f"a row with that key exists: {_words(inner)}")
    if state == "42501" or number in _DENIED_NUMBERS:
        return DeniedError(f"the database refused: {_words(inner)}")
    if (
        (state is not None and state.startswith(_RETRY_STATES))
        or number in _RETRY_NUMBERS | _XA_RETRY
        or (name is not None and name.startswith(_RETRY_SQLITE))
    ):
        return UnavailableError(f"the database could not do it now: {_words(inner)}")
    return None


def number(error: BaseException) -> int | None:
    """MySQL's error number, from the driver's error or the one that it was translated to."""
    inner: Any = error.__cause__ if isinstance(error, Error) else error
    return _number(getattr(inner, "orig", None) or inner)


def state(error: BaseException) -> str | None:
    """The SQLSTATE of PostgreSQL, from the driver's error or the one it was translated to."""
    inner: Any = error.__cause__ if isinstance(error, Error) else error
    return _state(getattr(inner, "orig", None) or inner)


def _words(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _lost(outer: BaseException, error: Any) -> bool:
    if getattr(outer, "connection_invalidated", False) or isinstance(error, _GONE):
        return True
    state = _state(error)
    if state is not None:
        return state.startswith("08") or state in _ENDING_STATES
    if (number := _number(error)) is not None:
        return number in _LOST_NUMBERS
    names = {kind.__name__ for kind in type(error).__mro__}
    if "InterfaceError" in names:  # mostly misuse
        return "closed" in str(error)
    return bool(names & _LOST_CLASSES) and not isinstance(error, sqlite3.Error)


def _state(error: Any) -> str | None:
    """PostgreSQL's SQLSTATE: of psycopg and asyncpg, of psycopg2. MySQL's numbers say more."""
    if _of(error, "pymysql", "asyncmy"):
        return None
    for name in ("sqlstate", "pgcode"):
        if isinstance(value := getattr(error, name, None), str):
            return value
    return None


def _number(error: Any) -> int | None:
    """The number that PyMySQL and asyncmy put first; only theirs."""
    if not _of(error, "pymysql", "asyncmy"):
        return None
    first = error.args[0] if error.args else None
    return first if isinstance(first, int) else None


def _of(error: object, *packages: str) -> bool:
    return any(kind.__module__.startswith(packages) for kind in type(error).__mro__)


def _sqlite(error: Any) -> str | None:
    name = getattr(error, "sqlite_errorname", None)
    return name if isinstance(name, str) else None


def _unique(name: str | None) -> bool:
    return name in {"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"}
