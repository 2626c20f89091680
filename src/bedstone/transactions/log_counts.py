"""What a log has done since it was made, as numbers that equal its transactions: pure.

Rules:
- A step is counted in the local transaction that writes it. So a count is there exactly if the step
  is, whatever is killed or cut, and stays when the log forgets the transaction.
- A step is a change of state, never a call: what is repeated or refused counts nothing.
- Five numbers say all. What is open is begun and not decided, or decided and not ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bedstone.transactions.model import Counts, State

STEPS: Final = ("begun", "committing", "aborting", "committed", "cancelled")
"""What is counted, in the order of the columns that hold it."""

_PATH: Final[dict[State, tuple[str, ...]]] = {
    State.ACTIVE: ("begun",),
    State.COMMITTING: ("begun", "committing"),
    State.ABORTING: ("begun", "aborting"),
    State.COMMITTED: ("begun", "committing", "committed"),
    State.ABORTED: ("begun", "aborting", "cancelled"),
}


def steps(before: State | None, after: State) -> tuple[str, ...]:
    """What a change of state counts; None for a transaction that was not there.

    One that has nothing to end is decided and ended in one change.
    """
    done = _PATH[before] if before is not None else ()
    return _PATH[after][len(done) :]


def counts(log: str, numbers: Iterable[int], stuck: int) -> Counts:
    """The counts that these columns say.

    Args:
        log: the log's identity.
        numbers: of each of `STEPS`.
        stuck: transactions that wait for a person.
    """
    begun, committing, aborting, committed, cancelled = numbers
    return Counts(
        log,
        {"begun": begun, "committed": committed, "cancelled": cancelled},
        {
            State.ACTIVE: begun - committing - aborting,
            State.COMMITTING: committing - committed,
            State.ABORTING: aborting - cancelled,
        },
        stuck,
    )
