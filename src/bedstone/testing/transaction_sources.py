"""Every kind of connection that transactions support, made for one database of each dialect."""

from __future__ import annotations

import functools
import importlib
import sqlite3
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from bedstone.transactions.databases import Database, database

POSTGRES, MARIADB, SQLITE = "postgres", "mariadb", "sqlite"


def source(kind: str, url: str) -> Database:
    """A database of one of `KINDS`.

    Args:
        kind: the kind's name.
        url: of a database of its dialect; for SQLite the file's path.
    """
    made, is_async = KINDS[kind][1:]
    return database(made(url), is_async=is_async)


def _psycopg(url: str) -> Any:
    import psycopg

    return functools.partial(psycopg.connect, url)


def _psycopg_async(url: str) -> Any:
    import psycopg

    return functools.partial(psycopg.AsyncConnection.connect, url)


def _psycopg_autocommit(url: str) -> Any:
    import psycopg

    return functools.partial(psycopg.connect, url, autocommit=True)


def _asyncpg(url: str) -> Any:
    return functools.partial(importlib.import_module("asyncpg").connect, url)  # it has no types


def _pymysql(url: str, *, autocommit: bool = False) -> Any:
    import pymysql

    return functools.partial(pymysql.connect, **_options(url), autocommit=autocommit)


def _asyncmy(url: str) -> Any:
    import asyncmy

    return functools.partial(asyncmy.connect, **_options(url))


def _sqlite3(path: str) -> Any:
    return functools.partial(sqlite3.connect, path)


def _aiosqlite(path: str) -> Any:
    import aiosqlite

    return functools.partial(aiosqlite.connect, path)


def _engine(scheme: str, *, session: bool = False) -> Callable[[str], Any]:
    def made(url: str) -> Any:
        from sqlalchemy import NullPool, create_engine
        from sqlalchemy.orm import sessionmaker

        engine = create_engine(_with(scheme, url), poolclass=NullPool)
        return sessionmaker(engine) if session else engine

    return made


def _async_engine(scheme: str, *, session: bool = False) -> Callable[[str], Any]:
    def made(url: str) -> Any:
        from sqlalchemy import NullPool
        from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

        engine = create_async_engine(_with(scheme, url), poolclass=NullPool)
        return async_sessionmaker(engine) if session else engine

    return made


def _with(scheme: str, url: str) -> str:
    return f"{scheme}://{url.partition('://')[2]}" if "://" in url else f"{scheme}:///{url}"


def _options(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    return {
        "host": parts.hostname,
        "port": parts.port,
        "user": parts.username,
        "password": parts.password,
        "database": parts.path.strip("/"),
    }


_ENGINES: tuple[tuple[str, str, str, Callable[..., Callable[[str], Any]], bool], ...] = (
    (POSTGRES, "postgresql", "psycopg", _engine, False),
    (POSTGRES, "postgresql", "psycopg_async", _async_engine, True),
    (POSTGRES, "postgresql", "asyncpg", _async_engine, True),
    (MARIADB, "mysql", "pymysql", _engine, False),
    (MARIADB, "mysql", "asyncmy", _async_engine, True),
    (SQLITE, "sqlite", "pysqlite", _engine, False),
    (SQLITE, "sqlite", "aiosqlite", _async_engine, True),
)
_Kind = tuple[str, Callable[[str], Any], bool]
_DRIVERS: dict[str, _Kind] = {
    "psycopg": (POSTGRES, _psycopg, False),
    "psycopg-autocommit": (POSTGRES, _psycopg_autocommit, False),
    "psycopg-async": (POSTGRES, _psycopg_async, True),
    "asyncpg": (POSTGRES, _asyncpg, True),
    "pymysql": (MARIADB, _pymysql, False),
    "pymysql-autocommit": (MARIADB, functools.partial(_pymysql, autocommit=True), False),
    "asyncmy": (MARIADB, _asyncmy, True),
    "sqlite3": (SQLITE, _sqlite3, False),
    "aiosqlite": (SQLITE, _aiosqlite, True),
}
KINDS = _DRIVERS | {
    f"sqlalchemy-{driver}{'-session' * session}": (
        server,
        make(f"{scheme}+{driver}", session=session),
        is_async,
    )
    for session in (False, True)
    for server, scheme, driver, make, is_async in _ENGINES
}
"""Name to dialect, function that makes the source from a URL, and whether it is asynchronous."""
