"""The one loop that runs every controller.

A controller is a pure `plan(snapshot, app) -> operations`. The loop keeps the snapshot by a list
and a watch, hands each batch of changes to `observers` (which must not block), plans for the apps
that changed, and commits. Controllers meet only through the store.

Invariants:
- A plan is committed with the revisions it was made from, so a stale plan is refused by the store
  and made again from the next batch; nothing is lost and nothing is applied twice.
- `UnavailableError` and `UnknownOutcomeError` are retried by planning again: plans are idempotent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bedstone.control.snapshot import Changes, Snapshot
from bedstone.errors import ConflictError, UnavailableError, UnknownOutcomeError
from bedstone.store import CompactedError, Event, Operation, Store

_log = logging.getLogger(__name__)

Observer = Callable[[Changes], None]


@dataclass(frozen=True, slots=True)
class Controller:
    """A name for logs, and the plan."""

    name: str
    plan: Callable[[Snapshot, str], Sequence[Operation]]


class ControlLoop:
    """Keeps `snapshot` true and runs controllers over it."""

    def __init__(
        self,
        store: Store,
        controllers: Sequence[Controller],
        *,
        retry: float = 0.5,
    ) -> None:
        self.snapshot = Snapshot()
        self.version = 0
        """Counts the changes of what this loop knows; see `changed`."""
        self._store = store
        self._controllers = controllers
        self._observers: list[Observer] = []
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._retry = retry
        self._loaded = asyncio.Event()
        self._changed = asyncio.Condition()

    def observe(self, observer: Observer) -> None:
        """Call `observer` with each batch of changes, in order, before plans are made."""
        self._observers.append(observer)

    async def loaded(self) -> None:
        """Wait until the snapshot holds what the store held at the start."""
        await self._loaded.wait()

    async def changed(self, after: int) -> int:
        """Wait until `version` is past `after`; return it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.version > after)
        return self.version

    async def reached(self, revision: int) -> None:
        """Wait until the snapshot is at least at a revision of the store."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.snapshot.revision >= revision)

    async def announce(self) -> None:
        """Wake those who wait for a change.

        For changes that are not in the store, such as what proxies have acknowledged.
        """
        self.version += 1
        async with self._changed:
            self._changed.notify_all()

    async def run(self) -> None:
        """Follow the store and plan, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._plan())

    async def _follow(self) -> None:
        while True:
            try:
                await self._load()
            except CompactedError:
                _log.warning("watch history compacted, listing again")
            except UnavailableError as error:
                _log.warning("store not available", extra={"error": str(error)})
                await asyncio.sleep(self._retry)

    async def _load(self) -> None:
        listing = await self._store.list("")
        missing = self.snapshot.all_keys() - {entry.key for entry in listing.entries}
        await self._take(
            [
                *(Event(entry.key, entry.revision, entry) for entry in listing.entries),
                *(Event(key, listing.revision, None) for key in sorted(missing)),
            ]
        )
        self.snapshot.revision = max(self.snapshot.revision, listing.revision)
        self._loaded.set()
        await self.announce()
        async for batch in self._store.watch("", listing.revision):
            await self._take(batch)

    async def _take(self, batch: Sequence[Event]) -> None:
        changes = self.snapshot.apply(batch)
        for observer in self._observers:
            observer(changes)
        self._dirty |= set(self.snapshot.apps()) if changes.nodes else changes.apps
        self._wake.set()
        await self.announce()

    async def _plan(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            dirty, self._dirty = self._dirty, set()
            for app in sorted(dirty):
                for controller in self._controllers:
                    await self._commit(controller, app)

    async def _commit(self, controller: Controller, app: str) -> None:
        try:
            operations = controller.plan(self.snapshot, app)
        except Exception:  # noqa: BLE001 - see below
            # One app that cannot be planned must not end the control plane of all the others; it
            # is planned again when it changes.
            _log.exception("plan failed", extra={"controller": controller.name, "app": app})
            return
        if not operations:
            return
        try:
            await self._store.commit(operations)
        except ConflictError:
            # The change that conflicts is on its way through the watch and plans again.
            self._dirty.add(app)
            await asyncio.sleep(0)
        except (UnavailableError, UnknownOutcomeError) as error:
            _log.warning(
                "plan not committed",
                extra={"controller": controller.name, "app": app, "error": str(error)},
            )
            self._dirty.add(app)
            await asyncio.sleep(self._retry)
            self._wake.set()
