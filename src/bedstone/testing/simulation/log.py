"""The transaction log on the far side of a network: every call may be lost, late, or come twice.

Rules:
- What the log has applied, it keeps over every restart: it is the disk.
- `UnavailableError` says that nothing was written; a caller who hears nothing gets an
  `UnknownOutcomeError`, and what it asked may still be applied later.
- Only calls that are idempotent come twice: a driver that repeats others would be at fault itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from bedstone.errors import UnavailableError, UnknownOutcomeError
from bedstone.testing.simulation.faults import Fate
from bedstone.testing.simulation.loop import Process
from bedstone.testing.simulation.network import Network
from bedstone.testing.transaction_log import READS, MemoryLog
from bedstone.transactions.model import Branch, Counts, Event, Outcome, State, Transaction

NAME: Final = "log"
_REPEATABLE: Final = READS | {"begin", "decide", "record", "claim"}


async def serve(process: Process, network: Network, log: MemoryLog) -> None:
    """Answer calls to the log, in `process`."""

    async def handle(fate: Fate, method: str, *args: object) -> object:
        if fate is Fate.REFUSED:
            raise UnavailableError(f"the disk is full: {method} not applied")
        if method == "list":
            states, stuck, after, limit = args
            return await log.list(states, stuck=stuck, after=after, limit=limit)  # type: ignore[arg-type]
        return await getattr(log, method)(*args)

    network.serve(process, handle)


class RemoteLog:
    """A `Log` that is reached over the network."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def now(self) -> float:
        """As `Log.now`."""
        return float(await self._call("now"))

    async def begin(self, transaction: Transaction) -> None:
        """As `Log.begin`."""
        await self._call("begin", transaction)

    async def register(self, xid: str, branches: Sequence[Branch]) -> Transaction:
        """As `Log.register`."""
        return _transaction(await self._call("register", xid, tuple(branches)))

    async def decide(self, xid: str, state: State, reason: str = "") -> Transaction:
        """As `Log.decide`."""
        return _transaction(await self._call("decide", xid, state, reason))

    async def record(
        self, xid: str, owner: str, epoch: int, outcomes: Sequence[Outcome], next_attempt: float
    ) -> Transaction:
        """As `Log.record`."""
        return _transaction(
            await self._call("record", xid, owner, epoch, tuple(outcomes), next_attempt)
        )

    async def journal(
        self,
        xid: str,
        owner: str,
        epoch: int,
        events: Sequence[Event],
        next_attempt: float | None = None,
    ) -> Transaction:
        """As `Log.journal`."""
        return _transaction(
            await self._call("journal", xid, owner, epoch, tuple(events), next_attempt)
        )

    async def claim(self, owner: str, lease: float, limit: int) -> Sequence[Transaction]:
        """As `Log.claim`."""
        return tuple(await self._call("claim", owner, lease, limit))

    async def release(self, owner: str) -> None:
        """As `Log.release`."""
        await self._call("release", owner)

    async def leases(self) -> dict[str, float]:
        """As `Log.leases`."""
        return dict(await self._call("leases"))

    async def owned(self, owner: str, limit: int) -> Sequence[Transaction]:
        """As `Log.owned`."""
        return tuple(await self._call("owned", owner, limit))

    async def get(self, xid: str) -> Transaction:
        """As `Log.get`."""
        return _transaction(await self._call("get", xid))

    async def list(
        self,
        states: Sequence[State] = (),
        *,
        stuck: bool = False,
        after: str = "",
        limit: int = 100,
    ) -> Sequence[Transaction]:
        """As `Log.list`."""
        found = await self._call("list", tuple(states), stuck, after, limit)
        return tuple(found)

    async def events(self, xid: str) -> Sequence[Event]:
        """As `Log.events`."""
        return tuple(await self._call("events", xid))

    async def amend(self, xid: str, event: Event, outcomes: Sequence[Outcome] = ()) -> Transaction:
        """As `Log.amend`."""
        return _transaction(await self._call("amend", xid, event, tuple(outcomes)))

    async def ends(self, xids: Sequence[str]) -> dict[str, float | None]:
        """As `Log.ends`."""
        return dict(await self._call("ends", tuple(xids)))

    async def locked(self, locks: Sequence[str]) -> dict[str, str]:
        """As `Log.locked`."""
        return dict(await self._call("locked", tuple(locks)))

    async def counts(self) -> Counts:
        """As `Log.counts`."""
        found = await self._call("counts")
        assert isinstance(found, Counts)
        return found

    async def purge(self, older_than: float, limit: int) -> int:
        """As `Log.purge`."""
        return int(await self._call("purge", older_than, limit))

    async def _call(self, method: str, *args: object) -> Any:
        fate = self._network.faults.log()
        if fate is Fate.TWICE and method not in _REPEATABLE:
            fate = Fate.DONE
        try:
            return await self._network.call(NAME, fate, method, *args, fate=fate)
        except UnknownOutcomeError as error:
            if method in READS:
                raise UnavailableError(f"the log gave no answer to {method}") from error
            raise


def _transaction(answer: object) -> Transaction:
    assert isinstance(answer, Transaction)
    return answer
