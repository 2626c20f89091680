"""What can go wrong with a distributed transaction, by what the caller should do.

```
ConflictError
├ TransactionAbortedError     decided: nothing of it stays; run the whole again under a new id
│ └ TransactionTimeoutError   decided likewise, because its deadline passed
├ TransactionDecidedError     too late for what was asked: the end is decided already
├ FencedError                 another coordinator owns it now; ours must stop touching it
└ StuckError                  a person must decide (dirty row, compensation that can't succeed)
UnavailableError
├ LockConflictError           another transaction holds the row; nothing was applied; retry
└ WaitingError                a saga waits for a time or a signal; its owner goes on then
InvalidError
└ UnsupportedStatementError   SQL that can't be undone is refused before it runs
NotFoundError
└ UnknownTransactionError     no such id; never to be read as "finished"
UnknownOutcomeError
└ DecisionUnknownError        the decision was sent to the log and no answer came; ask by id
```

Bedstone itself retries confirm, cancel, compensation and delivery, for ever, with back-off. It
never retries `try_` or a business statement: the caller does.
"""

from __future__ import annotations

from bedstone.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnknownOutcomeError,
)


class TransactionAbortedError(ConflictError):
    """The transaction is decided: aborted. The caller may run the whole again under a new id."""


class TransactionTimeoutError(TransactionAbortedError):
    """The transaction's deadline passed before it was decided."""


class TransactionDecidedError(ConflictError):
    """The transaction's end is decided; it takes no branch and no other decision."""


class FencedError(ConflictError):
    """Another coordinator owns the transaction, under a later epoch."""


class StuckError(ConflictError):
    """Only a person can go on: what is there is neither what was before nor what was after.

    Args:
        message: what stands in the way.
        report: for the person: resource, table, key and the images `before`, `after` and `now`,
            as JSON values; `repair`, the statements that would set each right.
    """

    def __init__(
        self, message: str, *, report: dict[str, object] | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint or "see `bedstone tx show`, then `bedstone tx repair`")
        self.report = report or {}


class LockConflictError(UnavailableError):
    """Another transaction holds the global lock of a row; nothing was applied."""


class WaitingError(UnavailableError):
    """A saga can't go on before a time, or before somebody signals it.

    Args:
        message: what it waits for.
        until: when its owner should look again, in seconds since the epoch by the log's clock.
    """

    def __init__(self, message: str, *, until: float) -> None:
        super().__init__(message, hint="`bedstone tx show` tells what it waits for")
        self.until = until


class UnsupportedStatementError(InvalidError):
    """A statement that can't be undone automatically; it was not run."""


class UnknownTransactionError(NotFoundError):
    """No transaction has that id."""


class DecisionUnknownError(UnknownOutcomeError):
    """The log gave no answer to the decision: it stands, or it does not; ask again by id."""
