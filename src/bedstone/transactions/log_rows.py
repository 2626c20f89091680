"""How the log's drivers hold transactions and events in rows; shared by SQLite and PostgreSQL.

Rules:
- What is written is read back equal: payloads are kept byte for byte, times as 64-bit floats.
- Branches, details and reports are JSON text in ASCII, so that no database alters or refuses them.
- What a database would refuse is refused here, before it comes into a batch with others' work.
- `ended_at` is NULL until the transaction ends: the indexes that polls use hold only such rows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bedstone.errors import InvalidError
from bedstone.transactions.model import (
    Branch,
    BranchState,
    Event,
    Mode,
    Outcome,
    State,
    Transaction,
)

READ: Final = (
    "xid, name, state, deadline, created, ended_at, owner, epoch, next_attempt, branches, events"
)
"""The columns of `stored`, in order."""
WRITTEN: Final = f"{READ}, stuck"
"""The columns of `row`, in order."""
EVENT: Final = "xid, position, at, kind, branch, detail"
"""The columns of `event_row`, in order."""

LONGEST_LOCK: Final = 2000
"""Bytes of a lock's key: PostgreSQL's index takes a third of its 8 KiB page."""
LONGEST_NAME: Final = 1000

_XID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Stored:
    """A transaction as its row holds it.

    Args:
        transaction: what callers see.
        branches: its branches, encoded.
        events: how long its history is.
        ended_at: when it ended, by the log's clock.
    """

    transaction: Transaction
    branches: str
    events: int = 0
    ended_at: float | None = None


def stored(row: Sequence[Any]) -> Stored:
    """Read a row of the columns `READ`."""
    xid, name, state, deadline, created, ended_at, owner, epoch, following, text, events = row
    transaction = Transaction(
        xid,
        name,
        deadline,
        created,
        owner,
        epoch,
        State(state),
        decode_branches(text),
        following,
    )
    return Stored(transaction, text, events, ended_at)


def row(held: Stored) -> tuple[object, ...]:
    """The values of the columns `WRITTEN`."""
    it = held.transaction
    return (
        it.xid,
        it.name,
        it.state.value,
        float(it.deadline),
        it.created,
        held.ended_at,
        it.owner,
        it.epoch,
        float(it.next_attempt),
        held.branches,
        held.events,
        is_stuck(it),
    )


def event_row(xid: str, position: int, event: Event) -> tuple[object, ...]:
    """The values of the columns `EVENT`."""
    detail = _encode(event.detail) if event.detail else "{}"
    return (xid, position, event.at, event.kind, event.branch, detail)


def event(found: Sequence[Any]) -> Event:
    """Read a row of the columns `at, kind, branch, detail`."""
    at, kind, branch, detail = found
    return Event(at, kind, branch, json.loads(detail))


def encode_branches(branches: Iterable[Branch]) -> str:
    """Branches as one JSON text; what is at its default is left out."""
    return _encode([_branch_value(branch) for branch in branches])


def decode_branches(text: str) -> tuple[Branch, ...]:
    """What `encode_branches` made."""
    if text == "[]":
        return ()
    return tuple(_branch(value) for value in json.loads(text))


def age(held: Stored) -> tuple[float, str]:
    """What sorts the oldest first."""
    return (held.transaction.created, held.transaction.xid)


def is_stuck(transaction: Transaction) -> bool:
    """Whether a branch waits for a person."""
    return any(it.stuck is not None for it in transaction.branches)


def held_locks(branches: Iterable[Branch]) -> tuple[str, ...]:
    """The global locks of these branches, sorted, each once."""
    return tuple(sorted({lock for branch in branches for lock in branch.locks}))


def is_xid(xid: str) -> bool:
    """Whether a transaction may have this id."""
    return _XID.fullmatch(xid) is not None


def check_owner(owner: str) -> str:
    """Accept a coordinator's name.

    Raises:
        InvalidError: it is empty, too long, or no text that a database takes.
    """
    return _check_text("owner", owner, LONGEST_NAME, least=1)


def check_transaction(transaction: Transaction) -> None:
    """Refuse what a row can't hold.

    Raises:
        InvalidError: it can't be written.
    """
    if not is_xid(transaction.xid):
        raise InvalidError(
            f"got transaction id {transaction.xid[:80]!a}, expected 1 to 64 of A-Z a-z 0-9 . _ -"
        )
    check_owner(transaction.owner)
    _check_text("transaction name", transaction.name, LONGEST_NAME)
    check_time(transaction.deadline)
    check_time(transaction.next_attempt)
    check_branches(transaction.branches)


def check_time(at: float) -> None:
    """Refuse what is no time.

    Raises:
        InvalidError: it is not finite.
    """
    if not math.isfinite(at):
        raise InvalidError(f"got the time {at}, expected seconds since the epoch")


def check_branches(branches: Iterable[Branch]) -> None:
    """Refuse locks and resources that a row can't hold.

    Raises:
        InvalidError: one can't be written.
    """
    for branch in branches:
        _check_text("resource", branch.resource, 2000, least=1)
        check_locks(branch.locks)
        if branch.stuck is not None:
            _check_json("report", branch.stuck)


def check_locks(locks: Iterable[str]) -> None:
    """Refuse keys that a row can't hold.

    Raises:
        InvalidError: one can't be written.
    """
    for lock in locks:
        _check_text("lock", lock, LONGEST_LOCK, least=1)


def check_outcomes(outcomes: Iterable[Outcome]) -> None:
    """Refuse reports that are no JSON.

    Raises:
        InvalidError: one can't be written.
    """
    for outcome in outcomes:
        if outcome.stuck is not None:
            _check_json("report", outcome.stuck)


def check_events(events: Iterable[Event]) -> None:
    """Refuse details that are no JSON.

    Raises:
        InvalidError: one can't be written.
    """
    for it in events:
        _check_text("kind of event", it.kind, LONGEST_NAME, least=1)
        _check_json("detail", it.detail)


def _branch_value(branch: Branch) -> dict[str, object]:
    value: dict[str, object] = {
        "number": branch.number,
        "mode": branch.mode.value,
        "resource": branch.resource,
        "payload": branch.payload.decode("utf-8", "surrogateescape"),
    }
    if branch.locks:
        value["locks"] = branch.locks
    if branch.state is not BranchState.REGISTERED:
        value["state"] = branch.state.value
    if branch.attempts:
        value["attempts"] = branch.attempts
    if branch.error is not None:
        value["error"] = branch.error
    if branch.stuck is not None:
        value["stuck"] = branch.stuck
    return value


def _branch(value: Mapping[str, Any]) -> Branch:
    return Branch(
        value["number"],
        Mode(value["mode"]),
        value["resource"],
        value["payload"].encode("utf-8", "surrogateescape"),
        tuple(value.get("locks", ())),
        BranchState(value.get("state", "registered")),
        value.get("attempts", 0),
        value.get("error"),
        value.get("stuck"),
    )


def _check_text(what: str, text: str, most: int, *, least: int = 0) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidError(f"got a {what} that is no Unicode text: {text[:80]!a}") from None
    if not least <= size <= most or "\0" in text:
        raise InvalidError(
            f"got {what} {text[:80]!a}, expected {least} to {most} bytes of text without NUL",
            hint="name a row by a shorter key" if what == "lock" else None,
        )
    return text


def _check_json(what: str, value: object) -> None:
    try:
        _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(f"got a {what} that is no JSON: {error}") from error
