"""Whether what a transaction log holds after a fault is whole, and is all that it acknowledged.

The transactions of these checks have two branches and two locks; what was acknowledged of each is
its last step: `begun`, `decided` or `ended`.
"""

from __future__ import annotations

from collections.abc import Mapping
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


async def check_whole(log: Log, acknowledged: Mapping[str, str]) -> None:
    """What was acknowledged is there, and nothing at all is half there.

    Raises:
        AssertionError: something is lost, or half there.
    """
    found: list[Transaction] = []
    while page := await log.list(after=found[-1].xid if found else "", limit=500):
        found += page
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
