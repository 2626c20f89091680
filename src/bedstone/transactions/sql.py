"""What Bedstone says to a database, apart from how: dialects, queries, results and errors.

Owns the words that the barrier, AT, XA, the outbox and the drivers share. No I/O.

Rules:
- A conversation with a database is a generator (`Steps`): it yields queries and is sent results,
  so that one text serves blocking and asynchronous drivers.
- `?` marks a parameter. It is never one inside a literal, a quoted name or a comment.
- A native query is the developer's own: text, parameters and errors stay the driver's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias, TypeVar

from bedstone.errors import ConflictError

T = TypeVar("T")


class Dialect(StrEnum):
    """Whose SQL a database speaks; MYSQL is MySQL's and MariaDB's."""

    POSTGRES = "postgres"
    MYSQL = "mysql"
    SQLITE = "sqlite"


class Style(StrEnum):
    """How a driver marks parameters (PEP 249, `paramstyle`)."""

    QMARK = "qmark"
    FORMAT = "format"
    NUMBERED = "numeric_dollar"


@dataclass(frozen=True, slots=True)
class Query:
    """One statement.

    Args:
        text: with `?` for each parameter, or in the driver's own style when native.
        parameters: in order; a mapping only when native.
        native: it goes to the driver as it is, and its errors come back as they are.
    """

    text: str
    parameters: tuple[object, ...] | Mapping[str, object] = ()
    native: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement gave.

    Args:
        rows: all of them, in order; none for a statement that returns none.
        columns: their names.
        count: rows returned or touched, as the driver counts them; -1 when it does not say.
    """

    rows: tuple[tuple[object, ...], ...] = ()
    columns: tuple[str, ...] = ()
    count: int = -1


Steps: TypeAlias = Generator[Query, Result, T]
"""A pure conversation with a database: `result = yield Query(...)`, in the end `return value`."""


class DuplicateError(ConflictError):
    """A row with that unique key exists."""


_MARKS = re.compile(
    r"""(?P<kept>
          '(?:[^']|'')*'                # literal
        | "(?:[^"]|"")*"                # name, or a literal of MySQL
        | `(?:[^`]|``)*`                # name in MySQL
        | --[^\n]*                      # comments
        | /\*.*?\*/
        | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$  # literal in PostgreSQL
        )
      | (?P<mark>\?)""",
    re.VERBOSE | re.DOTALL,
)


def rendered(query: Query, style: Style) -> tuple[str, tuple[object, ...]]:
    """A query of ours in a driver's style, with its parameters.

    Without parameters the text is kept: a driver that is given none looks for no marks.
    """
    parameters: Any = query.parameters
    if not parameters:
        return query.text, ()
    return _marked(query.text, style), tuple(parameters)


def literal(query: Query) -> str | None:
    """A query of ours for PostgreSQL, its parameters in its text; None where that is not safe.

    Safe are printable ASCII and bytes: their literals mean the same under every setting.
    """
    parts = [_quoted(value) for value in query.parameters]
    if None in parts:
        return None
    values = iter(parts)
    return _MARKS.sub(
        lambda found: found[0] if found["mark"] is None else str(next(values)), query.text
    )


def _quoted(value: object) -> str | None:
    match value:
        case str() if value.isascii() and value.isprintable():
            return "E'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
        case bytes():
            return f"decode('{value.hex()}', 'hex')"
    return None


@functools.lru_cache(maxsize=1000)
def _marked(text: str, style: Style) -> str:
    """A text of ours with a driver's marks; there are few of them, again and again."""
    if style is Style.QMARK:
        return text
    text = text.replace("%", "%%") if style is Style.FORMAT else text
    number = 0

    def mark(found: re.Match[str]) -> str:
        nonlocal number
        if found["mark"] is None:
            return found[0]
        number += 1
        return "%s" if style is Style.FORMAT else f"${number}"

    return _MARKS.sub(mark, text)
