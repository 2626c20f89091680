"""A saga's history as its runner knows it, and the part of it that is not in the log yet.

Rules:
- Lines are written in the order in which they were noted.
- What could not be written stays, and is written with the next lines. A line that was written and
  whose answer was lost is written twice, which changes nothing.
"""

from __future__ import annotations

import asyncio
from typing import Final

from bedstone.transactions import saga_machine
from bedstone.transactions.asking import Asker
from bedstone.transactions.errors import TransactionDecidedError
from bedstone.transactions.model import Event, Log, State, Transaction
from bedstone.transactions.saga_machine import History, Kind, Leaf, Mark, Plan

INSISTENCE: Final = 3.0
"""Seconds for which a write is repeated while the log doesn't answer."""


class Record:
    """The history of one saga.

    Args:
        plan: the saga's.
        transaction: the saga's, under the owner and epoch that write.
        number: its branch's.
        log: where the history is.
        asker: asks it again.
    """

    def __init__(
        self, plan: Plan, transaction: Transaction, number: int, log: Log, asker: Asker
    ) -> None:
        self.xid = transaction.xid
        self.plan = plan
        self.transaction = transaction
        self.number = number
        self.history = History()
        self.asker = asker
        self.unwritten: list[Event] = []
        self.urgent = False
        """Whether something must be written before anything that follows."""
        self.trying = False
        """Whether a decision by somebody else ends this."""
        self._log = log
        self._writing = asyncio.Lock()
        self._kinds = {leaf.path: leaf.kind for leaf in saga_machine.leaves(plan)}

    async def read(self) -> None:
        """Read what has happened."""
        self.history = saga_machine.replay(await self._log.events(self.xid))

    async def listen(self) -> None:
        """Read the signals that have come."""
        for event in await self._log.events(self.xid):
            if event.kind == "signal":
                self.history.add(event)

    def note(self, leaf: Leaf, mark: Mark, **more: object) -> None:
        """Note what became of a leaf, to be written later."""
        self._add("step", {"path": leaf.path, "mark": str(mark), **more})

    def arm(self, leaf: Leaf, until: float) -> None:
        """Note until when a leaf waits, to be written later."""
        self._add("timer", {"path": leaf.path, "until": until})

    async def write(self) -> None:
        """Write what is not written yet.

        Raises:
            FencedError: another coordinator owns the saga.
            TransactionDecidedError: while `trying`: somebody has decided its end.
            UnavailableError, UnknownOutcomeError: the log does not answer.
        """
        async with self._writing:
            events, self.unwritten = self.unwritten, []
            if not events:
                return
            it = self.transaction
            until = asyncio.get_running_loop().time() + INSISTENCE
            try:
                after = await self.asker.insist(
                    lambda: self._log.journal(it.xid, it.owner, it.epoch, events), until
                )
            except BaseException:
                self.unwritten[:0] = events
                raise
            self.urgent = any(map(self._is_urgent, self.unwritten))
        if self.trying and after.state is not State.ACTIVE:
            raise TransactionDecidedError(f"transaction {it.xid} is {after.state} meanwhile")

    def _add(self, kind: str, detail: dict[str, object]) -> None:
        event = Event(0.0, kind, self.number, detail)
        self.history.add(event)
        self.unwritten.append(event)
        self.urgent = self.urgent or self._is_urgent(event)

    def _is_urgent(self, event: Event) -> bool:
        return self._kinds.get(str(event.detail["path"])) is not Kind.LOCAL
