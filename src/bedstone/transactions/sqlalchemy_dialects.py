"""What SQLAlchemy's engines say of themselves, for its blocking and asynchronous connections."""

from __future__ import annotations

from typing import Any

from bedstone.errors import InvalidError
from bedstone.transactions.sql import Dialect, Style

NO_PARAMETERS = {"no_parameters": True}
"""The execution option that has a driver look for no parameter marks."""

_DIALECTS = {
    "postgresql": Dialect.POSTGRES,
    "mysql": Dialect.MYSQL,
    "mariadb": Dialect.MYSQL,
    "sqlite": Dialect.SQLITE,
}
_STYLES = {
    "qmark": Style.QMARK,
    "format": Style.FORMAT,
    "pyformat": Style.FORMAT,
    "numeric_dollar": Style.NUMBERED,
}


def dialect_of(bind: Any) -> tuple[Dialect, Style]:
    """The dialect and the parameter style of what has a `dialect`: an engine or a connection.

    Raises:
        InvalidError: it is another database, or a driver with another style.
    """
    name, style = bind.dialect.name, bind.dialect.paramstyle
    if name not in _DIALECTS or style not in _STYLES:
        raise InvalidError(
            f"got a SQLAlchemy engine for {name} with parameters as {style}, expected one of "
            f"{', '.join(_DIALECTS)} with one of {', '.join(_STYLES)}"
        )
    return _DIALECTS[name], _STYLES[style]


def refuse_autocommit(dialect: Any, driver: Any) -> None:
    """Refuse an engine whose statements each commit by themselves.

    Raises:
        InvalidError: it is one.
    """
    if dialect.name == "sqlite":  # an explicit BEGIN is honoured
        return
    if dialect.detect_autocommit_setting(driver):
        raise InvalidError(
            "the SQLAlchemy connection commits each statement by itself, expected a transaction",
            hint="leave isolation_level AUTOCOMMIT away for this engine",
        )
