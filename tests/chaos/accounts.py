"""The accounts of a run, and the tables that they are in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

MODES = ("tcc", "saga", "at", "xa", "message", "outbox")
GROUPS = 40
"""Groups of each mode; money stays within one."""
OPENING = 100_000
POOR = 60
"""What the second account of a group opens with where a mode never takes back what was spent."""
_TABLES = (
    """CREATE TABLE accounts (id VARCHAR(64) PRIMARY KEY, balance BIGINT NOT NULL,
        held BIGINT NOT NULL DEFAULT 0, opening BIGINT NOT NULL,
        CHECK (balance >= 0), CHECK (held >= 0))""",
    """CREATE TABLE entries (id VARCHAR(64) PRIMARY KEY, transfer VARCHAR(64) NOT NULL,
        account VARCHAR(64) NOT NULL, amount BIGINT NOT NULL)""",
    "CREATE INDEX entries_transfer ON entries (transfer, account)",
    "CREATE INDEX entries_account ON entries (account)",
)


@dataclass(frozen=True, slots=True)
class Account:
    """One account."""

    bank: str
    id: str
    opening: int


def accounts(mode: str, group: int, banks: tuple[str, ...]) -> list[Account]:
    """The accounts of a group: two in each database."""
    rich = mode in {"saga", "message", "outbox"}
    return [
        Account(bank, f"{mode}-{group}-{number}", OPENING if rich or not number else POOR)
        for bank in banks
        for number in range(2)
    ]


def everything(banks: tuple[str, ...]) -> Iterator[Account]:
    """All of them."""
    for mode in MODES:
        for group in range(GROUPS):
            yield from accounts(mode, group, banks)


def connected(url: str) -> Any:
    """A blocking connection, in an open transaction from its first statement on."""
    if url.startswith("mysql"):
        import pymysql

        parts = urlsplit(url)
        return pymysql.connect(
            host=parts.hostname or "",
            port=parts.port or 0,
            user=parts.username or "",
            password=parts.password or "",
            database=parts.path.strip("/"),
            connect_timeout=5,
            read_timeout=120,
        )
    import psycopg

    return psycopg.connect(url, connect_timeout=5)


def opened(url: str, bank: str) -> None:
    """Make the tables of a database, and its accounts."""
    with closing(connected(url)) as db, closing(db.cursor()) as cursor:
        for statement in _TABLES:
            cursor.execute(statement)
        for account in everything((bank,)):
            cursor.execute(
                "INSERT INTO accounts (id, balance, opening) VALUES (%s, %s, %s)",
                (account.id, account.opening, account.opening),
            )
        db.commit()


def asked(
    url: str, question: str, *parameters: object, snapshot: bool = False
) -> list[tuple[Any, ...]]:
    """Ask a database something."""
    with closing(connected(url)) as db, closing(db.cursor()) as cursor:
        if snapshot and url.startswith("mysql"):
            cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        cursor.execute(question, parameters or None)
        return [tuple(row) for row in cursor.fetchall()]
