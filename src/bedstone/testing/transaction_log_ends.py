"""The checks of transaction logs that are about decisions and the ways to the end."""

from __future__ import annotations

import asyncio

from bedstone.errors import InvalidError
from bedstone.testing.transaction_log_subject import (
    CANCELLED,
    CONFIRMED,
    LONG,
    Checks,
    begun,
    branch,
    done,
    expect,
    kinds,
    xids,
)
from bedstone.transactions.errors import (
    FencedError,
    TransactionDecidedError,
    TransactionTimeoutError,
)
from bedstone.transactions.model import BranchState, Event, Mode, Outcome, State, Transaction


class DecisionChecks(Checks):
    """Decisions."""

    async def check_a_decision_is_made_once(self) -> None:
        """The same again is no change; the other is refused."""
        async with self.subject.open() as log:
            for xid, state, other in (
                ("c", State.COMMITTING, State.ABORTING),
                ("a", State.ABORTING, State.COMMITTING),
            ):
                await begun(log, xid, branch())
                decided = await log.decide(xid, state, "because")
                assert decided.state is state
                assert await log.decide(xid, state, "again") == decided
                await expect(TransactionDecidedError, log.decide(xid, other))
                assert await log.get(xid) == decided
                assert decided.next_attempt <= await log.now()
                events = await log.events(xid)
                assert kinds(events) == ["begun", "registered", "decided"]
                assert events[-1].detail == {
                    "state": str(state),
                    "late": False,
                    "reason": "because",
                }

    async def check_only_a_decision_is_one(self) -> None:
        """The other states are not for callers to set."""
        async with self.subject.open() as log:
            await begun(log, "a")
            for state in (State.ACTIVE, State.COMMITTED, State.ABORTED):
                await expect(InvalidError, log.decide("a", state))
            assert (await log.get("a")).state is State.ACTIVE

    async def check_a_decision_after_the_end_is_the_same(self) -> None:
        """An answer that comes again after the end: the decision stands, the other is refused."""
        async with self.subject.open() as log:
            transaction = await begun(log, "a", branch())
            await log.decide("a", State.COMMITTING)
            await done(log, transaction, CONFIRMED, 1)
            assert (await log.decide("a", State.COMMITTING)).state is State.COMMITTED
            await expect(TransactionDecidedError, log.decide("a", State.ABORTING))

    async def check_commit_after_the_deadline_decides_abort(self) -> None:
        """It is refused and written, all at once."""
        async with self.subject.open() as log:
            await begun(log, "a", branch("r"), seconds=LONG)
            deadline = await log.now() - 1
            late = Transaction("late", "", deadline, 0.0, "one", branches=(branch("r", "k"),))
            await log.begin(late)
            await expect(TransactionTimeoutError, log.decide("late", State.COMMITTING))
            found = await log.get("late")
            assert found.state is State.ABORTING
            assert await log.locked(["k"]) == {"k": "late"}
            assert (await log.events("late"))[-1].detail == {"state": "aborting", "late": True}
            await expect(TransactionDecidedError, log.decide("late", State.COMMITTING))
            assert (await log.get("a")).state is State.ACTIVE

    async def check_without_branches_the_decision_is_the_end(self) -> None:
        """There is nothing to do."""
        async with self.subject.open() as log:
            for xid, state, end in (
                ("c", State.COMMITTING, State.COMMITTED),
                ("a", State.ABORTING, State.ABORTED),
            ):
                await begun(log, xid)
                assert (await log.decide(xid, state)).state is end
                assert kinds(await log.events(xid)) == ["begun", "decided", "ended"]

    async def check_of_racing_decisions_one_stands(self) -> None:
        """All callers are told the same end."""
        async with self.subject.open() as log:
            for n in range(6):
                await begun(log, f"t{n}", branch())
                states = [State.COMMITTING, State.ABORTING] * 4
                results = await asyncio.gather(
                    *(log.decide(f"t{n}", state) for state in states), return_exceptions=True
                )
                stands = (await log.get(f"t{n}")).state
                for state, result in zip(states, results, strict=True):
                    if state is stands:
                        assert isinstance(result, Transaction)
                        assert result.state is stands
                    else:
                        assert isinstance(result, TransactionDecidedError)
                assert kinds(await log.events(f"t{n}")).count("decided") == 1


class EndChecks(Checks):
    """The ways to the end, and what is left then."""

    async def check_locks_go_at_the_decision_to_commit(self) -> None:
        """And not before."""
        async with self.subject.open() as log:
            await begun(log, "a", branch("r", "k"))
            assert await log.locked(["k"]) == {"k": "a"}
            await log.decide("a", State.COMMITTING)
            assert await log.locked(["k"]) == {}
            await begun(log, "b", branch("r", "k"))
            assert await log.locked(["k"]) == {"k": "b"}

    async def check_locks_stay_until_all_is_cancelled(self) -> None:
        """In the same write as the end; and the end takes nobody else's."""
        async with self.subject.open() as log:
            transaction = await begun(log, "a", branch("r", "k1"), branch("r", "k2"))
            await begun(log, "b", branch("r", "k3"))
            await log.decide("a", State.ABORTING)
            assert (await done(log, transaction, CANCELLED, 2)).state is State.ABORTING
            assert set(await log.locked(["k1", "k2", "k3"])) == {"k1", "k2", "k3"}
            assert (await done(log, transaction, CANCELLED, 1)).state is State.ABORTED
            assert await log.locked(["k1", "k2", "k3"]) == {"k3": "b"}
            await begun(log, "c", branch("r", "k1", "k2"))
            await done(log, transaction, CANCELLED, 1, 2)
            assert await log.locked(["k1", "k2", "k3"]) == {"k1": "c", "k2": "c", "k3": "b"}

    async def check_the_last_branch_is_the_end(self) -> None:
        """Repeated outcomes change nothing."""
        async with self.subject.open() as log:
            transaction = await begun(log, "a", branch("r1"), branch("r2"))
            await log.decide("a", State.COMMITTING)
            first = await done(log, transaction, CONFIRMED, 2)
            assert [it.state for it in first.branches] == [BranchState.REGISTERED, CONFIRMED]
            again = await done(log, transaction, CONFIRMED, 2)
            assert again.branches == first.branches
            ended = await done(log, transaction, CONFIRMED, 1)
            assert ended.state is State.COMMITTED
            assert (await done(log, transaction, CONFIRMED, 1, 2)).state is State.COMMITTED
            assert (await log.get("a")).state is State.COMMITTED
            assert kinds(await log.events("a")).count("ended") == 1

    async def check_the_wrong_end_is_not_taken(self) -> None:
        """What a participant says it did does not count unless it was decided."""
        async with self.subject.open() as log:
            transaction = await begun(log, "a", branch())
            assert (await done(log, transaction, CONFIRMED, 1)).state is State.ACTIVE
            await log.decide("a", State.ABORTING)
            found = await done(log, transaction, CONFIRMED, 1, 9)
            assert found.state is State.ABORTING
            assert found.branches[0].state is BranchState.REGISTERED

    async def check_failures_are_kept(self) -> None:
        """Attempts, the error, and when the next attempt is."""
        async with self.subject.open() as log:
            await begun(log, "a", branch("r1"), branch("r2"))
            await log.decide("a", State.COMMITTING)
            failed = Outcome(1, BranchState.REGISTERED, error="no änswer")
            later = await log.now() + LONG
            for attempts in (1, 2):
                found = await log.record("a", "one", 1, [failed], later)
                assert found == await log.get("a")
                assert found.next_attempt == later
                assert (found.branches[0].attempts, found.branches[0].error) == (
                    attempts,
                    "no änswer",
                )
            assert xids(await log.owned("one", 10)) == []
            event = (await log.events("a"))[-1]
            assert (event.kind, event.branch) == ("attempt", 1)
            assert event.detail["error"] == "no änswer"

    async def check_stuck_waits_for_a_person(self) -> None:
        """Kept with its report and its locks until somebody says how to go on."""
        async with self.subject.open() as log:
            await begun(log, "a", branch("r1", "k"), branch("r2"))
            await begun(log, "b", branch("r1"))
            await log.decide("a", State.ABORTING)
            report: dict[str, object] = {"table": "t", "now": {"x": [1, None, "ü"]}}
            stuck = Outcome(2, BranchState.REGISTERED, error="dirty", stuck=report)
            await log.record("a", "one", 1, [stuck], await log.now())
            found = await log.get("a")
            assert found.branches[1].stuck == report
            assert xids(await log.list(stuck=True)) == ["a"]
            assert xids(await log.list([State.ABORTING], stuck=True)) == ["a"]
            assert xids(await log.list([State.ACTIVE], stuck=True)) == []
            assert xids(await log.owned("one", 10)) == []
            assert await log.locked(["k"]) == {"k": "a"}
            who: dict[str, object] = {"by": "ada", "why": "row set right"}
            amended = await log.amend("a", Event(0.0, "retried", detail=who))
            assert amended.branches[1].stuck is None
            assert amended.next_attempt <= await log.now()
            assert xids(await log.owned("one", 10)) == ["a"]
            event = (await log.events("a"))[-1]
            assert (event.kind, event.detail) == ("retried", who)
            assert event.at > 0

    async def check_a_repair_may_be_the_end(self) -> None:
        """What a person did counts; what has ended takes no repair."""
        async with self.subject.open() as log:
            await begun(log, "a", branch("r", "k"))
            await log.decide("a", State.ABORTING)
            event = Event(0.0, "repaired", 1, {"by": "ada"})
            ended = await log.amend("a", event, [Outcome(1, CANCELLED)])
            assert ended.state is State.ABORTED
            assert await log.locked(["k"]) == {}
            assert kinds(await log.events("a"))[-3:] == ["repaired", "attempt", "ended"]
            await expect(TransactionDecidedError, log.amend("a", event))

    async def check_a_journal_is_appended(self) -> None:
        """In order, under the log's clock; the time to go on is set where one is given."""
        async with self.subject.open() as log:
            await begun(log, "a", branch("r", mode=Mode.SAGA))
            start = await log.now()
            steps = [Event(0.0, "step", 1, {"name": f"s{n}", "result": n}) for n in range(3)]
            first = await log.journal("a", "one", 1, steps[:2], start + 60)
            assert first.next_attempt == start + 60
            second = await log.journal("a", "one", 1, steps[2:])
            assert second.next_attempt == start + 60
            events = [event for event in await log.events("a") if event.kind == "step"]
            assert [event.detail for event in events] == [step.detail for step in steps]
            assert all(event.at >= start for event in events)

    async def check_other_owners_writes_are_fenced(self) -> None:
        """Under another name or another epoch nothing is written."""
        async with self.subject.open() as log:
            await begun(log, "a", branch())
            await log.decide("a", State.COMMITTING)
            outcome = Outcome(1, CONFIRMED)
            for owner, epoch in (("two", 1), ("one", 0), ("one", 2)):
                await expect(FencedError, log.record("a", owner, epoch, [outcome], 0.0))
                await expect(FencedError, log.journal("a", owner, epoch, [Event(0.0, "step")]))
            assert (await log.get("a")).state is State.COMMITTING
            assert kinds(await log.events("a")) == ["begun", "registered", "decided"]

    async def check_one_refusal_is_nobody_elses(self) -> None:
        """Operations that are written together are refused one by one, in order."""
        async with self.subject.open() as log:
            for n in range(10):
                await begun(log, f"t{n}", branch("r", f"k{n}"))
            attempts = []
            for n in range(10):
                attempts.append(log.decide(f"t{n}", State.COMMITTING))
                attempts.append(log.decide("unknown", State.COMMITTING))
                attempts.append(log.register(f"t{n}", [branch("r", f"k{(n + 1) % 10}")]))
            results = await asyncio.gather(*attempts, return_exceptions=True)
            for n in range(10):
                decided, unknown, registered = results[3 * n : 3 * n + 3]
                assert isinstance(decided, Transaction)
                assert isinstance(unknown, Exception)
                assert (await log.get(f"t{n}")).state is State.COMMITTING
                taken = len((await log.get(f"t{n}")).branches) == 2
                assert taken is isinstance(registered, Transaction)
            assert await log.locked([f"k{n}" for n in range(10)]) == {}
