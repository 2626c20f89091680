"""Transactions as the API shows them. Pure.

A payload may hold what is private, and so may what a saga's steps return and what signals bring:
only their digests leave the log. A stuck branch's report is for the person who must decide.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from bedstone.model.api import (
    BranchDetail,
    TransactionDetail,
    TransactionEvent,
    TransactionSummary,
)
from bedstone.transactions.model import Branch, Event, Transaction

_PRIVATE = {"payload", "result"}


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
            TransactionEvent(at=e.at, kind=e.kind, branch=e.branch, detail=_digested(e.detail))
            for e in events
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


def _digested(detail: dict[str, object]) -> dict[str, object]:
    """An event's detail with the digest of what a saga's step returned or a signal brought."""
    shown = dict(detail)
    for name in _PRIVATE & shown.keys():
        if shown[name] is not None:
            shown[name] = f"sha256:{_digest(json.dumps(shown[name], sort_keys=True).encode())}"
    return shown


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _branch(branch: Branch) -> BranchDetail:
    return BranchDetail(
        number=branch.number,
        mode=str(branch.mode),
        resource=branch.resource,
        state=str(branch.state),
        attempts=branch.attempts,
        payload_digest=_digest(branch.payload),
        locks=branch.locks,
        error=branch.error,
        stuck=branch.stuck,
    )
