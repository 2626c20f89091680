"""What apps were declared to be, generation by generation: the store's side of undoing.

Invariant: a generation and its declaration are written in one commit, and the last `KEPT` of an app
are kept. They go with the app.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator

from bedstone.errors import NotFoundError
from bedstone.model.resources import App, Declaration, declaration_key
from bedstone.store import Delete, Operation, Put, Store

KEPT = 100
_REMEMBERED = 256


def recorded(app: App, at: float) -> list[Operation]:
    """What to commit together with a new generation of an app."""
    declaration = Declaration(
        app=app.name,
        generation=app.generation,
        spec=app.spec,
        at=at,
        root=app.root,
        sources=app.sources,
    )
    operations: list[Operation] = [Put(declaration.key, declaration.encode())]
    if app.generation > KEPT:
        operations.append(Delete(declaration_key(app.name, app.generation - KEPT)))
    return operations


class History:
    """Reads declarations; what was read is remembered, since none ever changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: OrderedDict[tuple[str, int], Declaration] = OrderedDict()

    async def find(self, app: str, generation: int) -> Declaration | None:
        """The declaration of a generation, if it is kept."""
        if generation < 1:
            return None
        key = declaration_key(app, generation)
        entry = await self._store.get(key)
        if entry is None:
            return None
        # By its revision too: an app that was deleted and declared again counts from one.
        found = self._read.get((key, entry.revision))
        if found is None:
            found = self._read[key, entry.revision] = Declaration.decode(entry.value)
            while len(self._read) > _REMEMBERED:
                self._read.popitem(last=False)
        return found

    async def get(self, app: str, generation: int) -> Declaration:
        """The declaration of a generation.

        Raises:
            NotFoundError: it is not kept.
        """
        found = await self.find(app, generation)
        if found is None:
            raise NotFoundError(
                f"generation {generation} of app {app} is not kept",
                hint=f"the last {KEPT} are: see bedstone changes",
            )
        return found

    async def before(self, app: str, generation: int) -> AsyncIterator[Declaration]:
        """The declarations before a generation that are kept, the latest first."""
        for number in range(generation - 1, max(0, generation - KEPT), -1):
            found = await self.find(app, number)
            if found is None:
                return
            yield found

    async def keys(self, app: str) -> list[str]:
        """The keys of all that is kept of an app."""
        return [entry.key for entry in (await self._store.list(f"history/{app}/")).entries]
