"""Whether what a transaction log holds after a fault is whole, and is all that it acknowledged.

The transactions of these checks have two branches and two locks; what was acknowledged of each is
its last step: `begun`, `decided` or `ended`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from bedstone.transactions.model import Branch, Log, Mode, State, Transaction

FAR: Final = 4e9
"""A deadline that no test sees."""
STEPS: Final = ("begun", "decided", "ended")

_REACHED: Final = {
    State.ACTIVE: "begun",
    State.COMMITTING: "decided",
    State.ABORTING: "decided",
    State.COMMITTED: "ended",
    State.ABORTED: "ended",
}


def branches(xid: str) -> tuple[Branch, ...]:
    """What these transactions begin with."""
    return (Branch(0, Mode.AT, "r", locks=(f"{xid}/1", f"{xid}/2")), Branch(0, Mode.TCC, "s"))


async def begin(log: Log, xid: str) -> None:
    """Begin one of them, of owner `one`."""
    await log.begin(Transaction(xid, "n", FAR, 0.0, "one", branches=branches(xid)))


async def check_counts(log: Log, found: Sequence[Transaction]) -> None:
    """A log that nothing was purged from has counted just what it holds.

    Raises:
        AssertionError: something was counted twice, or missed.
    """
    states = Counter(it.state for it in found)
    counts = await log.counts()
    assert counts.events == {
        "begun": len(found),
        "committed": states[State.COMMITTED],
        "cancelled": states[State.ABORTED],
    }
    assert counts.open == {state: states[state] for state in State if not state.ended}
    assert counts.stuck == sum(any(b.stuck is not None for b in it.branches) for it in found)


async def check_whole(log: Log, acknowledged: Mapping[str, str]) -> None:
    """What was acknowledged is there, and nothing at all is half there.

    Raises:
        AssertionError: something is lost, or half there.
    """
    found: list[Transaction] = []
    while page := await log.list(after=found[-1].xid if found else "", limit=500):
        found += page
    await check_counts(log, found)
    known = {it.xid: STEPS.index(_REACHED[it.state]) for it in found}
    for xid, step in acknowledged.items():
        assert known.get(xid, -1) >= STEPS.index(step), (xid, step)
    for it in found:
        assert len(it.branches) == 2
        kinds = [event.kind for event in await log.events(it.xid)]
        expected = ["begun", "registered", "registered"]
        if it.state is not State.ACTIVE:
            expected.append("decided")
        if it.state.ended:
            expected += ["attempt", "attempt", "ended"]
        assert kinds == expected
        locks = [lock for branch in it.branches for lock in branch.locks]
        keeps = it.state in {State.ACTIVE, State.ABORTING}
        assert await log.locked(locks) == (dict.fromkeys(locks, it.xid) if keeps else {})
