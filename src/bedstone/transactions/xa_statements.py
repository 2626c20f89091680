"""XA as conversations: what is said to PostgreSQL and to MariaDB or MySQL, and in which order.

Pure: `xa` runs these on connections.

Rules:
- The barrier's try row is written inside the prepared transaction. So it is visible if and only if
  the transaction was committed, and a TRY that comes after its cancel fails.
- An id that the server does not know never counts as finished by itself. CONFIRM is done if the try
  row is visible; CANCEL is done when the barrier's cancel marker is committed, which a transaction
  still under way, or prepared, prevents.
- Phase two runs on a connection where each statement stands alone, and repeats.
"""

from __future__ import annotations

import re
from contextlib import suppress

from bedstone.errors import InvalidError, UnavailableError
from bedstone.transactions import barrier
from bedstone.transactions.barrier import Entered
from bedstone.transactions.errors import StuckError
from bedstone.transactions.model import Phase
from bedstone.transactions.sql import Dialect, Query, Steps
from bedstone.transactions.sql_errors import number as errno
from bedstone.transactions.sql_errors import state as sqlstate

PREFIX = "bedstone:"
FORMAT = 0x42445354  # "BDST", the formatID of ours in MariaDB

_OURS = (
    f"SELECT 1 FROM {barrier.TABLE} WHERE xid = ? AND branch = ? AND phase = 'try' "  # noqa: S608
    "AND CAST(xmin AS text) = CAST(txid_current() % 4294967296 AS text)"
)
_XID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_GID = re.compile(rf"{PREFIX}([A-Za-z0-9._-]{{1,64}}):([0-9]+)")
_XAER_NOTA, _XAER_RMFAIL = 1397, 1399
_PAUSES = 25
_PAUSE = 0.02


def gid(xid: str, number: int) -> str:
    """The name of a branch's prepared transaction in PostgreSQL, safe inside quotes."""
    return f"{PREFIX}{_checked(xid)}:{number:d}"


def mysql_xid(xid: str, number: int) -> str:
    """The XA id of a branch, in SQL: global id, branch, format."""
    return f"'{_checked(xid)}','{number:d}',{FORMAT}"


def ready(dialect: Dialect) -> Steps[None]:
    """Check the server and make the barrier's table; each statement stands alone.

    Raises:
        InvalidError: the server can't prepare transactions.
    """
    if dialect is Dialect.SQLITE:
        raise InvalidError(
            "SQLite has no prepared transactions, expected PostgreSQL, MariaDB or MySQL",
            hint="use TCC or automatic mode for this database",
        )
    if dialect is Dialect.POSTGRES:
        shown = yield Query("SHOW max_prepared_transactions")
        if str(shown.rows[0][0]) == "0":
            raise InvalidError(
                "the PostgreSQL server has max_prepared_transactions = 0: it can't prepare",
                hint="set max_prepared_transactions = 100 (as many as max_connections) in "
                "postgresql.conf, and restart the server",
            )
    yield Query("BEGIN")
    yield from barrier.ensure(dialect)
    yield Query("COMMIT")


def start(xid: str, number: int) -> Query:
    """Begin in MariaDB and MySQL; PostgreSQL begins as usual."""
    return Query(f"XA START {mysql_xid(xid, number)}")


def tried(dialect: Dialect, xid: str, number: int) -> Steps[Entered]:
    """Enter TRY, first thing in the local transaction."""
    return (yield from barrier.enter(dialect, xid, str(number), Phase.TRY))


def prepare(dialect: Dialect, xid: str, number: int) -> Steps[None]:
    """Prepare what was begun; it survives this connection and a restart of the server.

    Raises:
        InvalidError: the local transaction isn't the one that was begun; roll back.
    """
    if dialect is Dialect.MYSQL:
        yield Query(f"XA END {mysql_xid(xid, number)}")
        yield Query(f"XA PREPARE {mysql_xid(xid, number)}")
        return
    # It is the one that was begun if it has written the try row. One that has failed refuses the
    # question; PREPARE would be answered with ROLLBACK, and no error.
    if not (yield Query(_OURS, (xid, str(number)))).rows:
        raise InvalidError(
            f"the local transaction of branch {number} of {xid} was ended inside the block",
            hint="leave commit and rollback to Bedstone inside `xa()`",
        )
    yield Query(f"PREPARE TRANSACTION '{gid(xid, number)}'")


def finish(dialect: Dialect, xid: str, number: int, phase: Phase) -> Steps[None]:
    """Do phase two; idempotent.

    Raises:
        UnavailableError: it is not finished; ask again.
        StuckError: it is to be cancelled, and was committed by somebody.
    """
    known = yield from _end(dialect, xid, number, phase)
    if phase is Phase.CANCEL:
        yield from _marked(dialect, xid, number)
    elif not known and (yield from barrier.tried(dialect, xid, str(number))) != Phase.TRY:
        raise UnavailableError(
            f"the server knows no prepared transaction of branch {number} of {xid}, and it is not "
            "committed: it is not finished",
            hint="if the server was restored from a backup, its writes are lost; see "
            "`bedstone tx repair`",
        )


def leftovers(dialect: Dialect) -> Steps[tuple[tuple[str, int], ...]]:
    """Id and branch of each prepared transaction of ours; in MariaDB of the whole server."""
    if dialect is Dialect.POSTGRES:
        found = yield Query(
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY gid"
        )
        matches = [_GID.fullmatch(str(row[0])) for row in found.rows]
        return tuple((match[1], int(match[2])) for match in matches if match)
    found = yield Query("XA RECOVER")
    ours = []
    for form, length, _, data in found.rows:
        text = data.decode() if isinstance(data, bytes) else str(data)
        if form == FORMAT:
            ours.append((text[: int(str(length))], int(text[int(str(length)) :])))
    return tuple(sorted(ours))


def _checked(xid: str) -> str:
    if not _XID.fullmatch(xid):
        raise InvalidError(f"got transaction id {xid!r}, expected 1 to 64 of [A-Za-z0-9._-]")
    return xid


def _end(dialect: Dialect, xid: str, number: int, phase: Phase) -> Steps[bool]:
    """Commit or roll back what is prepared; False if the server doesn't know it."""
    word = "COMMIT" if phase is Phase.CONFIRM else "ROLLBACK"
    if dialect is Dialect.POSTGRES:
        try:
            yield Query(f"{word} PREPARED '{gid(xid, number)}'")
        except Exception as error:
            match sqlstate(error):
                case "42704":  # undefined_object
                    return False
                case "55000":  # another session ends it, or has yet to let go
                    raise _busy(xid, number) from error
            raise
        return True
    for _ in range(_PAUSES):
        try:
            yield Query(f"XA {word} {mysql_xid(xid, number)}")
        except Exception as error:
            if errno(error) not in {_XAER_NOTA, _XAER_RMFAIL}:
                raise
        else:
            return True
        # The server says so too while the connection that prepared is not quite gone.
        listed = yield from leftovers(dialect)
        if (xid, number) not in listed:
            return False
        yield Query(f"DO SLEEP({_PAUSE})")
    raise _busy(xid, number)


def _busy(xid: str, number: int) -> UnavailableError:
    return UnavailableError(
        f"another session holds the prepared transaction of branch {number} of {xid}"
    )


def _marked(dialect: Dialect, xid: str, number: int) -> Steps[None]:
    """Commit the barrier's cancel marker; where a TRY holds its row, wait for a second at most."""
    waiting: object = None
    if dialect is Dialect.MYSQL:
        waiting = (yield Query("SELECT @@innodb_lock_wait_timeout")).rows[0][0]
        yield Query("SET SESSION innodb_lock_wait_timeout = 1")
    try:
        yield Query("BEGIN")
        if dialect is Dialect.POSTGRES:
            yield Query("SET LOCAL lock_timeout = '1s'")
        entered = yield from barrier.enter(dialect, xid, str(number), Phase.CANCEL)
        if entered is Entered.PROCEED:
            raise StuckError(
                f"branch {number} of transaction {xid} is to be cancelled, and is committed in "
                "the database: somebody ended its prepared transaction by hand",
                report={"xid": xid, "branch": number},
            )
        yield Query("COMMIT")
    except Exception:
        yield from _quietly(Query("ROLLBACK"))
        if waiting is not None:
            yield from _quietly(Query(f"SET SESSION innodb_lock_wait_timeout = {waiting}"))
        raise
    if waiting is not None:
        yield Query(f"SET SESSION innodb_lock_wait_timeout = {waiting}")


def _quietly(query: Query) -> Steps[None]:
    with suppress(Exception):  # the error that led here says more
        yield query
