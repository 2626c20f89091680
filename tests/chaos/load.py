"""The customers: transfers in every mode, many in flight, and readers and an auditor among them.

What a customer was told is kept for the audit; what a reader saw is judged at once.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
from tests.chaos.accounts import GROUPS, Account, accounts, asked
from tests.chaos.world import World

PATIENCE = 30.0
READERS = 3
ABSURD = 10**12
DONE, REFUSED, UNKNOWN = "done", "refused", "unknown"
BALANCED = """
SELECT a.id, a.balance, a.held, a.opening, COALESCE(e.total, 0) FROM accounts a
LEFT JOIN (SELECT account, SUM(amount) AS total FROM entries GROUP BY account) e
    ON e.account = a.id
WHERE a.balance + a.held <> a.opening + COALESCE(e.total, 0) OR a.balance < 0 OR a.held < 0
"""


@dataclass(slots=True)
class Transfer:
    """A transfer, and what the customer was told."""

    id: str
    mode: str
    giver: Account
    taker: Account
    amount: int
    sent: float
    told: str = UNKNOWN
    detail: str = "the run ended"
    took: float = 0.0


@dataclass
class Load:
    """What is sent, seen and told.

    Args:
        world: where to.
        seed: of what is sent.
        concurrency: how many requests are in flight.
        modes: those that are used.
    """

    world: World
    seed: int
    concurrency: int
    modes: Sequence[str]
    transfers: dict[str, Transfer] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    reads: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Send until `stop`, and wait for the answers."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.concurrency)
        async with (
            httpx.AsyncClient(
                base_url=self.world.domain.url, timeout=PATIENCE, limits=limits, trust_env=False
            ) as http,
            asyncio.TaskGroup() as group,
        ):
            for number in range(self.concurrency):
                group.create_task(self._customer(http, random.Random(f"{self.seed}/{number}")))
            for number, mode in itertools.product(range(READERS), ("at", "xa")):
                if mode in self.modes:
                    dice = random.Random(f"{self.seed}/read/{mode}/{number}")
                    group.create_task(self._reader(http, mode, dice))
            for bank in self.world.banks:
                group.create_task(self._auditor(bank))

    def stop(self) -> None:
        """Send nothing more."""
        self._stop.set()

    def told(self, mode: str | None = None) -> Counter[str]:
        """How many were told what."""
        return Counter(t.told for t in self.transfers.values() if mode in {None, t.mode})

    async def _customer(self, http: httpx.AsyncClient, dice: random.Random) -> None:
        while not self._stop.is_set():
            transfer = self._thought_of(dice)
            self.transfers[transfer.id] = transfer
            body = {
                "id": transfer.id,
                "giver": {"bank": transfer.giver.bank, "account": transfer.giver.id},
                "taker": {"bank": transfer.taker.bank, "account": transfer.taker.id},
                "amount": transfer.amount,
            }
            try:
                answer = await http.post(f"/transfers/{transfer.mode}", json=body)
            except httpx.ConnectError as error:  # never sent
                transfer.told, transfer.detail = REFUSED, type(error).__name__
                await self._pause(dice.uniform(0.5, 1.5))
            except httpx.HTTPError as error:
                transfer.detail = type(error).__name__
            else:
                transfer.told = {201: DONE, 409: REFUSED}.get(answer.status_code, UNKNOWN)
                transfer.detail = f"{answer.status_code} {answer.text[:300]}"
            transfer.took = time.monotonic() - transfer.sent
            if transfer.told != DONE:
                self.errors[f"{transfer.mode}: {_kind(transfer.detail)}"] += 1
                await self._pause(dice.uniform(0.1, 0.5))

    def _thought_of(self, dice: random.Random) -> Transfer:
        mode = dice.choice(self.modes)
        # The first groups are hot, the last ones cool enough to be read now and then.
        group = min(dice.randrange(GROUPS), dice.randrange(GROUPS))
        giver, taker = dice.sample(accounts(mode, group, self.world.banks), 2)
        amount = ABSURD if dice.random() < 0.03 else dice.randint(1, 40)
        name = f"{mode}-{len(self.transfers):06d}-{dice.getrandbits(48):012x}"
        return Transfer(name, mode, giver, taker, amount, time.monotonic())

    async def _reader(self, http: httpx.AsyncClient, mode: str, dice: random.Random) -> None:
        """Locking reads of a whole group must always give what the group began with."""
        while not self._stop.is_set():
            number = max(dice.randrange(GROUPS), dice.randrange(GROUPS))
            group = accounts(mode, number, self.world.banks)
            places = [{"bank": account.bank, "account": account.id} for account in group]
            try:
                answer = await http.post(f"/read/{mode}", json=places)
            except httpx.HTTPError as error:
                self.reads[f"{mode} {type(error).__name__}"] += 1
            else:
                self.reads[f"{mode} {_kind(answer.text) if answer.is_error else 'read'}"] += 1
                if answer.status_code == 200:
                    expected = sum(account.opening for account in group)
                    total = answer.json()["total"]
                    if total != expected:
                        self.violations.append(
                            f"a read of {group[0].id[:-2]} saw {total}, expected {expected}"
                        )
            await self._pause(0.2)

    async def _auditor(self, bank: str) -> None:
        """In one moment of one database, every account is what its entries say."""
        while not self._stop.is_set():
            try:
                wrong = await asyncio.to_thread(
                    asked, self.world.url(bank), BALANCED, snapshot=True
                )
            except Exception as error:  # noqa: BLE001 - the database is away, as it is meant to be
                self.reads[f"{bank} {type(error).__name__}"] += 1
            else:
                self.reads[f"{bank} audited"] += 1
                self.violations += [f"in {bank}, meanwhile: {row}" for row in wrong]
            await self._pause(3.0)

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return


def _kind(detail: str) -> str:
    """A refusal without what differs each time."""
    return " ".join(word for word in detail[:110].split() if not any(c.isdigit() for c in word[1:]))
