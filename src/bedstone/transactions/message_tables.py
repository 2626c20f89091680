"""The tables of messages, beside the barrier: what is to be sent, and what nobody could handle.

Owns `bedstone_outbox` and `bedstone_dead`, as pure conversations with a database.

Rules:
- Rows of the outbox are taken with a lock that others skip, in the order they were written, and
  deleted in the same local transaction once the broker has them.
- Of rows with the same `ordering` only the first is taken: the next one waits until it is gone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from bedstone.errors import InvalidError
from bedstone.transactions import own_tables
from bedstone.transactions.broker import Message
from bedstone.transactions.sql import Dialect, Query, Steps

OUTBOX = "bedstone_outbox"
DEAD = "bedstone_dead"

_NUMBER = {
    Dialect.POSTGRES: "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    Dialect.MYSQL: "BIGINT AUTO_INCREMENT PRIMARY KEY",
    Dialect.SQLITE: "INTEGER PRIMARY KEY AUTOINCREMENT",
}
_TEXT = {
    Dialect.POSTGRES: "text",
    Dialect.MYSQL: "VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    Dialect.SQLITE: "TEXT",
}
_LONG = {Dialect.POSTGRES: "text", Dialect.MYSQL: "LONGTEXT", Dialect.SQLITE: "TEXT"}
_BYTES = {Dialect.POSTGRES: "bytea", Dialect.MYSQL: "LONGBLOB", Dialect.SQLITE: "BLOB"}
_REAL = {Dialect.POSTGRES: "double precision", Dialect.MYSQL: "DOUBLE", Dialect.SQLITE: "REAL"}


def outbox(dialect: Dialect) -> str:
    """The statement that makes the outbox, for a migration."""
    text = _TEXT[dialect]
    return (
        f"CREATE TABLE IF NOT EXISTS {OUTBOX} (seq {_NUMBER[dialect]}, id {text} NOT NULL UNIQUE, "
        f"subject {text} NOT NULL, ordering {text} NOT NULL, data {_BYTES[dialect]} NOT NULL, "
        f"headers {_LONG[dialect]} NOT NULL, at {_REAL[dialect]} NOT NULL)"
    )


def dead_letters(dialect: Dialect) -> str:
    """The statement that makes the table of dead letters, for a migration."""
    text = _TEXT[dialect]
    return (
        f"CREATE TABLE IF NOT EXISTS {DEAD} (seq {_NUMBER[dialect]}, consumer {text} NOT NULL, "
        f"id {text} NOT NULL, subject {text} NOT NULL, data {_BYTES[dialect]} NOT NULL, "
        f"headers {_LONG[dialect]} NOT NULL, attempts INTEGER NOT NULL, "
        f"reason {_LONG[dialect]} NOT NULL, at {_REAL[dialect]} NOT NULL)"
    )


_MAKES = {OUTBOX: outbox, DEAD: dead_letters}


def ensure(dialect: Dialect, table: str) -> Steps[None]:
    """Make a table where it is missing; in a transaction of its own (MySQL commits it at once).

    Raises:
        InvalidError: it is missing and can't be made.
    """
    yield from own_tables.make(dialect, table, _MAKES[table](dialect))


def put(message: Message, ordering: str, at: float) -> Steps[None]:
    """Write a message into the outbox."""
    if len(message.id) > 255 or len(message.subject) > 255 or len(ordering) > 255:
        raise InvalidError("an id, a subject or a key has more than 255 characters")
    yield Query(
        f"INSERT INTO {OUTBOX} (id, subject, ordering, data, headers, at) "  # noqa: S608
        "VALUES (?, ?, ?, ?, ?, ?)",
        (
            message.id,
            message.subject,
            ordering,
            message.data,
            json.dumps(dict(message.headers)),
            at,
        ),
    )


def take(dialect: Dialect, after: int, limit: int) -> Steps[tuple[tuple[int, Message], ...]]:
    """Lock what comes next after a number, and give it with its numbers."""
    lock = "" if dialect is Dialect.SQLITE else " FOR UPDATE OF o SKIP LOCKED"
    if dialect is Dialect.MYSQL:
        lock = " FOR UPDATE SKIP LOCKED"  # MariaDB has no OF
    found = yield Query(
        f"SELECT o.seq, o.id, o.subject, o.data, o.headers FROM {OUTBOX} o "  # noqa: S608
        f"WHERE o.seq > ? AND (o.ordering = '' OR NOT EXISTS (SELECT 1 FROM {OUTBOX} e "
        f"WHERE e.ordering = o.ordering AND e.seq < o.seq)) ORDER BY o.seq LIMIT {limit:d}{lock}",
        (after,),
    )
    return tuple(
        (int(str(seq)), Message(str(subject), str(id_), _bytes(data), json.loads(str(headers))))
        for seq, id_, subject, data, headers in found.rows
    )


def drop(numbers: Sequence[int]) -> Steps[None]:
    """Delete what was sent."""
    for number in numbers:
        yield Query(f"DELETE FROM {OUTBOX} WHERE seq = ?", (number,))  # noqa: S608


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that a consumer could not handle, kept for a person."""

    consumer: str
    message: Message
    attempts: int
    reason: str
    at: float


def bury(letter: DeadLetter) -> Steps[None]:
    """Keep a dead letter."""
    message = letter.message
    yield Query(
        f"INSERT INTO {DEAD} (consumer, id, subject, data, headers, attempts, reason, at) "  # noqa: S608
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            letter.consumer,
            message.id[:255],
            message.subject[:255],
            message.data,
            json.dumps(dict(message.headers)),
            letter.attempts,
            letter.reason,
            letter.at,
        ),
    )


def buried(consumer: str, limit: int = 100) -> Steps[tuple[DeadLetter, ...]]:
    """A consumer's dead letters, oldest first."""
    found = yield Query(
        f"SELECT id, subject, data, headers, attempts, reason, at FROM {DEAD} "  # noqa: S608
        f"WHERE consumer = ? ORDER BY seq LIMIT {limit:d}",
        (consumer,),
    )
    return tuple(
        DeadLetter(
            consumer,
            Message(str(subject), str(id_), _bytes(data), json.loads(str(headers))),
            int(str(attempts)),
            str(reason),
            float(str(at)),
        )
        for id_, subject, data, headers, attempts, reason, at in found.rows
    )


def _bytes(value: object) -> bytes:
    return bytes(value)  # type: ignore[call-overload, no-any-return]
