"""Transactions as the API shows them. Pure.

A payload may hold what is private: only its digest leaves the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from bedstone.model.api import (
    BranchDetail,
    TransactionDetail,
    TransactionEvent,
    TransactionSummary,
)
from bedstone.transactions.model import Branch, Event, Transaction


def summary(transaction: Transaction) -> TransactionSummary:
    """One line of a list."""
    open_branches = [branch for branch in transaction.branches if branch.error is not None]
    return TransactionSummary(
        xid=transaction.xid,
        name=transaction.name,
        state=str(transaction.state),
        stuck=any(branch.stuck is not None for branch in transaction.branches),
        created=transaction.created,
        deadline=transaction.deadline,
        owner=transaction.owner,
        epoch=transaction.epoch,
        next_attempt=transaction.next_attempt,
        branches=len(transaction.branches),
        attempts=sum(branch.attempts for branch in transaction.branches),
        trouble=next((branch.error for branch in open_branches if branch.error), ""),
    )


def detail(app: str, transaction: Transaction, events: Sequence[Event]) -> TransactionDetail:
    """All of one."""
    return TransactionDetail(
        app=app,
        transaction=summary(transaction),
        branches=tuple(_branch(branch) for branch in transaction.branches),
        events=tuple(
            TransactionEvent(at=e.at, kind=e.kind, branch=e.branch, detail=e.detail) for e in events
        ),
    )


def proposer(events: Sequence[Event], branch: int, who: str) -> str | None:
    """Who else has asked for this branch's repair since it became stuck."""
    for event in reversed(events):
        by = event.detail.get("by")
        if event.branch == branch and event.kind == "stuck":
            return None
        if (
            event.branch == branch
            and event.kind == "proposed"
            and isinstance(by, str)
            and by != who
        ):
            return by
    return None


def _branch(branch: Branch) -> BranchDetail:
    return BranchDetail(
        number=branch.number,
        mode=str(branch.mode),
        resource=branch.resource,
        state=str(branch.state),
        attempts=branch.attempts,
        payload_digest=hashlib.sha256(branch.payload).hexdigest(),
        locks=branch.locks,
        error=branch.error,
        stuck=branch.stuck,
    )
