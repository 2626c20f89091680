"""The statements of the log in PostgreSQL. Each is short, and reads by an index what it needs.

Rules:
- Rows come as arrays, so that a batch of any size is the same few statements.
- Whatever locks rows does so in their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from psycopg import sql

from bedstone.transactions import log_rows
from bedstone.transactions.log_counts import STEPS

_READ: Final = sql.SQL(log_rows.READ)
_NOW: Final = sql.SQL("extract(epoch FROM clock_timestamp())::float8")
CLOCK: Final = sql.SQL("SELECT {}").format(_NOW)
LOCK_ROWS: Final = sql.SQL(
    "SELECT {} FROM transactions WHERE xid = ANY(%b::text[]) ORDER BY xid FOR NO KEY UPDATE"
).format(_READ)
PLACE: Final = sql.SQL(
    "INSERT INTO transaction_locks SELECT * FROM unnest(%b::text[], %b::text[]) "
    "ON CONFLICT (key) DO NOTHING RETURNING key, xid"
)
HOLDERS: Final = sql.SQL("SELECT key, xid FROM transaction_locks WHERE key = ANY(%b::text[])")
_NEW: Final = sql.SQL(
    "unnest(%b::text[], %b::text[], %b::text[], %b::float8[], %b::float8[], %b::float8[], "
    "%b::text[], %b::bigint[], %b::float8[], %b::text[], %b::int[], %b::bool[]) AS n ({})"
).format(sql.SQL(log_rows.WRITTEN))
INSERT: Final = sql.SQL("INSERT INTO transactions ({}) SELECT * FROM {}").format(
    sql.SQL(log_rows.WRITTEN), _NEW
)
UPDATE: Final = sql.SQL(
    "UPDATE transactions AS t SET state = n.state, ended_at = n.ended_at, owner = n.owner, "
    "epoch = n.epoch, next_attempt = n.next_attempt, branches = n.branches, events = n.events, "
    "stuck = n.stuck FROM {} WHERE t.xid = n.xid"
).format(_NEW)
HISTORY: Final = sql.SQL(
    "INSERT INTO transaction_events ({}) SELECT * FROM unnest(%b::text[], %b::int[], "
    "%b::float8[], %b::text[], %b::int[], %b::text[])"
).format(sql.SQL(log_rows.EVENT))
GIVE_UP: Final = sql.SQL(
    "DELETE FROM transaction_locks AS t USING unnest(%b::text[], %b::text[]) AS n (key, xid) "
    "WHERE t.key = n.key AND t.xid = n.xid"
)
HAND_ON: Final = sql.SQL(
    "INSERT INTO transaction_locks SELECT * FROM unnest(%b::text[], %b::text[]) "
    "ON CONFLICT (key) DO UPDATE SET xid = excluded.xid"
)
# A row for each writer, so that none waits for another; the one of '' is of writers that are gone.
_STEPS: Final = sql.SQL(", ").join(sql.SQL(step) for step in STEPS)
_COUNTED: Final = sql.SQL("ON CONFLICT (writer) DO UPDATE SET at = excluded.at, {}").format(
    sql.SQL(", ").join(sql.SQL("{0} = c.{0} + excluded.{0}").format(sql.SQL(it)) for it in STEPS)
)
# Prepared by its name for each connection, since every batch counts: else its planning, and the
# numbers as parameters, would cost a lone operation a twelfth of its time.
PREPARE_COUNT: Final = sql.SQL(
    "PREPARE bedstone_count (bigint, bigint, bigint, bigint, bigint) AS "
    "INSERT INTO transaction_counts AS c (writer, at, {}) VALUES ({{}}, {}, $1, $2, $3, $4, $5) {}"
).format(_STEPS, _NOW, _COUNTED)


def prepare_count(writer: str) -> sql.Composed:
    """What `count` needs to be run first on each connection."""
    return sql.SQL(PREPARE_COUNT.as_string()).format(sql.Literal(writer))


def count(counted: Sequence[int]) -> bytes:
    """Add to a writer's counts."""
    return b"EXECUTE bedstone_count (%d, %d, %d, %d, %d)" % tuple(counted)


# What is moved is never lost nor doubled: a writer whose row has gone begins another one.
FOLD: Final = sql.SQL("""
WITH gone AS (
    DELETE FROM transaction_counts WHERE writer = ANY(ARRAY(
        SELECT writer FROM transaction_counts WHERE writer <> '' AND (writer = %s OR at < {} - %s)
        ORDER BY writer FOR UPDATE SKIP LOCKED))
    RETURNING *
)
INSERT INTO transaction_counts AS c (writer, at, {})
    SELECT '', {}, {} FROM gone HAVING count(*) > 0
    {} RETURNING 1
""").format(
    _NOW,
    _STEPS,
    _NOW,
    sql.SQL(", ").join(sql.SQL("sum({})").format(sql.SQL(step)) for step in STEPS),
    _COUNTED,
)
COUNTS: Final = sql.SQL(
    "SELECT (SELECT identity FROM transaction_log), "
    "(SELECT count(*) FROM transactions WHERE stuck), {} FROM transaction_counts"
).format(
    sql.SQL(", ").join(
        sql.SQL("coalesce(sum({}), 0)::bigint").format(sql.SQL(step)) for step in STEPS
    )
)
RENEW: Final = sql.SQL(
    "INSERT INTO transaction_owners VALUES (%s, {} + %s) "
    "ON CONFLICT (owner) DO UPDATE SET until = excluded.until"
).format(_NOW)
# Each owner is found by one step in the index, however much it holds. Their leases are locked, so
# that none is renewed while it is taken over.
ORPHANED: Final = sql.SQL("""
WITH RECURSIVE holders (owner) AS (
    SELECT min(owner) FROM transactions WHERE ended_at IS NULL
    UNION ALL
    SELECT (SELECT min(owner) FROM transactions
            WHERE ended_at IS NULL AND owner > holders.owner)
    FROM holders WHERE holders.owner IS NOT NULL
)
SELECT owner FROM holders WHERE owner IS NOT NULL AND owner <> %s
    AND owner NOT IN (SELECT owner FROM transaction_owners WHERE until > {})
""").format(_NOW)
LIVING: Final = sql.SQL("SELECT owner FROM transaction_owners WHERE until > {}").format(_NOW)
LEASES_OF: Final = sql.SQL(
    "SELECT owner, until FROM transaction_owners WHERE owner = ANY(%s) ORDER BY owner FOR UPDATE"
)
# Whose they are is looked at when they are locked: a condition on it here would have the planner
# read all that an owner holds.
TAKE: Final = sql.SQL("""
SELECT {} FROM transactions WHERE xid = ANY(ARRAY(
    SELECT it.xid FROM unnest(%s::text[]) AS dead (owner), LATERAL (
        SELECT xid, created FROM transactions
        WHERE ended_at IS NULL AND transactions.owner = dead.owner
        ORDER BY created LIMIT %s) AS it
    ORDER BY it.created, it.xid LIMIT %s))
ORDER BY xid FOR NO KEY UPDATE
""").format(_READ)
RELEASE: Final = sql.SQL("DELETE FROM transaction_owners WHERE owner = %s RETURNING 1")
PURGE: Final = sql.SQL("""
WITH old AS (
    SELECT xid FROM transactions WHERE ended_at < %s ORDER BY ended_at, xid LIMIT %s
), gone AS (
    DELETE FROM transactions WHERE xid IN (SELECT xid FROM old) RETURNING xid
), history AS (
    DELETE FROM transaction_events WHERE xid IN (SELECT xid FROM old)
), leases AS (
    DELETE FROM transaction_owners AS o WHERE until < %s AND NOT EXISTS (
        SELECT 1 FROM transactions AS t WHERE t.ended_at IS NULL AND t.owner = o.owner)
)
SELECT count(*) FROM gone
""")
EVENTS: Final = sql.SQL(
    "SELECT at, kind, branch, detail FROM transaction_events WHERE xid = %s ORDER BY position"
)
ENDS: Final = sql.SQL("SELECT xid, ended_at FROM transactions WHERE xid = ANY(%s::text[])")
LEASES: Final = sql.SQL("SELECT owner, until FROM transaction_owners")


GET: Final = sql.SQL("SELECT {} FROM transactions WHERE xid = %s").format(_READ)
# The clock in a query of its own is read once, and so can bound what the index gives.
OWNED: Final = sql.SQL(
    "SELECT {} FROM transactions WHERE ended_at IS NULL AND owner = %s "
    "AND next_attempt <= (SELECT {}) ORDER BY next_attempt, xid LIMIT %s"
).format(_READ, _NOW)
LIST: Final = sql.SQL(
    "SELECT {} FROM transactions WHERE xid > %s AND state = ANY(%s::text[]) ORDER BY xid LIMIT %s"
).format(_READ)
LIST_STUCK: Final = sql.SQL(
    "SELECT {} FROM transactions WHERE xid > %s AND state = ANY(%s::text[]) AND stuck "
    "ORDER BY xid LIMIT %s"
).format(_READ)
# Sorted apart, so that the few that are open are not looked for among all that have ended.
LIST_OPEN: Final = sql.SQL(
    "WITH open AS MATERIALIZED (SELECT {} FROM transactions WHERE xid > %s "
    "AND state = ANY(%s::text[]) AND ended_at IS NULL) SELECT * FROM open ORDER BY xid LIMIT %s"
).format(_READ)
