"""The store of several servers: tables in a PostgreSQL database.

`postgresql://…/database[?schema=bedstone&history=N]`; other options are libpq's.

Rules:
- A write takes the lock on the one row of `meta`, so that commit order is revision order and no
  reader can see revision R before all that came earlier: a watch has no gap.
- What a server reads, it reads from the database. Watches follow the `events` table, woken by
  NOTIFY and, should one be lost, by looking every `POLL` seconds.
- A connection cut before COMMIT was sent applied nothing. One cut while COMMIT was under way is
  settled by looking for the write's own mark under the same lock; only where that cannot be done
  within `SETTLE` seconds is the outcome reported as unknown.
- LISTEN and session settings need a session: a pooler between must pool sessions, not transactions.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import psycopg
from psycopg import sql

from bedstone.errors import (
    Error,
    InvalidError,
    NotFoundError,
    UnknownOutcomeError,
)
from bedstone.store.batching import Batcher, closed
from bedstone.store.leases import INTERVAL, Clock, Observer, SystemClock, end_lapsed
from bedstone.store.local import HISTORY
from bedstone.store.planning import (
    Commit,
    Draft,
    Outcome,
    Request,
    Revoke,
    check_lease,
    check_operations,
)
from bedstone.store.postgres_session import (
    Connection,
    Session,
    check_schema,
    parse_parameters,
    prepare,
    translated,
)
from bedstone.store.protocol import Entry, Listing, Operation, Put
from bedstone.store.state import upper_bound
from bedstone.store.urls import number, split_options
from bedstone.store.watching import Hub, Watch, batches

POLL: Final = 1.0
SETTLE: Final = 20.0

_LOCK: Final = sql.SQL("BEGIN; SELECT revision, compacted FROM meta FOR UPDATE")
_FIND: Final = sql.SQL(
    "SELECT key, value, revision, created, lease FROM entries "
    "WHERE key = ANY(%s) OR lease = ANY(%s)"
)
_FIND_LEASES: Final = sql.SQL("SELECT lease, renewal FROM leases WHERE lease = ANY(%s) FOR UPDATE")
# One statement, one round trip. Its parts touch different rows, so their order does not matter.
_WRITE: Final = sql.SQL("""
WITH history AS (
    INSERT INTO events (revision, position, key, value, created, lease, writing)
    SELECT *, %(writing)s FROM unnest(
        %(revisions)s::bigint[], %(positions)s::int[], %(keys)s::text[], %(values)s::bytea[],
        %(createds)s::bigint[], %(leases)s::text[])
), written AS (
    INSERT INTO entries (key, value, revision, created, lease)
    SELECT * FROM unnest(
        %(put_keys)s::text[], %(put_values)s::bytea[], %(put_revisions)s::bigint[],
        %(put_createds)s::bigint[], %(put_leases)s::text[])
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision,
        created = excluded.created, lease = excluded.lease
), removed AS (
    DELETE FROM entries WHERE key = ANY(%(gone)s)
), ended AS (
    DELETE FROM leases WHERE lease = ANY(%(ended)s)
), forgotten AS (
    DELETE FROM events WHERE revision <= %(compacted)s
), counted AS (
    UPDATE meta SET revision = %(revision)s, compacted = greatest(compacted, %(compacted)s)
)
SELECT pg_notify(%(channel)s, %(revision)s::text)
""")
# A first row for the revision, then the rest, in one statement and so of one snapshot.
_EVENTS: Final = sql.SQL("""
SELECT revision, NULL, NULL, NULL, NULL, NULL FROM meta
UNION ALL (
    SELECT revision, key, value, created, lease, position FROM events
    WHERE revision > %s AND revision > (SELECT revision FROM meta) - %s
    ORDER BY revision, position)
""")
_LIST: Final = """
SELECT NULL, NULL, revision, NULL, NULL FROM meta
UNION ALL (SELECT key, value, revision, created, lease FROM entries WHERE {} ORDER BY key)
"""
_LIST_BETWEEN: Final = sql.SQL(_LIST).format(sql.SQL("key >= %s AND key < %s"))
_LIST_FROM: Final = sql.SQL(_LIST).format(sql.SQL("key >= %s"))
_GET: Final = sql.SQL("SELECT key, value, revision, created, lease FROM entries WHERE key = %s")
_LEASES: Final = sql.SQL("SELECT lease, ttl, renewal FROM leases")
_GRANT: Final = sql.SQL("""
INSERT INTO leases VALUES (%s, %s, nextval('renewals'))
ON CONFLICT (lease) DO UPDATE SET ttl = excluded.ttl, renewal = excluded.renewal RETURNING 1
""")
# A renewal lost in the database's crash does no harm: observers see only whether the counter moved.
_RENEW: Final = sql.SQL("""
WITH relaxed AS (SELECT set_config('synchronous_commit', 'off', true))
UPDATE leases SET renewal = nextval('renewals') FROM relaxed WHERE lease = %s RETURNING 1
""")

_log = logging.getLogger(__name__)


class PostgresStore:
    """A `Store` in a PostgreSQL database, shared by any number of servers.

    Args:
        url: libpq's connection URL or string.
        schema: the schema that holds the tables; created if absent.
        history: how many revisions a watch can catch up.
        clock: observes the leases.
        settle: seconds to find out what became of a commit that was cut off; the default is longer
            than the database's own limits on locks and idle transactions.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = "bedstone",
        history: int = HISTORY,
        clock: Clock | None = None,
        settle: float = SETTLE,
    ) -> None:
        parameters = parse_parameters(url)
        self._schema = check_schema(schema)
        self._history = history
        self._clock = clock or SystemClock()
        self._settle = settle
        self._session = Session(parameters, schema)
        self._writer = Session(parameters, schema)
        self._listener = Session(parameters, schema)
        self._channel = f"bedstone_{schema}"
        self._open = False

    @classmethod
    def open(cls, url: str) -> Self:
        """Construct from `postgresql://…[?schema=NAME&history=N]`.

        Raises:
            InvalidError: the URL or an option is malformed.
        """
        place, options = split_options(url, {"schema", "history"}, others=True)
        return cls(
            place,
            schema=options.get("schema", "bedstone"),
            history=number(options, "history", HISTORY),
        )

    async def __aenter__(self) -> Self:
        if self._open:
            raise InvalidError("the store is open already", hint="construct another one")
        async with AsyncExitStack() as stack:
            for session in (self._session, self._writer, self._listener):
                stack.push_async_callback(session.drop)
            await prepare(self._session)
            self._hub = Hub(self._history)
            await self._catch_up()
            self._observer = Observer(self._clock.monotonic())
            self._batcher = Batcher(self._write)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            tasks.create_task(self._batcher.run(), name="store writer")
            self._background = [
                tasks.create_task(self._follow(), name="store follower"),
                tasks.create_task(self._observe(), name="store leases"),
            ]
            self._stack = stack.pop_all()
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open = False
        self._batcher.stop()
        for task in self._background:
            task.cancel()
        self._hub.close(closed())
        # The task group must not wrap an error of the caller's own: it sees cancellation only.
        cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
        await self._stack.__aexit__(*((kind, error, trace) if cancelled else (None, None, None)))

    async def get(self, key: str) -> Entry | None:
        """The entry, or None."""
        self._check_open()
        rows = await self._session.read(_GET, (key,))
        return Entry(*rows[0]) if rows else None

    async def list(self, prefix: str) -> Listing:
        """All entries whose key starts with `prefix`, at one revision."""
        self._check_open()
        bound = upper_bound(prefix)
        if bound is None:
            (_, _, revision, *_), *rows = await self._session.read(_LIST_FROM, (prefix,))
        else:
            (_, _, revision, *_), *rows = await self._session.read(_LIST_BETWEEN, (prefix, bound))
        return Listing(revision, [Entry(*row) for row in rows])

    async def commit(self, operations: Sequence[Operation]) -> int:
        """Apply all operations or none; return the store's revision after it."""
        self._check_open()
        return await self._batcher.submit(Commit(check_operations(operations)))

    def watch(self, prefix: str, after: int) -> Watch:
        """Every commit under `prefix` after revision `after`, one batch a commit, for ever."""
        self._check_open()
        return self._hub.watch(prefix, after)

    async def grant(self, lease: str, ttl: float) -> None:
        """Create a lease of `ttl` seconds, or renew it; its time starts anew."""
        self._check_open()
        await self._session.write(_GRANT, (lease, check_lease(lease, ttl)))

    async def keep_alive(self, lease: str) -> None:
        """Start the lease's time anew."""
        self._check_open()
        if not await self._session.write(_RENEW, (lease,)):
            raise NotFoundError(
                f"lease {lease!r} has ended", hint="grant it again and write its keys anew"
            )

    async def revoke(self, lease: str) -> None:
        """End the lease now and delete its keys in one commit."""
        self._check_open()
        await self._batcher.submit(Revoke(lease))

    def _check_open(self) -> None:
        if not self._open:
            raise closed()

    # Writing: one group at a time, on one connection.

    async def _write(self, requests: Sequence[Request]) -> Sequence[Outcome]:
        connection = await self._writer.connection()
        writing = uuid.uuid4().hex
        try:
            view, compacted = await _look(connection, requests)
            draft = Draft(view)
            outcomes = [draft.add(request) for request in requests]
            if draft.empty:
                await connection.execute("ROLLBACK")
                return outcomes
            await connection.execute(_WRITE, self._changes(draft, writing, compacted))
        except psycopg.Error as error:
            await self._writer.drop()  # and with it the transaction
            raise translated(error) from error
        except BaseException:
            await self._writer.drop()
            raise
        try:
            await connection.execute("COMMIT")
        except psycopg.Error as error:
            await self._writer.drop()
            if not await self._settled(draft, writing, error):
                raise translated(error) from error
        for batch in draft.batches:
            if batch[0].revision == self._hub.revision + 1:  # else the follower brings it
                self._hub.publish(batch)
        return outcomes

    def _changes(self, draft: Draft, writing: str, compacted: int) -> dict[str, Any]:
        events = [
            (event, position, event.entry)
            for batch in draft.batches
            for position, event in enumerate(batch)
        ]
        put = [entry for entry in draft.final.values() if entry is not None]
        # In steps of an eighth, so that its cost is shared by the commits that made it necessary.
        surplus = draft.revision - compacted - self._history
        return {
            "writing": writing,
            "revisions": [event.revision for event, _, _ in events],
            "positions": [position for _, position, _ in events],
            "keys": [event.key for event, _, _ in events],
            "values": [entry and entry.value for _, _, entry in events],
            "createds": [entry and entry.created for _, _, entry in events],
            "leases": [entry and entry.lease for _, _, entry in events],
            "put_keys": [entry.key for entry in put],
            "put_values": [entry.value for entry in put],
            "put_revisions": [entry.revision for entry in put],
            "put_createds": [entry.created for entry in put],
            "put_leases": [entry.lease for entry in put],
            "gone": [key for key, entry in draft.final.items() if entry is None],
            "ended": sorted(draft.ended),
            "compacted": compacted + surplus if surplus > self._history // 8 else compacted,
            "revision": draft.revision,
            "channel": self._channel,
        }

    async def _settled(self, draft: Draft, writing: str, cause: psycopg.Error) -> bool:
        """Whether a write whose COMMIT was cut off was applied.

        The lock is free only once the old transaction has ended, one way or the other.
        """
        try:
            async with asyncio.timeout(self._settle):
                for attempt in itertools.count():
                    try:
                        return await self._marked(draft, writing)
                    except UnknownOutcomeError:
                        raise
                    except (psycopg.Error, Error):
                        await self._writer.drop()
                        await asyncio.sleep(min(0.05 * 2**attempt, 1.0))
        except TimeoutError:
            await self._writer.drop()
        raise UnknownOutcomeError(
            f"the store's database was lost while it committed: {translated(cause).message}",
            hint="read the keys again before retrying",
        ) from cause

    async def _marked(self, draft: Draft, writing: str) -> bool:
        connection = await self._writer.connection()
        async with connection.transaction():
            cursor = await connection.execute("SELECT compacted FROM meta FOR UPDATE")
            (compacted,) = await cursor.fetchone() or (0,)
            if not draft.batches:
                leases = await connection.execute(_FIND_LEASES, (sorted(draft.ended),))
                return not await leases.fetchall()
            revision = draft.batches[-1][0].revision
            if compacted >= revision:
                raise UnknownOutcomeError(
                    f"whether revision {revision} was written is no longer known",
                    hint="read the keys again before retrying",
                )
            marks = await connection.execute(
                "SELECT 1 FROM events WHERE revision = %s AND writing = %s", (revision, writing)
            )
            return await marks.fetchone() is not None

    # Following: what any server wrote.

    async def _follow(self) -> None:
        for attempt in itertools.count():
            try:
                connection = await self._listener.connection()
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                await self._catch_up()
                while True:
                    async for note in connection.notifies(timeout=POLL):
                        if int(note.payload) > self._hub.revision:
                            await self._catch_up()
                    await self._catch_up()
            except (psycopg.Error, Error) as error:
                _log.warning("store.follow.lost", extra={"error": str(error).strip()})
                await self._listener.drop()
                await asyncio.sleep(0.05 if attempt == 0 else POLL / 2)

    async def _catch_up(self) -> None:
        known = self._hub.revision
        ahead = self._hub.ahead()
        (revision, *_), *rows = await self._session.read(_EVENTS, (known, self._history))
        news = batches(row[:5] for row in rows)
        starts = news[0][0].revision if news else revision + 1
        if revision < known or starts > known + 1:  # restored from a backup, or away for too long
            self._hub.load(revision, news)
        else:
            for batch in news:
                self._hub.publish(batch)
        for watch in ahead:
            if watch.after > revision:  # a revision of some other database
                self._hub.lose(watch)

    async def _observe(self) -> None:
        while True:
            await self._clock.sleep(INTERVAL)
            try:
                rows = await self._session.read(_LEASES)
            except Error as error:  # a database that is away lets no time pass
                _log.warning("store.leases.not_seen", extra={"error": str(error)})
                continue
            now = self._clock.monotonic()
            self._observer.see_all({lease: (ttl, renewal) for lease, ttl, renewal in rows}, now)
            await end_lapsed(self._observer.lapsed(now), self._batcher.submit)


@dataclass(frozen=True, slots=True)
class _Look:
    """A `View` of what a group of requests needs, read under the lock."""

    revision: int
    entries: dict[str, Entry]
    leases: dict[str, int]

    def entry(self, key: str) -> Entry | None:
        return self.entries.get(key)

    def renewal(self, lease: str) -> int | None:
        return self.leases.get(lease)

    def lease_keys(self, lease: str) -> Iterable[str]:
        return (key for key, entry in self.entries.items() if entry.lease == lease)


async def _look(connection: Connection, requests: Sequence[Request]) -> tuple[_Look, int]:
    keys: set[str] = set()
    ended: set[str] = set()
    named: set[str] = set()
    for request in requests:
        match request:
            case Commit(operations):
                keys |= {operation.key for operation in operations}
                named |= {it.lease for it in operations if isinstance(it, Put) and it.lease}
            case Revoke(lease):
                ended.add(lease)
            case _:
                raise AssertionError(f"{request} is not written in a group")
    locked = await connection.execute(_LOCK, prepare=False)
    locked.nextset()
    revision, compacted = await locked.fetchone() or (0, 0)
    # A statement of its own: its snapshot must be taken after the lock.
    found = await connection.execute(_FIND, (sorted(keys), sorted(ended)))
    entries = {row[0]: Entry(*row) for row in await found.fetchall()}
    leases: dict[str, int] = {}
    if named or ended:
        rows = await connection.execute(_FIND_LEASES, (sorted(named | ended),))
        leases = dict(await rows.fetchall())
    return _Look(revision, entries, leases), compacted
