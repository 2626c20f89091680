"""The log in PostgreSQL: for the coordinators of any number of machines.

`postgresql://…/database[?schema=bedstone]`; other options are libpq's.

Rules:
- A batch is one local transaction, two round trips and one flush: the first reads and locks, the
  second writes and commits. It caches nothing that another coordinator may change.
- Rows are locked in the order of their ids, then locks are put down in the order of their keys, so
  that coordinators wait for each other but never in a circle; where they do all the same (two begin
  one id), the batch that the database ends is begun anew.
- A global lock is put down in the first round trip, by the unique key, for the first that wants it;
  the second round trip hands it on or takes it away, as the state machine decided.
- The clock is the server's, read after the rows are locked.
- A connection lost before the second round trip wrote nothing, and the batch is begun anew. Lost in
  the second, the outcome is unknown, and is told as such.
- Session settings need a session: a pooler between must pool sessions, not transactions.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Self, TypeVar

import psycopg

from bedstone.errors import UnknownOutcomeError
from bedstone.transactions import log_counts, log_rows, machine
from bedstone.transactions import log_postgres_sql as statements
from bedstone.transactions.log_base import BatchedLog, unknown
from bedstone.transactions.log_batch import Draft, Operation, Outcome, closed
from bedstone.transactions.log_postgres_session import (
    PATIENCE,
    Connection,
    Query,
    Rows,
    Session,
    parse,
    prepare,
    proves_nothing_written,
    translated,
    worth_repeating,
)
from bedstone.transactions.model import Counts, Event, State, Transaction

T = TypeVar("T")
_Statements = Sequence[tuple[Query | bytes, Sequence[object]]]

ATTEMPTS: Final = 5
"""How often a batch is begun anew after a deadlock, or on a connection that was lost idle."""
SILENCE: Final = 3600.0
"""Seconds without a write after which a writer's counts are added to those of all that are gone."""


class PostgresLog(BatchedLog):
    """A `Log` in a PostgreSQL database, shared by any number of coordinators.

    Args:
        url: libpq's connection URL; its option `schema` names the schema of the log's tables.
        patience: seconds to go on trying to connect, while the database is away.
    """

    def __init__(self, url: str, *, patience: float = PATIENCE) -> None:
        super().__init__()
        parameters, schema = parse(url)
        self._name = secrets.token_hex(8)
        self._prepared: Connection | None = None
        self._writer = Session(parameters, schema, patience)
        self._reader = Session(parameters, schema, patience)

    @classmethod
    def open(cls, url: str) -> Self:
        """Construct from `postgresql://…[?schema=NAME]`.

        Raises:
            InvalidError: the URL or an option is malformed.
        """
        return cls(url)

    async def now(self) -> float:
        """As `Log.now`."""
        ((now,),) = await self._read(statements.CLOCK)
        return float(now)

    async def owned(self, owner: str, limit: int) -> Sequence[Transaction]:
        """As `Log.owned`."""
        log_rows.check_owner(owner)
        return await self._transactions(statements.OWNED, (owner, limit))

    async def get(self, xid: str) -> Transaction:
        """As `Log.get`."""
        found = await self._transactions(statements.GET, (xid,)) if log_rows.is_xid(xid) else ()
        if not found:
            raise unknown(xid)
        return found[0]

    async def list(
        self,
        states: Sequence[State] = (),
        *,
        stuck: bool = False,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[Transaction]:
        """As `Log.list`."""
        wanted = [state.value for state in states or State]
        query = statements.LIST
        if states and not any(state.ended for state in states):
            query = statements.LIST_OPEN
        if stuck:
            query = statements.LIST_STUCK
        return await self._transactions(query, (after, wanted, limit))

    async def events(self, xid: str) -> Sequence[Event]:
        """As `Log.events`."""
        rows = await self._read(statements.EVENTS, (xid,)) if log_rows.is_xid(xid) else ()
        if not rows:
            raise unknown(xid)
        return tuple(map(log_rows.event, rows))

    async def ends(self, xids: Sequence[str]) -> dict[str, float | None]:
        """As `Log.ends`."""
        return dict(await self._read(statements.ENDS, (list(filter(log_rows.is_xid, xids)),)))

    async def locked(self, locks: Sequence[str]) -> dict[str, str]:
        """As `Log.locked`."""
        log_rows.check_locks(locks)
        return dict(await self._read(statements.HOLDERS, (sorted(set(locks)),)))

    async def leases(self) -> dict[str, float]:
        """As `Log.leases`."""
        return dict(await self._read(statements.LEASES))

    async def counts(self) -> Counts:
        """As `Log.counts`."""
        ((log, stuck, *numbers),) = await self._read(statements.COUNTS)
        return log_counts.counts(log, numbers, stuck)

    async def _transactions(self, query: Query, values: Sequence[object]) -> Sequence[Transaction]:
        rows = await self._read(query, values)
        return tuple(log_rows.stored(row).transaction for row in rows)

    async def _read(self, query: Query, values: Sequence[object] = ()) -> Rows:
        if self._queue is None:
            raise closed()
        return await self._reader.read(query, values)

    async def _connect(self) -> None:
        try:
            await prepare(self._writer)
            await self._reader.connection()
        except BaseException:
            await self._disconnect()
            raise

    async def _disconnect(self) -> None:
        await self._reader.drop()
        await self._writer.drop()

    async def _write(self, operations: Sequence[Operation]) -> Sequence[Outcome]:
        wanted = {lock: it.xid for it in reversed(operations) for lock in it.locks}
        locks, xids = sorted(wanted), sorted({operation.xid for operation in operations})

        async def attempt(connection: Connection) -> Sequence[Outcome]:
            async with connection.pipeline():
                await connection.execute("BEGIN")
                rows = await connection.execute(statements.LOCK_ROWS, (xids,), binary=True)
                if locks:
                    owners = [wanted[lock] for lock in locks]
                    placing = await connection.execute(
                        statements.PLACE, (locks, owners), binary=True
                    )
                    holding = await connection.execute(statements.HOLDERS, (locks,), binary=True)
                clock = await connection.execute(statements.CLOCK, binary=True)
            self.statistics.round_trips += 1
            found = map(log_rows.stored, await rows.fetchall())
            placed: dict[str, str] = {}
            holders: dict[str, str] = {}
            if locks:
                placed = dict(await placing.fetchall())
                # One that was held when ours came and is given up since is not ours yet.
                holders = dict.fromkeys(locks, "") | dict(await holding.fetchall())
            ((now,),) = await clock.fetchall()
            draft = Draft(found, holders, now, placed)
            outcomes = [draft.apply(operation) for operation in operations]
            await self._put(connection, draft)
            return outcomes

        return await self._persist(attempt)

    async def _claim(self, owner: str, lease: float, limit: int) -> Sequence[Transaction]:
        async def attempt(connection: Connection) -> Sequence[Transaction]:
            async with connection.pipeline():
                await connection.execute("BEGIN")
                await connection.execute(statements.RENEW, (owner, lease))
                cursor = await connection.execute(statements.ORPHANED, (owner,))
                living = await connection.execute(statements.LIVING)
            self.statistics.round_trips += 1
            orphaned = machine.heirs(
                owner,
                [other for (other,) in await cursor.fetchall()],
                [other for (other,) in await living.fetchall()],
            )
            if not orphaned or limit < 1:
                await self._commit(connection, ())
                return ()
            async with connection.pipeline():
                leases = await connection.execute(statements.LEASES_OF, (orphaned,), binary=True)
                rows = await connection.execute(
                    statements.TAKE, (orphaned, limit, limit), binary=True
                )
                clock = await connection.execute(statements.CLOCK, binary=True)
            self.statistics.round_trips += 1
            ((now,),) = await clock.fetchall()
            alive = {other for other, until in await leases.fetchall() if until > now}
            dead = set(orphaned) - alive
            every = map(log_rows.stored, await rows.fetchall())
            found = [it for it in every if it.ended_at is None and it.transaction.owner in dead]
            found.sort(key=log_rows.age)
            draft = Draft(found, {}, now)
            taken = [draft.put(machine.claim(it.transaction, owner, now)) for it in found]
            await self._commit(connection, _statements(draft))
            return taken

        return await self._persist(attempt)

    async def _release(self, owner: str) -> None:
        await self._alone(statements.RELEASE, (owner,))
        await self._alone(statements.FOLD, (self._name, SILENCE))

    async def _purge(self, older_than: float, limit: int) -> int:
        ((count,),) = await self._alone(statements.PURGE, (older_than, limit, older_than))
        await self._alone(statements.FOLD, ("", SILENCE))
        return int(count)

    async def _alone(self, query: Query, values: Sequence[object]) -> Rows:
        """Run one statement that may run twice, on the writer."""
        self.statistics.round_trips += 1
        self.statistics.commits += 1
        return await self._writer.read(query, values)

    async def _put(self, connection: Connection, draft: Draft) -> None:
        if draft.empty:
            await connection.execute("ROLLBACK")
            self.statistics.round_trips += 1
        else:
            await self._commit(connection, _statements(draft))

    async def _commit(self, connection: Connection, changes: _Statements) -> None:
        self.statistics.round_trips += 1
        sent = False
        try:
            async with connection.pipeline():
                for query, values in changes:
                    await connection.execute(query, values or None)
                sent = True
                await connection.execute("COMMIT")
        except psycopg.Error as error:
            if not sent or proves_nothing_written(error):
                raise
            await self._writer.drop(connection)
            lost = translated(error)
            raise UnknownOutcomeError(
                f"{lost.message}, while it committed",
                hint="ask for the transaction by its id, or do the same again",
            ) from error
        self.statistics.commits += 1

    async def _persist(self, attempt: Callable[[Connection], Awaitable[T]]) -> T:
        """Do a transaction; again where nothing was written, and doing it anew may succeed."""
        for left in reversed(range(ATTEMPTS)):
            connection = await self._writer.connection()
            try:
                if connection is not self._prepared:
                    await connection.execute(statements.prepare_count(self._name))
                    self._prepared = connection
                return await attempt(connection)
            except psycopg.Error as error:
                if proves_nothing_written(error):
                    await self._roll_back(connection)
                else:  # lost, or refused by our side; COMMIT was not sent yet
                    await self._writer.drop(connection)
                if not left or not worth_repeating(error):
                    raise translated(error) from error
            except UnknownOutcomeError:
                raise
            except BaseException:
                await self._writer.drop(connection)
                raise
        raise AssertionError("unreachable")

    async def _roll_back(self, connection: Connection) -> None:
        try:
            await connection.execute("ROLLBACK")
        except psycopg.Error:
            await self._writer.drop(connection)


def _statements(draft: Draft) -> _Statements:
    """What writes a draft; the counts last, on which others may wait."""
    locks = draft.locks()
    every: list[tuple[Query, Sequence[tuple[object, ...]]]] = [
        (statements.INSERT, [log_rows.row(it) for it in draft.inserted]),
        (statements.UPDATE, [log_rows.row(it) for it in draft.updated]),
        (statements.HISTORY, [log_rows.event_row(*event) for event in draft.events]),
        (statements.GIVE_UP, locks.removed),
        (statements.HAND_ON, locks.added + locks.moved),
    ]
    found: list[tuple[Query | bytes, Sequence[object]]] = [
        (query, [list(column) for column in zip(*rows, strict=True)])
        for query, rows in every
        if rows
    ]
    if draft.counted:
        found.append((statements.count(draft.counted), ()))
    return found
