"""Scaling, rolling back and undoing: changes of what runs that no manifest made.

Rules:
- Each is one commit with its audit record, as every change is.
- What a manifest says comes back when it is applied again; the answer says so.
"""

from __future__ import annotations

from fastapi import FastAPI

from bedstone.control import declaring
from bedstone.errors import ConflictError, InvalidError
from bedstone.model.api import ApplyResult
from bedstone.model.monitoring import RollbackRequest, ScaleRequest, UndoRequest
from bedstone.server.api import Operator
from bedstone.server.changes import Changes, Declared


class Actions:
    """What an operator does to an app that runs."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    def add_routes(self, app: FastAPI) -> None:
        """The routes of these actions."""

        @app.post("/v1/apps/{name}/workloads/{workload}/scale")
        async def scale(
            name: str, workload: str, request: ScaleRequest, who: Operator
        ) -> ApplyResult:
            return await self.scale(name, workload, request.replicas, who.who)

        @app.post("/v1/apps/{name}/workloads/{workload}/rollback")
        async def rollback(
            name: str, workload: str, request: RollbackRequest, who: Operator
        ) -> ApplyResult:
            return await self.roll_back(name, workload, request.generation, who.who)

        @app.post("/v1/apps/{name}/undo")
        async def undo(name: str, request: UndoRequest, who: Operator) -> ApplyResult:
            return await self.undo(name, request.generation, who.who)

    async def scale(self, name: str, workload: str, replicas: int, who: str) -> ApplyResult:
        """Run so many instances of a workload, until a manifest declares another number.

        Raises:
            NotFoundError: there is no such app or workload.
            ConflictError: the app is being deleted.
        """

        def change() -> Declared:
            app = self._changes.app(name)
            if app.deleting:
                raise ConflictError(f"app {name} is being deleted", hint="wait until it is gone")
            after, lines = declaring.scaled(app, workload, replicas)
            said = app.spec.workloads[workload].replicas
            note = f"it stands until a manifest is applied that says another number than {said}"
            result = ApplyResult(
                app=name,
                generation=app.generation,
                changes=tuple(lines),
                notes=(note,) if workload in after.scaled else (),
            )
            return [self._changes.put(after)] if lines else [], result

        return await self._changes.commit(who, "scale", f"{name}/{workload}", change)

    async def roll_back(
        self, name: str, workload: str, generation: int | None, who: str
    ) -> ApplyResult:
        """Declare a workload again as an earlier generation did.

        Raises:
            NotFoundError: that declaration is not kept, or has no such workload.
            InvalidError: the workload is declared so already.
            ConflictError: it used what is not declared any more, or the app is being deleted.
        """
        app, history = self._changes.app(name), self._changes.history
        if generation is None:
            kept = [found async for found in history.before(name, app.generation)]
            then = declaring.earlier(app, workload, kept)
        else:
            then = await history.get(name, generation)

        def change() -> Declared:
            app = self._changes.app(name)
            spec = declaring.rolled_back(app, workload, then)
            return self._changes.declare_again(app, spec, app.sources)

        target = f"{name}/{workload} to generation {then.generation}"
        return await self._changes.commit(who, "rollback", target, change)

    async def undo(self, name: str, generation: int, who: str) -> ApplyResult:
        """Declare an app again as it was before a generation; later ones are undone with it.

        Raises:
            NotFoundError: there was no such generation, or what was before it is not kept.
            InvalidError: it was the first, or the app is declared so already.
            ConflictError: the app is being deleted.
        """
        current = self._changes.app(name).generation
        if generation > current:
            raise InvalidError(f"app {name} is at generation {current}, got {generation}")
        if generation == 1:
            raise InvalidError(
                "generation 1 is the first: nothing was before it",
                hint=f"to remove the app: bedstone delete app {name}",
            )
        then = await self._changes.history.get(name, generation - 1)

        def change() -> Declared:
            app = self._changes.app(name)
            sources = declaring.restored_sources(app, then)
            operations, result = self._changes.declare_again(app, then.spec, sources)
            if not operations:
                raise InvalidError(
                    f"app {name} is declared as before generation {generation} already",
                    hint="only the source differs; restore its files yourself",
                )
            if app.generation > generation:
                more = f"generations {generation} to {app.generation} are undone together"
                result = result.model_copy(update={"notes": (more, *result.notes)})
            return operations, result

        target = f"app {name} before generation {generation}"
        return await self._changes.commit(who, "undo", target, change)
