"""Connections to PostgreSQL for the store: how one is set up, and what its failures mean.

Rules:
- A foreign exception never leaves: it becomes the error that says what the caller should do.
- A connection that failed is dropped, and the next use makes a new one.
- Connection strings hold passwords and are never part of a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg import conninfo, sql

from bedstone.errors import DeniedError, Error, InvalidError, UnavailableError, UnknownOutcomeError

SCHEMA: Final = 1

_DEFAULTS: Final[Mapping[str, str]] = {
    "connect_timeout": "5",
    "fallback_application_name": "bedstone",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}

# A server that is stopped inside a transaction must not hold up the others for ever. A store that
# is told "committed" relies on it, so a database's faster default is not good enough. Parallel
# plans and compiled ones cost more than these small statements, and the former lose the order.
_SETTINGS: Final = """
SELECT set_config('search_path', %s, false),
       set_config('default_transaction_isolation', 'read committed', false),
       set_config('max_parallel_workers_per_gather', '0', false),
       set_config('jit', 'off', false),
       set_config('lock_timeout', '10s', false),
       set_config('idle_in_transaction_session_timeout', '10s', false),
       set_config('synchronous_commit',
                  CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on'
                  ELSE current_setting('synchronous_commit') END, false)
"""

_TABLES: Final = """
CREATE TABLE {schema}.meta (
    id integer PRIMARY KEY CHECK (id = 1),
    version integer NOT NULL,
    revision bigint NOT NULL,
    compacted bigint NOT NULL
);
CREATE TABLE {schema}.entries (
    key text COLLATE "C" PRIMARY KEY,
    value bytea NOT NULL,
    revision bigint NOT NULL,
    created bigint NOT NULL,
    lease text COLLATE "C"
);
CREATE INDEX ON {schema}.entries (lease) WHERE lease IS NOT NULL;
CREATE TABLE {schema}.events (
    revision bigint NOT NULL,
    position integer NOT NULL,
    key text COLLATE "C" NOT NULL,
    value bytea,
    created bigint,
    lease text,
    writing text NOT NULL,
    PRIMARY KEY (revision, position)
);
CREATE SEQUENCE {schema}.renewals;
CREATE TABLE {schema}.leases (
    lease text COLLATE "C" PRIMARY KEY,
    ttl double precision NOT NULL,
    renewal bigint NOT NULL
);
INSERT INTO {schema}.meta VALUES (1, {version}, 0, 0);
"""

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Query = sql.SQL | sql.Composed
Rows = list[tuple[Any, ...]]


class _LostError(Exception):
    """The connection broke while a statement ran."""

    def __init__(self, reason: psycopg.Error) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Session:
    """One connection, made when it is needed and made again when it was lost.

    Args:
        parameters: libpq's connection parameters.
        schema: where the store's tables are.
    """

    parameters: Mapping[str, Any]
    schema: str
    _connection: Connection | None = None
    _connecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def connection(self) -> Connection:
        """A connection that was well when last used.

        Raises:
            UnavailableError: the database cannot be reached.
        """
        async with self._connecting:
            if self._connection is not None and not self._connection.closed:
                return self._connection
            try:
                fresh = await psycopg.AsyncConnection.connect(**self.parameters, autocommit=True)
            except psycopg.Error as error:
                raise translated(error) from error
            try:
                await fresh.execute(_SETTINGS, (f'"{self.schema}"',))
            except psycopg.Error as error:
                await fresh.close()
                raise translated(error) from error
            except BaseException:
                await fresh.close()
                raise
            self._connection = fresh
            return fresh

    async def read(self, query: Query, parameters: Sequence[object] = ()) -> Rows:
        """Run one statement that changes nothing; on a lost connection, once more on a new one.

        Raises:
            UnavailableError: the database cannot be reached.
        """
        try:
            return await self._run(query, parameters)
        except _LostError:
            try:
                return await self._run(query, parameters)
            except _LostError as error:
                raise translated(error.reason) from error.reason

    async def write(self, query: Query, parameters: Sequence[object] = ()) -> Rows:
        """Run one idempotent statement; on a lost connection, once more on a new one.

        Raises:
            UnavailableError: not applied.
            UnknownOutcomeError: the connection was lost while it ran.
        """
        try:
            return await self._run(query, parameters)
        except _LostError as first:
            try:
                return await self._run(query, parameters)
            except (_LostError, UnavailableError):
                lost = translated(first.reason)
                raise UnknownOutcomeError(lost.message, hint=lost.hint) from first.reason

    async def _run(self, query: Query, parameters: Sequence[object]) -> Rows:
        connection = await self.connection()
        try:
            return await (await connection.execute(query, parameters, binary=True)).fetchall()
        except psycopg.Error as error:
            if not connection.closed:
                raise translated(error) from error
            if self._connection is connection:
                await self.drop()
            raise _LostError(error) from error

    async def drop(self) -> None:
        """Close the connection; the next use makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                await connection.close()


def parse_parameters(url: str) -> dict[str, Any]:
    """Libpq's parameters of a URL, with our defaults where it says nothing.

    Raises:
        InvalidError: libpq does not understand it.
    """
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.Error:  # its message may quote the password
        raise InvalidError(
            "the store's postgresql URL is malformed, "
            "expected postgresql://user:password@host:port/database",
            hint="percent-encode special characters in the password",
        ) from None
    return {**_DEFAULTS, **given, "client_encoding": "UTF8"}


def check_schema(schema: str) -> str:
    """Accept a schema name that needs no thought about quoting or case.

    Raises:
        InvalidError: it is something else.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,47}", schema):
        raise InvalidError(f"got schema={schema!r}, expected lower-case letters, digits and _")
    return schema


async def prepare(session: Session) -> None:
    """Create the store's tables, once, whoever comes first; or check those that there are.

    Raises:
        InvalidError: the database is not fit, or a newer version wrote it.
        DeniedError: the user may not create the schema.
        UnavailableError: the database cannot be reached.
    """
    connection = await session.connection()
    name = sql.Identifier(session.schema)
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
                (f"bedstone.store.{session.schema}",),
            )
            cursor = await connection.execute(
                "SELECT current_setting('server_encoding'), to_regclass(%s), to_regnamespace(%s)",
                (f'"{session.schema}".meta', f'"{session.schema}"'),
            )
            encoding, table, namespace = await cursor.fetchone() or (None, None, None)
            if encoding != "UTF8":
                raise InvalidError(
                    f"the store's database has encoding {encoding}, expected UTF8",
                    hint="create it with ENCODING 'UTF8'",
                )
            if namespace is None:
                await connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
            if table is None:
                await connection.execute(sql.SQL(_TABLES).format(schema=name, version=SCHEMA))
            rows = await connection.execute(sql.SQL("SELECT version FROM {}.meta").format(name))
            (version,) = await rows.fetchone() or (0,)
    except psycopg.Error as error:
        await session.drop()
        raise translated(error) from error
    if version > SCHEMA:
        raise InvalidError(
            f"the store's tables have version {version}, expected at most {SCHEMA}: "
            "a newer bedstone wrote them",
            hint="upgrade bedstone",
        )


def translated(error: psycopg.Error) -> Error:
    """What a failure that applied nothing means for the caller."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    match error:
        case psycopg.errors.InsufficientPrivilege():
            return DeniedError(
                f"the database refused the store: {reason}",
                hint="grant the store's user CREATE on the database, or own the schema",
            )
        case psycopg.errors.ReadOnlySqlTransaction():
            hint = "name the primary in the URL, or add target_session_attrs=read-write"
        case psycopg.errors.DiskFull():
            hint = "free some space on the database's disk"
        case psycopg.errors.LockNotAvailable():
            hint = "another server holds the store; it is released within 10 s"
        case _:
            hint = "check that PostgreSQL runs, and the URL, user and password"
    return UnavailableError(f"the store's database: {reason}", retry_after=1.0, hint=hint)
