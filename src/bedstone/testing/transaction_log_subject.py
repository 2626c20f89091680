"""What the checks of transaction logs are run on, and what they all use.

Owns `Subject`, the world that a driver's tests describe, and small helpers of the checks. The
checks themselves are in `transaction_log_starts`, `transaction_log_ends`,
`transaction_log_owners` and `transaction_log_counts`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, TypeVar

from bedstone.errors import Error
from bedstone.transactions.model import (
    Branch,
    BranchState,
    Event,
    Log,
    Mode,
    Outcome,
    Transaction,
)

E = TypeVar("E", bound=Error)

SKIPPED: Final = "skipped"

LONG: Final = 3600.0
"""Seconds that no check takes."""

CONFIRMED, CANCELLED = BranchState.CONFIRMED, BranchState.CANCELLED


@dataclass(frozen=True, slots=True)
class Subject:
    """One world of transactions, and how to open logs over it.

    Args:
        open: a log over this world; entering it acquires, leaving it releases.
        durable: the data outlives the log.
        shared: several logs over this world may be open at once.
        cut: break every connection of the open logs, if they have any.
    """

    open: Callable[[], AbstractAsyncContextManager[Log]]
    durable: bool = True
    shared: bool = True
    cut: Callable[[], Awaitable[None]] | None = None


class Checks:
    """Checks on one subject, each an `async` method named `check_…`.

    Args:
        subject: the world that the check may write to.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject


async def expect(kind: type[E], attempt: Awaitable[object]) -> E:
    """Await a failure of one kind."""
    try:
        result = await attempt
    except kind as error:
        return error
    raise AssertionError(f"got {result!r}, expected {kind.__name__}")


def branch(
    resource: str = "local:a", *locks: str, mode: Mode = Mode.TCC, payload: bytes = b"{}"
) -> Branch:
    """A branch to register."""
    return Branch(0, mode, resource, payload, locks)


async def begun(
    log: Log, xid: str, *branches: Branch, owner: str = "one", seconds: float = LONG
) -> Transaction:
    """Begin a transaction whose deadline is so many seconds from now, and read it."""
    deadline = await log.now() + seconds
    await log.begin(Transaction(xid, f"of {xid}", deadline, 0.0, owner, branches=branches))
    return await log.get(xid)


async def done(
    log: Log, transaction: Transaction, state: BranchState, *numbers: int
) -> Transaction:
    """Record the success of branches."""
    outcomes = [Outcome(number, state) for number in numbers]
    owner, epoch = transaction.owner, transaction.epoch
    return await log.record(transaction.xid, owner, epoch, outcomes, await log.now())


def kinds(events: Sequence[Event]) -> list[str]:
    """The events' kinds, in order."""
    return [event.kind for event in events]


def xids(transactions: Sequence[Transaction]) -> list[str]:
    """Their ids, in order."""
    return [transaction.xid for transaction in transactions]
