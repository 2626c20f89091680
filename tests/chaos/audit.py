"""The audit: what must hold once the killer has stopped and everything has come to rest.

1. What was told holds: done is there in both places exactly once, refused nowhere, anything else
   wholly or not at all.
2. Every balance is its opening and its entries; nothing stays set aside; no money is made or lost.
3. Nothing is left: no unfinished or stuck transaction, no lock, undo record, outbox row, dead
   letter or prepared transaction; and after sweeping, no barrier row.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.accounts import asked, everything
from tests.chaos.load import BALANCED, DONE, REFUSED, Load, Transfer
from tests.chaos.world import World

from bedstone.transactions.broker_nats import NatsBroker
from bedstone.transactions.consuming import Consumer
from bedstone.transactions.log_postgres import PostgresLog
from bedstone.transactions.sweeper import Sweeper

LOG = "bedstone"
_LEFT = ("bedstone_undo", "bedstone_outbox", "bedstone_dead")
_SHOWN = 12
_TRANSFER = re.compile(r"\b[a-z]+-\d{6}-[0-9a-f]{12}\b")
_XID = re.compile(r"\b[0-9a-f]{31,32}\b")


@dataclass
class Audit:
    """Looks, and keeps what is wrong.

    Args:
        world: what is looked at.
        load: what was sent, and told.
    """

    world: World
    load: Load
    wrong: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    async def rest(self, patience: float) -> None:
        """Wait until nothing is unfinished, at most so many seconds."""
        start, left = time.monotonic(), ["not asked yet"]
        while left and time.monotonic() - start < patience:
            await asyncio.sleep(1.0)
            left = await self._unfinished()
        self.numbers["seconds to rest"] = round(time.monotonic() - start, 1)
        self.wrong += [f"after {patience:g} s: {line}" for line in left]

    async def look(self) -> None:
        """Everything else."""
        await self._told()
        for bank in self.world.banks:
            self.wrong += [
                f"in {bank}: account {row}"
                for row in await self._asked(bank, BALANCED)
                + await self._asked(bank, "SELECT id, 'held', held FROM accounts WHERE held <> 0")
            ]
        await self._constant()
        await self._listed()
        await self._swept()
        await self._counted()

    async def concerned(self) -> list[str]:
        """What the log has of the transactions that something is wrong with."""
        text = "\n".join(self.wrong)
        names = sorted(set(_TRANSFER.findall(text)))[:_SHOWN]
        xids = sorted(set(_XID.findall(text)))[:_SHOWN]
        rows = await self._asked(
            "north",
            f"SELECT xid, name, state, owner, epoch, branches FROM {LOG}.transactions "
            "WHERE xid = ANY(%s) OR name = ANY(%s) OR branches LIKE ANY(%s)",
            xids,
            names,
            [f"%{name}%" for name in names],
        )
        lines = []
        for row in rows[: 2 * _SHOWN]:
            lines.append(f"transaction {row}"[:1500])
            lines += [
                f"  {at:.3f} {kind} {branch or ''} {detail[:300]}"
                for at, kind, branch, detail in await self._asked(
                    "north",
                    f"SELECT at, kind, branch, detail FROM {LOG}.transaction_events "
                    "WHERE xid = %s ORDER BY position",
                    row[0],
                )
            ]
        return lines

    async def _asked(self, bank: str, question: str, *parameters: object) -> list[tuple[Any, ...]]:
        return await asyncio.to_thread(asked, self.world.url(bank), question, *parameters)

    async def _unfinished(self) -> list[str]:
        """What is still under way, in the log, the databases and the broker."""
        found = []
        try:
            found += [
                f"transaction {row}"
                for row in await self._asked(
                    "north",
                    f"SELECT xid, name, state, stuck, owner FROM {LOG}.transactions "
                    f"WHERE ended_at IS NULL LIMIT {_SHOWN}",
                )
            ]
            for bank in self.world.banks:
                for table in _LEFT:
                    if await self._exists(bank, table):
                        count = (await self._asked(bank, f"SELECT count(*) FROM {table}"))[0][0]
                        found += [f"{count} rows of {table} in {bank}"] if count else []
                found += [f"prepared in {bank}: {row}" for row in await self._prepared(bank)]
            locks = await self._asked("north", f"SELECT key, xid FROM {LOG}.transaction_locks")
            found += [f"global lock {row}" for row in locks[:_SHOWN]]
            if not found:
                found += await self._undelivered()
        except Exception as error:  # noqa: BLE001 - a database that is not back yet
            found.append(f"{type(error).__name__}: {error}")
        return found

    async def _exists(self, bank: str, table: str) -> bool:
        where = "database()" if bank == "mary" else "'public'"
        question = (
            "SELECT 1 FROM information_schema.tables "
            f"WHERE table_schema = {where} AND table_name = '{table}'"
        )
        return bool(await self._asked(bank, question))

    async def _prepared(self, bank: str) -> list[tuple[Any, ...]]:
        question = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        return await self._asked(bank, "XA RECOVER" if bank == "mary" else question)

    async def _undelivered(self) -> list[str]:
        """Credits that the broker has, and that are not acknowledged."""
        import nats

        client = await nats.connect(self.world.nats.engine.url, connect_timeout=2)
        try:
            found = []
            for bank in self.world.banks:
                info = await client.jetstream().consumer_info("credits", f"credit-{bank}")
                if info.num_pending or info.num_ack_pending:
                    found.append(f"{info.num_pending}+{info.num_ack_pending} messages for {bank}")
            return found
        finally:
            await client.close()

    async def _told(self) -> None:
        entries: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
        for bank in self.world.banks:
            for transfer, account, amount in await self._asked(
                bank, "SELECT transfer, account, amount FROM entries"
            ):
                entries[transfer].append((bank, account, int(amount)))
        for transfer in self.load.transfers.values():
            there = sorted(entries.pop(transfer.id, []))
            trouble = judged(transfer, there)
            if trouble:
                self.wrong.append(
                    f"{trouble}: {transfer.id}, told {transfer.told} ({transfer.detail}), "
                    f"{transfer.giver.bank} to {transfer.taker.bank}, there: {there}"
                )
        self.wrong += [f"nobody asked for {transfer}: {rows}" for transfer, rows in entries.items()]

    async def _constant(self) -> None:
        total = 0
        for bank in self.world.banks:
            total += int(
                (await self._asked(bank, "SELECT SUM(balance + held) FROM accounts"))[0][0]
            )
        expected = sum(account.opening for account in everything(self.world.banks))
        self.numbers["money"] = total
        if total != expected:
            self.wrong.append(f"there is {total} money, expected {expected}")

    async def _listed(self) -> None:
        """The operators' view agrees: nothing unfinished, nothing stuck."""
        for options in (
            ("--stuck",),
            *(("--state", s) for s in ("active", "committing", "aborting")),
        ):
            done = await asyncio.to_thread(
                self.world.domain.run, "tx", "ls", *options, "--limit", str(_SHOWN), "-o", "json"
            )
            if done.returncode:
                self.wrong.append(f"tx ls {options}: {done.stderr}")
            else:
                self.wrong += [f"tx ls {options}: {it}" for it in json.loads(done.stdout)["items"]]

    async def _swept(self) -> None:
        """Without grace, sweeping and purging leave no row of a barrier."""
        broker = NatsBroker(self.world.nats.engine.url)
        async with PostgresLog(self.world.url("north")) as log, asyncio.TaskGroup() as group:
            for bank in self.world.banks:
                group.create_task(self._swept_one(bank, log, broker))
        await broker.close()

    async def _swept_one(self, bank: str, log: Any, broker: NatsBroker) -> None:
        url = self.world.url(bank)
        if not await self._exists(bank, "bedstone_barrier"):
            return
        consumer = Consumer(
            url, broker, f"credit.{bank}", f"credit-{bank}", _nothing, ack_wait=5.0, window=0.0
        )
        while await consumer.purge():
            pass
        await Sweeper(url, log, grace=0.0).sweep()
        rows = await self._asked(
            bank, f"SELECT xid, branch, phase FROM bedstone_barrier LIMIT {_SHOWN}"
        )
        self.wrong += [f"in the barrier of {bank}: {row}" for row in rows]

    async def _counted(self) -> None:
        rows = await self._asked(
            "north",
            "SELECT count(*), count(*) FILTER (WHERE epoch > 1), "
            "count(*) FILTER (WHERE state = 'committed'), max(epoch) "
            f"FROM {LOG}.transactions",
        )
        names = ("transactions", "taken over", "committed", "highest epoch")
        self.numbers |= dict(zip(names, map(int, rows[0]), strict=True))


def judged(transfer: Transfer, there: list[tuple[str, str, int]]) -> str:
    """What is wrong with a transfer, given the entries that there are of it."""
    whole = sorted(
        [
            (transfer.giver.bank, transfer.giver.id, -transfer.amount),
            (transfer.taker.bank, transfer.taker.id, transfer.amount),
        ]
    )
    if transfer.told == DONE and there != whole:
        return "acknowledged, and not there exactly once"
    if transfer.told == REFUSED and there:
        return "refused, and there"
    return "" if there in ([], whole) else "half of it"


async def _nothing(db: Any, message: Any) -> None:
    del db, message
