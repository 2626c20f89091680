"""Connections to PostgreSQL for the log: how one is set up, and what its failures mean.

Rules:
- A connection that failed is dropped, and the next use makes a new one; while the database is away
  (a restart), that is tried again with growing pauses for `PATIENCE` seconds.
- `synchronous_commit` is on, whatever the server's default: what is acknowledged is on the disk.
- Plans use the indexes from the first row on, however old the tables' statistics are. Of the
  statements only the one that counts is prepared; of the others it can't be measured.
- Only a server's ERROR proves that nothing was written; a connection that breaks proves nothing.
- Connection strings hold passwords and are never part of a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import psycopg
from psycopg import conninfo, sql

from bedstone.errors import DeniedError, Error, InvalidError, UnavailableError

SCHEMA: Final = 2
PATIENCE: Final = 5.0
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Query = sql.SQL | sql.Composed
Rows = list[tuple[Any, ...]]

_DEFAULTS: Final[Mapping[str, str]] = {
    "connect_timeout": "5",
    "fallback_application_name": "bedstone-transactions",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}

# A coordinator that is stopped inside a transaction must not hold up the others for ever.
_SETTINGS: Final = sql.SQL("""
SELECT set_config('search_path', %s, false),
       set_config('default_transaction_isolation', 'read committed', false),
       set_config('max_parallel_workers_per_gather', '0', false),
       set_config('jit', 'off', false),
       set_config('enable_seqscan', 'off', false),
       set_config('enable_bitmapscan', 'off', false),
       set_config('plan_cache_mode', 'force_custom_plan', false),
       set_config('lock_timeout', '10s', false),
       set_config('idle_in_transaction_session_timeout', '10s', false),
       set_config('synchronous_commit',
                  CASE current_setting('synchronous_commit') WHEN 'remote_apply'
                  THEN 'remote_apply' ELSE 'on' END, false)
""")

_TABLES: Final = """
CREATE TABLE {schema}.transactions (
    xid text COLLATE "C" PRIMARY KEY,
    name text NOT NULL,
    state text NOT NULL,
    deadline double precision NOT NULL,
    created double precision NOT NULL,
    ended_at double precision,
    owner text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    next_attempt double precision NOT NULL,
    branches text NOT NULL,
    events integer NOT NULL,
    stuck boolean NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX transactions_due ON {schema}.transactions (owner, next_attempt)
    WHERE ended_at IS NULL;
CREATE INDEX transactions_age ON {schema}.transactions (owner, created) WHERE ended_at IS NULL;
CREATE INDEX transactions_stuck ON {schema}.transactions (xid) WHERE stuck;
CREATE INDEX transactions_ended ON {schema}.transactions (ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE {schema}.transaction_locks (
    key text COLLATE "C" PRIMARY KEY,
    xid text COLLATE "C" NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE TABLE {schema}.transaction_events (
    xid text COLLATE "C" NOT NULL,
    position integer NOT NULL,
    at double precision NOT NULL,
    kind text NOT NULL,
    branch integer,
    detail text NOT NULL,
    PRIMARY KEY (xid, position)
);
CREATE TABLE {schema}.transaction_owners (
    owner text COLLATE "C" PRIMARY KEY,
    until double precision NOT NULL
);
CREATE TABLE {schema}.transaction_log (version integer NOT NULL);
INSERT INTO {schema}.transaction_log VALUES (1);
"""

# Version 2 counts. What the log still knows is where the counts begin; nobody writes meanwhile.
_COUNTS: Final = """
LOCK TABLE {schema}.transactions IN SHARE ROW EXCLUSIVE MODE;
CREATE TABLE {schema}.transaction_counts (
    writer text COLLATE "C" PRIMARY KEY,
    at double precision NOT NULL,
    begun bigint NOT NULL,
    committing bigint NOT NULL,
    aborting bigint NOT NULL,
    committed bigint NOT NULL,
    cancelled bigint NOT NULL
) WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0.05);
INSERT INTO {schema}.transaction_counts
    SELECT '', extract(epoch FROM clock_timestamp()), count(*),
           count(*) FILTER (WHERE state IN ('committing', 'committed')),
           count(*) FILTER (WHERE state IN ('aborting', 'aborted')),
           count(*) FILTER (WHERE state = 'committed'),
           count(*) FILTER (WHERE state = 'aborted')
    FROM {schema}.transactions;
ALTER TABLE {schema}.transaction_log ADD COLUMN identity text NOT NULL DEFAULT {identity};
UPDATE {schema}.transaction_log SET version = 2;
"""


@dataclass(slots=True)
class Session:
    """One connection, made when it is needed and made again when it was lost.

    Args:
        parameters: libpq's connection parameters.
        schema: where the log's tables are.
        patience: seconds to go on trying to connect.
    """

    parameters: Mapping[str, Any]
    schema: str
    patience: float = PATIENCE
    _connection: Connection | None = None
    _connecting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def connection(self) -> Connection:
        """A connection that was well when last used.

        Raises:
            UnavailableError: the database can't be reached.
        """
        async with self._connecting:
            if self._connection is not None and not self._connection.closed:
                return self._connection
            pause, end = FIRST_PAUSE, time.monotonic() + self.patience
            while True:
                try:
                    self._connection = await self._connect()
                except psycopg.Error as error:
                    if time.monotonic() + pause > end or not _may_pass(error):
                        raise translated(error) from error
                else:
                    return self._connection
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def read(self, query: Query, parameters: Sequence[object] = ()) -> Rows:
        """Run one statement that may run twice; on a lost connection, once more on a new one.

        Raises:
            UnavailableError: the database can't be reached.
        """
        for last in (False, True):
            connection = await self.connection()
            try:
                cursor = await connection.execute(query, parameters, binary=True)
                return await cursor.fetchall()
            except psycopg.Error as error:
                if not proves_nothing_written(error):
                    await self.drop(connection)
                if last or not worth_repeating(error):
                    raise translated(error) from error
        raise AssertionError("unreachable")

    async def drop(self, connection: Connection | None = None) -> None:
        """Close the connection, if it is still this one; the next use makes a new one."""
        if connection is None or self._connection is connection:
            connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                await connection.close()

    async def _connect(self) -> Connection:
        # A statement that is prepared in a batch that fails is lost to psycopg's accounts.
        fresh = await psycopg.AsyncConnection.connect(
            **self.parameters, autocommit=True, prepare_threshold=None
        )
        try:
            await fresh.execute(_SETTINGS, (f'"{self.schema}"',))
        except BaseException:
            await fresh.close()
            raise
        return fresh


def parse(url: str) -> tuple[dict[str, Any], str]:
    """Libpq's parameters and the schema of `postgresql://…[?schema=NAME]`.

    Raises:
        InvalidError: libpq does not understand it, or the schema's name needs quoting.
    """
    place, _, query = url.partition("?")
    options = [option for option in query.split("&") if option]
    schemas = [unquote(it.partition("=")[2]) for it in options if it.startswith("schema=")]
    others = "&".join(it for it in options if not it.startswith("schema="))
    schema = schemas[-1] if schemas else "bedstone"
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,47}", schema):
        raise InvalidError(f"got schema={schema!r}, expected lower-case letters, digits and _")
    try:
        given = conninfo.conninfo_to_dict(f"{place}?{others}" if others else place)
    except psycopg.Error:  # its message may quote the password
        raise InvalidError(
            "the transaction log's postgresql URL is malformed, "
            "expected postgresql://user:password@host:port/database",
            hint="percent-encode special characters in the password",
        ) from None
    return {**_DEFAULTS, **given, "client_encoding": "UTF8"}, schema


async def prepare(session: Session) -> None:
    """Create the log's tables or bring them up to date, once, whoever comes first.

    Raises:
        InvalidError: the database is not fit, or a newer version wrote it.
        DeniedError: the user may neither use nor create the tables.
        UnavailableError: the database can't be reached.
    """
    connection = await session.connection()
    try:
        version = await _version(connection, session.schema)
        if version is None or version < SCHEMA:
            # Not inside a transaction, which would go on to see what it saw before it waited.
            lock = f"bedstone.transactions.{session.schema}"
            await connection.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", (lock,))
            version = await _version(connection, session.schema)
            if version is None or version < SCHEMA:
                async with connection.transaction():
                    if version is None:
                        await _create(connection, session.schema)
                    await _count(connection, session.schema)
                version = SCHEMA
            await connection.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (lock,))
    except psycopg.Error as error:
        await session.drop()
        raise translated(error) from error
    if version > SCHEMA:
        raise InvalidError(
            f"the transaction log's tables have version {version}, expected at most {SCHEMA}: "
            "a newer bedstone wrote them",
            hint="upgrade bedstone",
        )


async def _version(connection: Connection, schema: str) -> int | None:
    """The version of the tables; None where there are none."""
    cursor = await connection.execute(
        "SELECT current_setting('server_encoding'), to_regclass(%s)",
        (f'"{schema}".transaction_log',),
    )
    encoding, table = await cursor.fetchone() or (None, None)
    if encoding != "UTF8":
        raise InvalidError(
            f"the transaction log's database has encoding {encoding}, expected UTF8",
            hint="create it with ENCODING 'UTF8'",
        )
    if table is None:
        return None
    found = await connection.execute(
        sql.SQL("SELECT version FROM {}.transaction_log").format(sql.Identifier(schema))
    )
    (version,) = await found.fetchone() or (SCHEMA,)
    return int(version)


async def _create(connection: Connection, schema: str) -> None:
    name = sql.Identifier(schema)
    cursor = await connection.execute("SELECT to_regnamespace(%s)", (f'"{schema}"',))
    if await cursor.fetchone() == (None,):
        await connection.execute(sql.SQL("CREATE SCHEMA {}").format(name))
    await connection.execute(sql.SQL(_TABLES).format(schema=name))


async def _count(connection: Connection, schema: str) -> None:
    """Bring tables of version 1 to version 2; who may use those may use the new one."""
    name = sql.Identifier(schema)
    identity = sql.Literal(secrets.token_hex(8))
    await connection.execute(sql.SQL(_COUNTS).format(schema=name, identity=identity))
    found = await connection.execute(
        "SELECT pg_get_userbyid(relowner), current_user FROM pg_class WHERE oid = to_regclass(%s)",
        (f'"{schema}".transactions',),
    )
    owner, user = await found.fetchone() or (None, None)
    if owner != user:
        change = sql.SQL("ALTER TABLE {}.transaction_counts OWNER TO {}")
        await connection.execute(change.format(name, sql.Identifier(str(owner))))
    grants = await connection.execute(
        "SELECT CASE grantee WHEN 0 THEN NULL ELSE pg_get_userbyid(grantee) END, privilege_type "
        "FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = to_regclass(%s) "
        "AND privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')",
        (f'"{schema}".transactions',),
    )
    for grantee, privilege in await grants.fetchall():
        who = sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee)
        await connection.execute(
            sql.SQL("GRANT {} ON {}.transaction_counts TO {}").format(sql.SQL(privilege), name, who)
        )


def proves_nothing_written(error: psycopg.Error) -> bool:
    """Whether the server itself refused: then the transaction is rolled back, and nothing stays.

    FATAL and PANIC end the connection, and may come after the commit was written.
    """
    if isinstance(error, psycopg.errors.PipelineAborted):
        return False
    return error.sqlstate is not None and error.diag.severity_nonlocalized == "ERROR"


def worth_repeating(error: psycopg.Error) -> bool:
    """Whether what wrote nothing can succeed when it is begun anew.

    Others came between, or the connection was lost; not where a value is refused on our side.
    """
    if not proves_nothing_written(error):
        return not isinstance(error, psycopg.DataError | psycopg.ProgrammingError)
    return isinstance(
        error,
        psycopg.errors.DeadlockDetected
        | psycopg.errors.SerializationFailure
        | psycopg.errors.UniqueViolation,
    )


def translated(error: psycopg.Error) -> Error:
    """What a failure that applied nothing means for the caller."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    hint = "check that PostgreSQL runs, and the URL, user and password"
    match error:
        case psycopg.errors.InsufficientPrivilege():
            return DeniedError(
                f"the database refused the transaction log: {reason}",
                hint="grant the user CREATE on the database once, or SELECT, INSERT, UPDATE, "
                "DELETE on the log's tables and USAGE on their schema",
            )
        case psycopg.DataError() | psycopg.errors.ProgramLimitExceeded():
            return InvalidError(f"the transaction log can't hold this: {reason}")
        case psycopg.errors.ReadOnlySqlTransaction():
            hint = "name the primary in the URL, or add target_session_attrs=read-write"
        case psycopg.errors.DiskFull():
            hint = "free some space on the database's disk"
        case psycopg.errors.LockNotAvailable():
            hint = "another coordinator holds the rows; they are released within 10 s"
    return UnavailableError(f"the transaction log's database: {reason}", retry_after=1.0, hint=hint)


def _may_pass(error: psycopg.Error) -> bool:
    """Whether a failed connection is worth another try soon: not where the user is refused."""
    text = str(error)
    return not any(it in text for it in ("password authentication failed", "does not exist"))
