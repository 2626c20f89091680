"""Distributed transactions: one decision for work in several databases.

A transaction is a block. What is called in it, here and in the services that it calls, commits
together or not at all:

```python
from bedstone import transactions

async with transactions.transaction("transfer", timeout=5.0):
    await debit(account="a", amount=5)
    await credit(account="b", amount=5)
```

| mode | names | choose it when |
|---|---|---|
| TCC | `Tcc`, `tcc`, `together` | you can reserve, then take or give back |
| automatic | `automatic` | plain SQL should undo itself |
| XA | `xa` | the databases can prepare |
| saga | `Saga`, `step`, `signal`, … | it takes long, and each step has its opposite |
| messages | `publish`, `Consumer`, … | others should hear of it, if it is committed |

Rules: flat, imports fast, pulls in no server code. A name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bedstone.transactions.automatic import Automatic, automatic
    from bedstone.transactions.calls import Call, together, together_sync
    from bedstone.transactions.consuming import Consumer
    from bedstone.transactions.errors import (
        DecisionUnknownError,
        LockConflictError,
        StuckError,
        TransactionAbortedError,
        TransactionDecidedError,
        TransactionTimeoutError,
        UnknownTransactionError,
        UnsupportedStatementError,
    )
    from bedstone.transactions.manager import (
        Transactions,
        current,
        process,
        transaction,
        use,
    )
    from bedstone.transactions.messages import Messages, TwoPhaseMessage, publish
    from bedstone.transactions.outbox import Relay, publish_with, publish_with_sync
    from bedstone.transactions.saga import (
        Saga,
        event,
        parallel,
        saga,
        sequence,
        signal,
        signal_sync,
        step,
        timer,
    )
    from bedstone.transactions.scope import Scope
    from bedstone.transactions.sweeper import Sweeper
    from bedstone.transactions.tcc import Tcc, tcc
    from bedstone.transactions.web import TransactionsMiddleware
    from bedstone.transactions.xa import XA, xa

__all__ = [
    "XA",
    "Automatic",
    "Call",
    "Consumer",
    "DecisionUnknownError",
    "LockConflictError",
    "Messages",
    "Relay",
    "Saga",
    "Scope",
    "StuckError",
    "Sweeper",
    "Tcc",
    "TransactionAbortedError",
    "TransactionDecidedError",
    "TransactionTimeoutError",
    "Transactions",
    "TransactionsMiddleware",
    "TwoPhaseMessage",
    "UnknownTransactionError",
    "UnsupportedStatementError",
    "automatic",
    "current",
    "event",
    "parallel",
    "process",
    "publish",
    "publish_with",
    "publish_with_sync",
    "saga",
    "sequence",
    "signal",
    "signal_sync",
    "step",
    "tcc",
    "timer",
    "together",
    "together_sync",
    "transaction",
    "use",
    "xa",
]

_MODULES = {
    "automatic": ("Automatic", "automatic"),
    "calls": ("Call", "together", "together_sync"),
    "consuming": ("Consumer",),
    "errors": (
        "DecisionUnknownError",
        "LockConflictError",
        "StuckError",
        "TransactionAbortedError",
        "TransactionDecidedError",
        "TransactionTimeoutError",
        "UnknownTransactionError",
        "UnsupportedStatementError",
    ),
    "manager": ("Transactions", "current", "process", "transaction", "use"),
    "messages": ("Messages", "TwoPhaseMessage", "publish"),
    "outbox": ("Relay", "publish_with", "publish_with_sync"),
    "saga": (
        "Saga",
        "event",
        "parallel",
        "saga",
        "sequence",
        "signal",
        "signal_sync",
        "step",
        "timer",
    ),
    "scope": ("Scope",),
    "sweeper": ("Sweeper",),
    "tcc": ("Tcc", "tcc"),
    "web": ("TransactionsMiddleware",),
    "xa": ("XA", "xa"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]


class _Package(ModuleType):
    """This package: `tcc` is the function, also after somebody has imported the module `tcc`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
