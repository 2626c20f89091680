"""How alerts get into the store: changes that wait are written together, again until they are.

Rule: what is newer replaces what waits under the same key, so a store that is away for long costs
no more memory than there are alerts.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from pydantic import ValidationError

from bedstone.errors import Error
from bedstone.model.alert_records import EVENTS, AlertEventRecord
from bedstone.model.alerts import AlertEvent
from bedstone.model.resources import Resource
from bedstone.store import Delete, Entry, Operation, Put, Store

_log = logging.getLogger(__name__)
R = TypeVar("R", bound=Resource)
HISTORY: Final = 5_000
"""Events that are kept."""
_SLACK: Final = 200
_LARGEST: Final = 500
_RETRY: Final = 1.0


@dataclass
class AlertStore:
    """Writes what alerts become.

    Args:
        store: where to.
        sleep: waits so many seconds.
    """

    store: Store
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    _waiting: dict[str, Operation] = field(default_factory=dict)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _events: int = _SLACK
    _trouble: str = ""
    _tried: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, resource: Resource) -> None:
        """Write a resource soon."""
        self._wait(Put(resource.key, resource.encode()))

    def delete(self, key: str) -> None:
        """Remove a key soon."""
        self._wait(Delete(key))

    def happened(self, event: AlertEvent) -> None:
        """Add to the history."""
        sequence = f"{int(event.at * 1e6):016d}-{secrets.token_hex(4)}"
        self.put(AlertEventRecord(**event.model_dump(), sequence=sequence))
        self._events += 1

    def _wait(self, operation: Operation) -> None:
        self._waiting[operation.key] = operation
        self._idle.clear()
        self._wake.set()

    async def tried(self, key: str) -> None:
        """Wait until what waits under a key is written, or the store has just taken nothing."""
        operation = self._waiting.get(key)
        while operation is not None and self._waiting.get(key) is operation and not self._trouble:
            await self._tried.wait()

    async def written(self) -> None:
        """Wait until nothing waits."""
        if self._waiting:
            await self._idle.wait()

    async def run(self) -> None:
        """Write what waits, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                written = await self._write()
                tried, self._tried = self._tried, asyncio.Event()
                tried.set()
                if not written:
                    await self.sleep(_RETRY)
            self._idle.set()

    async def _write(self) -> bool:
        taken = dict(list(self._waiting.items())[:_LARGEST])
        try:
            await self.store.commit(list(taken.values()))
            if self._events >= _SLACK:
                await self._trim()
        except Error as error:
            # Each operation is idempotent, so "may have been applied" is tried again as well.
            if error.message != self._trouble:
                self._trouble = error.message
                _log.warning("alerts not written", extra={"error": error.message})
            return False
        if self._trouble:
            self._trouble = ""
            _log.info("alerts written again")
        for key, operation in taken.items():
            if self._waiting.get(key) is operation:
                del self._waiting[key]
        return True

    async def _trim(self) -> None:
        entries = (await self.store.list(EVENTS)).entries
        self._events = 0
        old = entries[: max(0, len(entries) - HISTORY)]
        if old:
            await self.store.commit([Delete(entry.key) for entry in old])

    async def load(self, kind: type[R], prefix: str) -> list[R]:
        """The resources below a prefix; one that cannot be read is passed over, and said so."""
        entries = (await self.store.list(prefix)).entries
        return [found for entry in entries if (found := _decoded(kind, entry))]

    async def history(self, app: str, rule: str, limit: int) -> list[AlertEvent]:
        """The latest events, newest first, of an app and a rule where they are given."""
        found: list[AlertEvent] = []
        for entry in reversed((await self.store.list(EVENTS)).entries):
            if len(found) == limit:
                break
            if rule and f'"{rule}"'.encode() not in entry.value:
                continue  # most are told without being decoded
            event = _decoded(AlertEventRecord, entry)
            if event and (not app or event.app == app) and (not rule or event.rule == rule):
                found.append(event.public())
        return found


def _decoded(kind: type[R], entry: Entry) -> R | None:
    """A resource, or None for one that cannot be read, which is said."""
    try:
        return kind.decode(entry.value)
    except ValidationError:
        _log.exception("unreadable resource", extra={"key": entry.key})
        return None
