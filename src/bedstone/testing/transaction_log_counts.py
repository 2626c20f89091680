"""The checks of transaction logs that are about their counts: nothing twice, nothing missed."""

from __future__ import annotations

import asyncio

from bedstone.errors import ConflictError, UnavailableError, UnknownOutcomeError
from bedstone.testing.transaction_log_subject import (
    CANCELLED,
    CONFIRMED,
    LONG,
    SKIPPED,
    Checks,
    begun,
    branch,
    done,
    expect,
)
from bedstone.testing.transaction_log_whole import check_counts
from bedstone.transactions.errors import TransactionTimeoutError
from bedstone.transactions.model import BranchState, Event, Log, Outcome, State, Transaction


async def _end(log: Log, xid: str, state: State) -> None:
    """Begin one, decide it, and end it; each is asked for twice."""
    reached = CONFIRMED if state is State.COMMITTING else CANCELLED
    for _ in range(2):
        transaction = Transaction(
            xid, "", 4e9, 0.0, "one", branches=(branch("r1"), branch("r2", xid))
        )
        await log.begin(transaction)
    for _ in range(2):
        await log.decide(xid, state)
    for _ in range(2):
        await done(log, transaction, reached, 1, 2)


async def _insist(log: Log, xid: str) -> None:
    """Begin one, commit it, and end it; each is asked again until there is an answer."""
    new = Transaction(xid, "", 4e9, 0.0, "one", branches=(branch("r1"), branch("r2", xid)))
    for step in (
        lambda: log.begin(new),
        lambda: log.decide(xid, State.COMMITTING),
        lambda: done(log, new, CONFIRMED, 1, 2),
    ):
        for _ in range(100):
            try:
                await step()
            except (UnavailableError, UnknownOutcomeError):
                await asyncio.sleep(0.01)
            else:
                break
        else:
            raise AssertionError(f"{xid} never ended")


class CountChecks(Checks):
    """What was counted is what was done."""

    async def check_an_empty_log_counts_nothing(self) -> None:
        """Zero is said for each, and the log has an identity."""
        async with self.subject.open() as log:
            await check_counts(log, ())
            assert (await log.counts()).log
            assert (await log.counts()).log == (await log.counts()).log

    async def check_every_step_is_counted_once(self) -> None:
        """Repeated, refused and failed calls count nothing."""
        async with self.subject.open() as log:
            await _end(log, "c", State.COMMITTING)
            await _end(log, "a", State.ABORTING)
            await check_counts(log, await log.list())
            for xid, state in (("c0", State.COMMITTING), ("a0", State.ABORTING)):
                await begun(log, xid)  # without branches the decision is the end
                await log.decide(xid, state)
            await begun(log, "late", branch(), seconds=-1)
            await expect(TransactionTimeoutError, log.decide("late", State.COMMITTING))
            await begun(log, "late0", seconds=-1)
            await expect(TransactionTimeoutError, log.decide("late0", State.COMMITTING))
            new = Transaction("c", "another", 4e9, 0.0, "two")
            await expect(ConflictError, log.begin(new))
            await expect(ConflictError, log.decide("c", State.ABORTING))
            await begun(log, "open", branch())
            await check_counts(log, await log.list())
            counts = await log.counts()
            assert counts.events == {"begun": 7, "committed": 2, "cancelled": 3}
            assert counts.open == {State.ACTIVE: 1, State.COMMITTING: 0, State.ABORTING: 1}

    async def check_stuck_and_repaired_are_counted(self) -> None:
        """A repair that ends a transaction counts as any other end; what is taken over does not."""
        async with self.subject.open() as log:
            await begun(log, "a", branch("r1"))
            await log.decide("a", State.ABORTING)
            stuck = Outcome(1, BranchState.REGISTERED, error="dirty", stuck={"x": 1})
            await log.record("a", "one", 1, [stuck], await log.now())
            assert (await log.counts()).stuck == 1
            await check_counts(log, await log.list())
            await log.claim("two", LONG, 10)
            await check_counts(log, await log.list())
            await log.amend("a", Event(0.0, "repaired", 1), [Outcome(1, CANCELLED)])
            assert (await log.counts()).stuck == 0
            await check_counts(log, await log.list())

    async def check_what_is_forgotten_stays_counted(self) -> None:
        """Purging and the end of leases change no count."""
        async with self.subject.open() as log:
            for n in range(4):
                await _end(log, f"t{n}", (State.COMMITTING, State.ABORTING)[n % 2])
            await begun(log, "open")
            before = await log.counts()
            await log.release("one")
            assert await log.counts() == before
            assert await log.purge(await log.now() + 1, 3) == 3
            await log.release("one")
            assert await log.counts() == before
            await _end(log, "later", State.COMMITTING)
            assert (await log.counts()).events == {"begun": 6, "committed": 3, "cancelled": 2}

    async def check_steps_that_come_together_are_each_counted(self) -> None:
        """Of many callers, some racing for one transaction, each change counts once."""
        async with self.subject.open() as log:
            names = [f"t{n:02}" for n in range(20)]
            states = (State.COMMITTING, State.ABORTING)
            await asyncio.gather(*(begun(log, name, branch()) for name in names * 2))
            await asyncio.gather(
                *(log.decide(name, state) for name in names for state in states * 2),
                return_exceptions=True,
            )
            await check_counts(log, await log.list())
            await asyncio.gather(
                *(
                    done(log, it, CONFIRMED if it.state is State.COMMITTING else CANCELLED, 1)
                    for it in await log.list()
                    for _ in range(2)
                )
            )
            await check_counts(log, await log.list())

    async def check_counts_outlive_the_log(self) -> str | None:
        """They go on where they were, under the same identity."""
        if not self.subject.durable:
            return SKIPPED
        identities = set()
        for n in range(3):
            async with self.subject.open() as log:
                await _end(log, f"t{n}", State.COMMITTING)
                await begun(log, f"open{n}")
                await check_counts(log, await log.list())
                identities.add((await log.counts()).log)
                if n == 1:
                    await log.release("one")
        assert len(identities) == 1
        return None

    async def check_writers_count_as_one(self) -> str | None:
        """Several logs over one world, while some give up their leases."""
        if not self.subject.shared:
            return SKIPPED
        async with self.subject.open() as here, self.subject.open() as there:

            async def work(log: Log, name: str) -> None:
                for n in range(8):
                    await _end(log, f"{name}{n}", (State.COMMITTING, State.ABORTING)[n % 2])
                    await log.release("one")
                    await log.purge(0.0, 10)

            await asyncio.gather(work(here, "h"), work(there, "t"))
            found = await here.list()
            assert len(found) == 16
            await check_counts(here, found)
            await check_counts(there, found)
        return None

    async def check_cut_connections_count_the_truth(self) -> str | None:
        """Whatever a caller was told, what was counted is what is there."""
        if self.subject.cut is None:
            return SKIPPED
        async with self.subject.open() as log:
            for round_ in range(5):
                names = [f"r{round_}-{n}" for n in range(10)]
                attempts = [asyncio.ensure_future(_insist(log, name)) for name in names]
                await asyncio.sleep(0.002 * round_)
                await self.subject.cut()
                await asyncio.gather(*attempts)
                await check_counts(log, await log.list())
        return None
