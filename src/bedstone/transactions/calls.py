"""Calls that go together: their branches in one log write, their TRYs in parallel, one decision.

Owns `Call`, what a mode's call is before it runs, and `together`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from bedstone.errors import InvalidError
from bedstone.transactions.model import Branch
from bedstone.transactions.scope import DEFAULT_TIMEOUT, Scope


class Call(Protocol):
    """A call of one participant that has not run yet."""

    def branch(self) -> Branch:
        """What to register for it, with the number 0."""

    async def perform(self, scope: Scope, branch: Branch) -> Any:
        """Run its TRY as `branch`, which is registered; returns what the caller gets."""


async def together(
    *calls: Call, name: str = "", timeout: float = DEFAULT_TIMEOUT
) -> tuple[Any, ...]:
    """Run calls as one transaction, in parallel; inside a transaction, as part of it.

    Two log writes in all before the answer: all branches with the beginning, and the decision.

    Example:
        >>> async def transfer() -> None:
        ...     await together(
        ...         debit.call(account="a", amount=5),
        ...         credit.call(account="b", amount=5),
        ...         name="transfer",
        ...     )

    Args:
        calls: of any modes that have a TRY.
        name: what it is for, for people.
        timeout: seconds for the whole.

    Returns:
        What each call returned, in their order.

    Raises:
        Error: the first call's that failed; the transaction is aborted.
        TransactionAbortedError: nothing of it stays.
        DecisionUnknownError: the log did not answer; ask by id.
    """
    from bedstone.transactions.manager import process

    if not calls:
        raise InvalidError("got no call, expected at least one to run together")
    branches = [call.branch() for call in calls]
    async with Scope(process(), name, timeout=timeout, branches=branches) as scope:
        return await _all(scope, calls)


def together_sync(
    *calls: Call, name: str = "", timeout: float = DEFAULT_TIMEOUT
) -> tuple[Any, ...]:
    """`together` for blocking code; the calls still run in parallel."""
    from bedstone.transactions.manager import process

    return process().run(together(*calls, name=name, timeout=timeout))


async def _all(scope: Scope, calls: tuple[Call, ...]) -> tuple[Any, ...]:
    if len(calls) == 1:
        return (await calls[0].perform(scope, scope.branches[0]),)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(call.perform(scope, branch))
                for call, branch in zip(calls, scope.branches, strict=True)
            ]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return tuple(task.result() for task in tasks)
