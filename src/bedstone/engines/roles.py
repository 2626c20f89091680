"""Roles and databases in a PostgreSQL, made so by repetition: every function may be run again.

A database is owned by a role that can't log in. Each workload has a role of its own that is a
member of the owner, and works as the owner in that database: what one workload's migrations create,
another may use, and the server's log still shows who was connected. PUBLIC has no right at all, not
even to connect to the databases that every server has. Who may use a database no longer is
disconnected, and cannot log in unless there is another that it may use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from bedstone.errors import InvalidError, UnavailableError

if TYPE_CHECKING:
    import psycopg

_NAME_LIMIT = 63
_LOCK = 0x626564726F636B  # any number that nobody else uses


async def ensure_role(connection: psycopg.AsyncConnection, role: str, password: str | None) -> None:
    """A role that can log in with `password`, and nothing more; without password, it cannot.

    The password is hashed here (RFC 5803), so that the server's log can't contain it.
    """
    from psycopg import Error, sql

    name = sql.Identifier(_checked(role))
    rights = sql.SQL("NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS")
    try:
        await _alone(connection)
        if not await _exists(connection, "pg_roles", "rolname", role):
            await connection.execute(sql.SQL("CREATE ROLE {}").format(name))
        if password is None:
            await connection.execute(
                sql.SQL("ALTER ROLE {} NOLOGIN PASSWORD NULL {}").format(name, rights)
            )
            return
        verifier = connection.pgconn.encrypt_password(
            password.encode(), role.encode(), b"scram-sha-256"
        ).decode()
        await connection.execute(
            sql.SQL("ALTER ROLE {} LOGIN PASSWORD {} {}").format(
                name, sql.Literal(verifier), rights
            )
        )
    except Error as error:
        raise _failed(f"role {role}", error) from error


async def ensure_database(
    connection: psycopg.AsyncConnection, database: str, owner: str, roles: Iterable[str]
) -> None:
    """A database owned by `owner` (made without log-in if missing) that exactly `roles` may use.

    Sessions of anybody else but superusers end.
    """
    from psycopg import Error, sql

    name, group = sql.Identifier(_checked(database)), sql.Identifier(_checked(owner))
    wanted = {_checked(role) for role in roles} - {owner}
    try:
        await _alone(connection)
        if not await _exists(connection, "pg_roles", "rolname", owner):
            await ensure_role(connection, owner, None)
        if not await _exists(connection, "pg_database", "datname", database):
            await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, group))
        await connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(name, group))
        for closed in (name, sql.Identifier("postgres"), sql.Identifier("template1")):
            await connection.execute(
                sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(closed)
            )
        rows = await connection.execute(
            "SELECT m.rolname FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member "
            "JOIN pg_roles g ON g.oid = a.roleid WHERE g.rolname = %s",
            (owner,),
        )
        members = {row[0] for row in await rows.fetchall()}
        for role in sorted(wanted):
            member = sql.Identifier(role)
            if role not in members:
                await connection.execute(sql.SQL("GRANT {} TO {}").format(group, member))
            await connection.execute(
                sql.SQL("ALTER ROLE {} IN DATABASE {} SET role = {}").format(
                    member, name, sql.Literal(owner)
                )
            )
        for role in sorted(members - wanted):
            await _remove(connection, role, owner, database)
        await connection.execute(
            "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a "
            "JOIN pg_roles r ON r.oid = a.usesysid WHERE a.backend_type = 'client backend' "
            "AND NOT r.rolsuper AND (NOT r.rolcanlogin OR a.datname = %s AND r.rolname <> ALL(%s))",
            (database, sorted(wanted)),
        )
    except Error as error:
        raise _failed(f"database {database}", error) from error


async def _remove(
    connection: psycopg.AsyncConnection, role: str, owner: str, database: str
) -> None:
    """Take a database away from a role, and the log-in too if it was the last one, or neither."""
    from psycopg import sql

    member = sql.Identifier(role)
    async with connection.transaction():
        await connection.execute(sql.SQL("REVOKE {} FROM {}").format(sql.Identifier(owner), member))
        await connection.execute(
            sql.SQL("ALTER ROLE {} IN DATABASE {} RESET role").format(
                member, sql.Identifier(database)
            )
        )
        rows = await connection.execute(
            "SELECT 1 FROM pg_auth_members a JOIN pg_roles m ON m.oid = a.member "
            "WHERE m.rolname = %s",
            (role,),
        )
        if await rows.fetchone() is None:
            await connection.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(member))


async def _alone(connection: psycopg.AsyncConnection) -> None:
    """Be the only one who changes roles, until the connection ends.

    Two that alter one role at the same time would fail: "tuple concurrently updated".
    """
    await connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))


async def _exists(connection: psycopg.AsyncConnection, table: str, column: str, value: str) -> bool:
    from psycopg import sql

    query = sql.SQL("SELECT 1 FROM {} WHERE {} = %s").format(
        sql.Identifier(table), sql.Identifier(column)
    )
    rows = await connection.execute(query, (value,))
    return await rows.fetchone() is not None


def _checked(name: str) -> str:
    # PostgreSQL would cut a longer name silently, and two could then become one.
    if not name or "\0" in name or len(name.encode()) > _NAME_LIMIT or name.startswith("pg_"):
        raise InvalidError(
            f"not a name for PostgreSQL: {name!r}",
            hint=f"use 1 to {_NAME_LIMIT} bytes, and not the prefix pg_",
        )
    return name


def _failed(what: str, error: Exception) -> UnavailableError:
    # Without the statement, which may hold a verifier.
    return UnavailableError(f"postgres refused {what}: {str(error).splitlines()[0]}")
