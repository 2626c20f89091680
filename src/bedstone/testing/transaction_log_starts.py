"""The checks of transaction logs that are about beginnings, registration and global locks."""

from __future__ import annotations

import asyncio

from bedstone.errors import ConflictError, InvalidError
from bedstone.testing.transaction_log_subject import Checks, begun, branch, expect, kinds, xids
from bedstone.transactions.errors import (
    LockConflictError,
    TransactionDecidedError,
    UnknownTransactionError,
)
from bedstone.transactions.model import Branch, BranchState, Event, Mode, State, Transaction


class StartChecks(Checks):
    """Beginnings, registration and locks."""

    async def check_ends_says_what_has_ended_and_what_it_does_not_know(self) -> None:
        """What is missing from the answer is unknown, never ended."""
        async with self.subject.open() as log:
            for xid in ("open", "over"):
                await begun(log, xid)
            before = await log.now()
            await log.decide("over", State.COMMITTING)
            found = await log.ends(["over", "nothing", "open"])
            assert set(found) == {"open", "over"}
            assert found["open"] is None
            at = found["over"]
            assert at is not None
            assert before <= at <= await log.now()
            assert await log.ends([]) == {}

    async def check_an_unknown_id_is_an_error(self) -> None:
        """It is never read as finished, whatever is asked."""
        async with self.subject.open() as log:
            for attempt in (
                log.get("x"),
                log.events("x"),
                log.register("x", [branch()]),
                log.decide("x", State.COMMITTING),
                log.decide("x", State.ABORTING),
                log.record("x", "one", 1, [], 0.0),
                log.journal("x", "one", 1, []),
                log.amend("x", Event(0.0, "retried")),
            ):
                await expect(UnknownTransactionError, attempt)
            assert list(await log.list()) == []
            assert await log.locked(["x"]) == {}

    async def check_a_transaction_is_read_as_it_was_written(self) -> None:
        """Every field, of several branches, with any text and any payload."""
        async with self.subject.open() as log:
            first = Branch(
                0, Mode.AT, "local:bänk", '{"a":"Ω\\u0000"}'.encode(), ("r/t/1", "r/t/2")
            )
            second = Branch(0, Mode.MESSAGE, "http://b/.bedstone", b"\x00\xff" * 1000)
            before = await log.now()
            deadline = before + 12.5
            new = Transaction("a.B_c-1", "pay 'em; --", deadline, 0.0, "one", 7)
            await log.begin(new)
            found = await log.register("a.B_c-1", [first, second])
            assert found == await log.get("a.B_c-1")
            assert (found.name, found.owner, found.epoch) == ("pay 'em; --", "one", 7)
            assert (found.state, found.deadline) == (State.ACTIVE, deadline)
            assert before <= found.created <= await log.now()
            assert [it.number for it in found.branches] == [1, 2]
            for wanted, got in zip((first, second), found.branches, strict=True):
                assert (got.mode, got.resource) == (wanted.mode, wanted.resource)
                assert (got.payload, got.locks) == (wanted.payload, wanted.locks)
                assert (got.state, got.attempts) == (BranchState.REGISTERED, 0)
                assert (got.error, got.stuck) == (None, None)
            events = await log.events("a.B_c-1")
            assert kinds(events) == ["begun", "registered", "registered"]
            assert [event.branch for event in events] == [None, 1, 2]
            assert events[0].detail["name"] == "pay 'em; --"
            assert all(before <= event.at for event in events)

    async def check_begin_is_idempotent_for_the_same_content(self) -> None:
        """The answer may have been lost; other content under the same id is a conflict."""
        async with self.subject.open() as log:
            new = Transaction(
                "a", "n", await log.now() + 60, 0.0, "one", branches=(branch("r", "l"),)
            )
            await log.begin(new)
            await log.begin(new)
            assert kinds(await log.events("a")) == ["begun", "registered"]
            for other in (
                Transaction("a", "m", new.deadline, 0.0, "one", branches=new.branches),
                Transaction("a", "n", new.deadline, 0.0, "two", branches=new.branches),
                Transaction("a", "n", new.deadline, 0.0, "one"),
            ):
                await expect(ConflictError, log.begin(other))
            found = await log.get("a")
            assert (found.name, found.owner, len(found.branches)) == ("n", "one", 1)

    async def check_bad_ids_are_refused(self) -> None:
        """Nothing is written."""
        async with self.subject.open() as log:
            for bad in ("", "a" * 65, "a b", "a/b", "é", "a\n"):
                await expect(InvalidError, log.begin(Transaction(bad, "", 1e11, 0.0, "one")))
            assert list(await log.list()) == []

    async def check_registration_numbers_on(self) -> None:
        """Branches keep their order; together they are all there or none is."""
        async with self.subject.open() as log:
            await begun(log, "a", branch("r1"))
            await log.register("a", [branch("r2"), branch("r3")])
            found = await log.register("a", [branch("r4")])
            assert [(it.number, it.resource) for it in found.branches] == [
                (1, "r1"),
                (2, "r2"),
                (3, "r3"),
                (4, "r4"),
            ]

    async def check_a_lock_has_one_holder(self) -> None:
        """A refused beginning or registration leaves nothing: no branch, and no lock."""
        async with self.subject.open() as log:
            await begun(log, "a", branch("r", "k1", "k2"))
            await log.register("a", [branch("r", "k2", "k3")])
            new = Transaction("b", "", await log.now() + 60, 0.0, "one")
            with_locks = Transaction(
                "b", "", new.deadline, 0.0, "one", branches=(branch("r", "k9", "k2"),)
            )
            await expect(LockConflictError, log.begin(with_locks))
            await expect(UnknownTransactionError, log.get("b"))
            await log.begin(new)
            await expect(
                LockConflictError, log.register("b", [branch("r", "k9"), branch("r", "k3")])
            )
            assert (await log.get("b")).branches == ()
            assert await log.locked(["k1", "k2", "k3", "k9"]) == dict.fromkeys(
                ("k1", "k2", "k3"), "a"
            )

    async def check_no_branch_and_no_lock_after_the_decision(self) -> None:
        """A known failure elsewhere: a branch came after the rollback; its lock stayed for ever."""
        async with self.subject.open() as log:
            for xid, state in (("a", State.ABORTING), ("c", State.COMMITTING)):
                await begun(log, xid, branch())
                await log.decide(xid, state)
                await expect(TransactionDecidedError, log.register(xid, [branch("r", f"{xid}/k")]))
            await begun(log, "late", seconds=-1)
            await expect(TransactionDecidedError, log.register("late", [branch("r", "late/k")]))
            assert await log.locked(["a/k", "c/k", "late/k"]) == {}
            assert [len((await log.get(it)).branches) for it in ("a", "c", "late")] == [1, 1, 0]

    async def check_locks_under_contention(self) -> None:
        """Of many that want one lock at once one has it; nobody waits for another for ever."""
        async with self.subject.open() as log:
            deadline = await log.now() + 60
            results = await asyncio.gather(
                *(
                    log.begin(
                        Transaction(
                            f"t{n:02}",
                            "",
                            deadline,
                            0.0,
                            "one",
                            branches=(branch("r", f"k{n % 4}", f"k{(n + 1) % 4}", f"own{n}"),),
                        )
                    )
                    for n in range(40)
                ),
                return_exceptions=True,
            )
            lost = [result for result in results if result is not None]
            assert all(isinstance(error, LockConflictError) for error in lost), lost
            winners = xids(await log.list())
            assert len(winners) == 40 - len(lost)
            assert 1 <= len(winners) <= 2
            held = await log.locked([f"k{n}" for n in range(4)])
            assert len(held) == 2 * len(winners)
            assert set(held.values()) == set(winners)

    async def check_concurrent_registrations_keep_every_branch(self) -> None:
        """Each has its own number."""
        async with self.subject.open() as log:
            await begun(log, "a")
            await asyncio.gather(*(log.register("a", [branch(f"r{n}")]) for n in range(20)))
            found = await log.get("a")
            assert [it.number for it in found.branches] == list(range(1, 21))
            assert {it.resource for it in found.branches} == {f"r{n}" for n in range(20)}

    async def check_cancelled_callers_leave_the_log_well(self) -> None:
        """What was given up is whole or absent, and others' operations are not touched."""
        async with self.subject.open() as log:
            for steps in range(8):
                deadline = await log.now() + 60
                given_up = asyncio.ensure_future(
                    log.begin(
                        Transaction(
                            f"x{steps}",
                            "",
                            deadline,
                            0.0,
                            "one",
                            branches=(branch("r", f"x{steps}/1", f"x{steps}/2"),),
                        )
                    )
                )
                others = [
                    asyncio.ensure_future(begun(log, f"y{steps}-{n}", branch("r", f"y{steps}/{n}")))
                    for n in range(4)
                ]
                for _ in range(steps):
                    await asyncio.sleep(0)
                given_up.cancel()
                await asyncio.gather(given_up, return_exceptions=True)
                await asyncio.gather(*others)
                # a later operation, so that one in doubt is settled
                await begun(log, f"z{steps}")
                there = f"x{steps}" in xids(await log.list(limit=1000))
                held = await log.locked([f"x{steps}/1", f"x{steps}/2"])
                assert len(held) == (2 if there else 0)

    async def check_lists_are_by_id_in_pages(self) -> None:
        """Of the states asked for; from the one after `after`."""
        async with self.subject.open() as log:
            for xid in ("b", "B", "a-1", "a", "c", "_"):
                await begun(log, xid, branch())
            await log.decide("b", State.COMMITTING)
            await log.decide("c", State.ABORTING)
            everything = sorted(["b", "B", "a-1", "a", "c", "_"])
            assert xids(await log.list()) == everything
            assert xids(await log.list(limit=2)) == everything[:2]
            assert xids(await log.list(after=everything[1], limit=3)) == everything[2:5]
            assert xids(await log.list([State.COMMITTING, State.ABORTING])) == ["b", "c"]
            assert xids(await log.list([State.ABORTED])) == []
            assert xids(await log.list(stuck=True)) == []
            assert [it.branches[0].resource for it in await log.list()] == ["local:a"] * 6
