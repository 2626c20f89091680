"""The checks of transaction logs that are about owners, leases, purging and reopening."""

from __future__ import annotations

import asyncio

from bedstone.errors import UnavailableError, UnknownOutcomeError
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
    kinds,
    xids,
)
from bedstone.transactions.errors import FencedError, UnknownTransactionError
from bedstone.transactions.machine import NEVER
from bedstone.transactions.model import BranchState, Mode, Outcome, State, Transaction


class OwnerChecks(Checks):
    """Owners, leases and purging."""

    async def check_a_living_owner_keeps_its_own(self) -> None:
        """Its lease ends when it says, not before; a renewal goes on from now."""
        async with self.subject.open() as log:
            assert list(await log.claim("one", LONG, 10)) == []
            await begun(log, "a", branch())
            before = await log.now()
            assert list(await log.claim("two", LONG, 10)) == []
            assert list(await log.claim("one", 2 * LONG, 10)) == []
            leases = await log.leases()
            assert set(leases) == {"one", "two"}
            after = await log.now()
            assert before + 2 * LONG <= leases["one"] <= after + 2 * LONG
            assert before + LONG <= leases["two"] <= after + LONG
            found = await log.get("a")
            assert (found.owner, found.epoch) == ("one", 1)

    async def check_the_dead_are_taken_over(self) -> None:
        """Once each, epoch raised, oldest first, as many as asked for; what has ended stays."""
        async with self.subject.open() as log:
            await log.claim("one", LONG, 10)
            for xid in ("c", "a", "b", "e"):
                transaction = await begun(log, xid, branch("r", xid))
            await log.decide("e", State.COMMITTING)
            await done(log, transaction, CONFIRMED, 1)
            await log.decide("a", State.ABORTING)
            await log.claim("one", 0.0, 0)
            created = {it.xid: (it.created, it.xid) for it in await log.list()}
            oldest = sorted(["a", "b", "c"], key=created.__getitem__)
            first = await log.claim("two", LONG, 2)
            assert xids(first) == oldest[:2]
            assert xids(await log.claim("three", LONG, 10)) == oldest[2:]
            assert list(await log.claim("two", LONG, 10)) == []
            for transaction in first:
                assert (transaction.owner, transaction.epoch) == ("two", 2)
                assert transaction == await log.get(transaction.xid)
            assert (await log.get("e")).owner == "one"
            event = (await log.events(oldest[0]))[-1]
            assert event.kind == "claimed"
            assert event.detail == {"from": "one", "to": "two", "epoch": 2}
            assert await log.locked(["a", "b", "c"]) == {"a": "a", "b": "b", "c": "c"}

    async def check_an_owner_without_a_lease_is_dead(self) -> None:
        """It may have died before its first renewal."""
        async with self.subject.open() as log:
            await begun(log, "a", owner="never renewed")
            assert xids(await log.claim("two", LONG, 10)) == ["a"]

    async def check_a_group_keeps_to_itself(self) -> None:
        """One takes over from its own group only: it may not reach another's participants."""
        async with self.subject.open() as log:
            for owner in ("web/1", "bank/1", "alone"):
                await begun(log, owner.replace("/", "."), branch(), owner=owner)
            assert list(await log.claim("shop/1", LONG, 10)) == []
            assert xids(await log.claim("web/2", LONG, 10)) == ["web.1"]
            assert xids(await log.claim("also alone", LONG, 10)) == ["alone"]

    async def check_everywhere_takes_over_where_nobody_of_the_group_is_left(self) -> None:
        """Not from those without a group: their participants have no address."""
        async with self.subject.open() as log:
            await log.claim("bank/2", LONG, 0)
            for owner in ("web/1", "bank/1", "alone"):
                await begun(log, owner.replace("/", "."), branch(), owner=owner)
            assert xids(await log.claim("*/server", LONG, 10)) == ["web.1"]
            await log.release("bank/2")
            assert xids(await log.claim("*/server", LONG, 10)) == ["bank.1"]
            await log.release("*/server")
            assert list(await log.claim("bank/3", LONG, 10)) == []
            assert sorted(xids(await log.claim("*/next", LONG, 10))) == ["bank.1", "web.1"]

    async def check_release_is_at_once(self) -> None:
        """Others take over without waiting; again, or unknown, is no error."""
        async with self.subject.open() as log:
            await log.claim("one", LONG, 10)
            await begun(log, "a")
            await log.release("one")
            await log.release("one")
            await log.release("nobody")
            assert "one" not in await log.leases() or (await log.leases())["one"] <= await log.now()
            assert xids(await log.claim("two", LONG, 10)) == ["a"]

    async def check_the_old_owner_is_fenced_after_its_return(self) -> None:
        """Even where it owned the transaction before, and owns it again under another epoch."""
        async with self.subject.open() as log:
            old = await begun(log, "a", branch("r1"), branch("r2"))
            await log.decide("a", State.ABORTING)
            (new,) = await log.claim("two", 0.0, 10)
            await expect(FencedError, done(log, old, CANCELLED, 2))
            await done(log, new, CANCELLED, 2)
            await expect(FencedError, done(log, old, CANCELLED, 1))
            (third,) = await log.claim("one", LONG, 10)
            assert (third.owner, third.epoch) == ("one", 3)
            await expect(FencedError, done(log, old, CANCELLED, 1))
            assert (await done(log, third, CANCELLED, 1)).state is State.ABORTED

    async def check_racing_claims_take_each_once(self) -> None:
        """Of many at once, each transaction has one new owner and one new epoch."""
        async with self.subject.open() as log:
            for n in range(12):
                await begun(log, f"t{n:02}", branch(), owner="dead")
            taken = await asyncio.gather(*(log.claim(f"o{n}", LONG, 5) for n in range(5)))
            everything = sorted(xid for some in taken for xid in xids(some))
            assert everything == [f"t{n:02}" for n in range(12)]
            assert all(len(some) <= 5 for some in taken)
            assert {it.epoch for it in await log.list()} == {2}

    async def check_owned_is_what_is_due(self) -> None:
        """The owner's own, not ended, due; longest due first."""
        async with self.subject.open() as log:
            for xid in ("due", "later", "active", "stuck", "ended", "other", "longer"):
                await begun(log, xid, branch(), owner="two" if xid == "other" else "one")
            for xid in ("longer", "due", "later", "stuck", "ended", "other"):
                await log.decide(xid, State.COMMITTING)
            now = await log.now()
            failed = Outcome(1, BranchState.REGISTERED, error="x")
            await log.record("longer", "one", 1, [failed], now - 50)
            await log.record("due", "one", 1, [failed], now - 20)
            await log.record("later", "one", 1, [failed], now + LONG)
            stuck = Outcome(1, BranchState.REGISTERED, error="x", stuck={"a": 1})
            assert (await log.record("stuck", "one", 1, [stuck], now)).next_attempt == NEVER
            await log.record("ended", "one", 1, [Outcome(1, CONFIRMED)], now)
            await begun(log, "late", branch(), seconds=-10)
            await begun(log, "saga", branch("r", mode=Mode.SAGA))
            await log.journal("saga", "one", 1, [], now - 1)
            assert xids(await log.owned("one", 10)) == ["longer", "due", "late", "saga"]
            assert xids(await log.owned("one", 2)) == ["longer", "due"]
            assert xids(await log.owned("two", 10)) == ["other"]
            assert list(await log.owned("nobody", 10)) == []

    async def check_purge_forgets_what_has_ended(self) -> None:
        """Before the time given, as many as asked for; and never what has not ended."""
        async with self.subject.open() as log:
            for xid in ("a", "b", "c", "open", "stuck"):
                await begun(log, xid, branch("r", xid))
            for xid in ("a", "b", "c"):
                transaction = await log.decide(xid, State.ABORTING)
                await done(log, transaction, CANCELLED, 1)
            await log.decide("stuck", State.ABORTING)
            report = Outcome(1, BranchState.REGISTERED, error="x", stuck={"a": 1})
            await log.record("stuck", "one", 1, [report], await log.now())
            now = await log.now()
            assert await log.purge(now - LONG, 10) == 0
            assert await log.purge(now + LONG, 2) == 2
            assert await log.purge(now + LONG, 10) == 1
            assert await log.purge(now + LONG, 10) == 0
            assert xids(await log.list()) == ["open", "stuck"]
            assert await log.locked(["open", "stuck", "a"]) == {"open": "open", "stuck": "stuck"}
            await expect(UnknownTransactionError, log.get("a"))
            await expect(UnknownTransactionError, log.events("a"))
            assert kinds(await log.events("open")) == ["begun", "registered"]

    async def check_purge_forgets_leases_without_use(self) -> None:
        """Of owners that are gone and hold nothing; else their names would pile up."""
        async with self.subject.open() as log:
            for owner, lease in (("gone", 0.0), ("holds", 0.0), ("lives", LONG)):
                await log.claim(owner, lease, 0)
            await begun(log, "a", owner="holds")
            await log.purge(await log.now() + 1, 10)
            assert set(await log.leases()) == {"holds", "lives"}


class ReopeningChecks(Checks):
    """Logs one after the other, and side by side."""

    async def check_what_was_acknowledged_is_there_after_reopening(self) -> str | None:
        """Transactions, what failed of them, their locks, their history, and leases."""
        if not self.subject.durable:
            return SKIPPED
        async with self.subject.open() as log:
            await log.claim("one", LONG, 10)
            await begun(log, "a", branch("r1", "k1"), branch("r2", "k2", payload=b"\x00\x01"))
            await begun(log, "b")
            await log.decide("a", State.ABORTING)
            outcomes = [
                Outcome(2, CANCELLED),
                Outcome(1, BranchState.REGISTERED, error="dirty", stuck={"x": 1}),
            ]
            await log.record("a", "one", 1, outcomes, await log.now())
            before = (
                [*await log.list()],
                [*await log.events("a")],
                await log.locked(["k1", "k2"]),
                await log.leases(),
            )
        async with self.subject.open() as log:
            after = (
                [*await log.list()],
                [*await log.events("a")],
                await log.locked(["k1", "k2"]),
                await log.leases(),
            )
            assert after == before
            assert after[2] == {"k1": "a", "k2": "a"}
        return None

    async def check_logs_share_one_truth(self) -> str | None:
        """Two at once over one world: locks, decisions and epochs are one."""
        if not self.subject.shared:
            return SKIPPED
        async with self.subject.open() as here, self.subject.open() as there:
            old = await begun(here, "a", branch("r", "k"))
            assert await there.get("a") == old
            await there.decide("a", State.ABORTING)
            (new,) = await there.claim("two", LONG, 10)
            await expect(FencedError, done(here, old, CANCELLED, 1))
            assert await here.locked(["k"]) == {"k": "a"}
            await done(there, new, CANCELLED, 1)
            assert (await here.get("a")).state is State.ABORTED
            deadline = await here.now() + 60

            async def take(log_number: int, n: int) -> str | None:
                log = (here, there)[log_number]
                new = Transaction(
                    f"t{log_number}-{n}", "", deadline, 0.0, "one", branches=(branch("r", f"k{n}"),)
                )
                try:
                    await log.begin(new)
                except UnavailableError:
                    return None
                return new.xid

            pairs = [(number, n) for n in range(20) for number in (0, 1)]
            won = [it for it in await asyncio.gather(*(take(*pair) for pair in pairs)) if it]
            held = await here.locked([f"k{n}" for n in range(20)])
            assert sorted(held.values()) == sorted(won)
            assert len(held) == 20
        return None

    async def check_cut_connections_lose_nothing(self) -> str | None:
        """What was acknowledged is there; what was not may be asked again, and tells the truth."""
        if self.subject.cut is None:
            return SKIPPED
        async with self.subject.open() as log:
            for round_ in range(5):
                names = [f"r{round_}-{n}" for n in range(10)]
                deadline = await log.now() + 60
                new = [
                    Transaction(name, "", deadline, 0.0, "one", branches=(branch("r", name),))
                    for name in names
                ]

                async def insist(transaction: Transaction) -> None:
                    for _ in range(100):
                        try:
                            await log.begin(transaction)
                        except (UnavailableError, UnknownOutcomeError):
                            await asyncio.sleep(0.01)
                        else:
                            return
                    raise AssertionError(f"{transaction.xid} never began")

                attempts = [asyncio.ensure_future(insist(it)) for it in new]
                await self.subject.cut()
                await asyncio.gather(*attempts)
                for name in names:
                    assert (await log.get(name)).state is State.ACTIVE
                    assert kinds(await log.events(name)) == ["begun", "registered"]
                assert await log.locked(names) == {name: name for name in names}
        return None
