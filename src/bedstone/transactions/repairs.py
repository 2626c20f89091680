"""What a person may do about a transaction that does not end by itself.

Rules:
- Who, when and why stand in the transaction's history, in the same write as the change.
- A person may say that a branch has reached the end that was decided, and no other: the decision
  stands, whoever asks.
"""

from __future__ import annotations

from typing import Final

from bedstone.errors import DeniedError, InvalidError
from bedstone.transactions.model import (
    BranchState,
    Event,
    Log,
    Outcome,
    State,
    Transaction,
)


async def retry(log: Log, xid: str, by: str, why: str) -> Transaction:
    """Go on now with what failed or is stuck.

    Args:
        log: the durable log.
        xid: the transaction.
        by: the person who says so.
        why: what has changed.

    Raises:
        InvalidError: no person or no reason was given.
        UnknownTransactionError: there is none of that id.
        TransactionDecidedError: it has ended.
    """
    _demand_person(by, why)
    return await log.amend(xid, Event(0.0, "retried", detail={"by": by, "why": why}))


async def repair(
    log: Log,
    xid: str,
    number: int,
    to: BranchState,
    *,
    by: str,
    why: str,
    second: str | None = None,
    second_person: bool = False,
) -> Transaction:
    """Take a branch as ended, because a person has set right what it left.

    Args:
        log: the durable log.
        xid: the transaction.
        number: its branch.
        to: the end that was decided: CONFIRMED or CANCELLED.
        by: the person who did it.
        why: what was done.
        second: the person who checked it.
        second_person: whether one is needed.

    Raises:
        InvalidError: there is no such open branch, the end is not the decided one, or no person or
            no reason was given.
        DeniedError: another second person is needed.
        UnknownTransactionError: there is none of that id.
        TransactionDecidedError: it has ended.
    """
    _demand_person(by, why)
    checker = (second or "").strip()
    if checker.casefold() == by.strip().casefold() or (second_person and not checker):
        raise DeniedError(
            f"got a repair by {by!r} and {second!r}, expected two persons",
            hint="let somebody else check it, and name them",
        )
    transaction = await log.get(xid)
    if not transaction.state.ended:
        _demand_open(transaction, number, to)
    detail: dict[str, object] = {"by": by, "why": why, "to": str(to)}
    if checker:
        detail["second"] = checker
    return await log.amend(xid, Event(0.0, "repaired", number, detail), [Outcome(number, to)])


_ENDS: Final = {
    State.COMMITTING: BranchState.CONFIRMED,
    State.ABORTING: BranchState.CANCELLED,
}


def _demand_person(by: str, why: str) -> None:
    if not by.strip() or not why.strip():
        raise InvalidError(f"got by {by!r}, why {why!r}, expected a person and a reason")


def _demand_open(transaction: Transaction, number: int, to: BranchState) -> None:
    end = _ENDS.get(transaction.state)
    if end is None:
        raise InvalidError(
            f"transaction {transaction.xid} is not decided; there is nothing to repair yet",
            hint="abort it, or wait for its deadline",
        )
    for branch in transaction.branches:
        if branch.number == number and branch.state is BranchState.REGISTERED:
            if to is end:
                return
            raise InvalidError(
                f"got {to} for branch {number}, expected {end}: "
                f"transaction {transaction.xid} is {transaction.state}"
            )
    raise InvalidError(f"transaction {transaction.xid} has no open branch {number}")
