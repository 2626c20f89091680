"""`prepare:` runs once per revision and cell, however many instances wait for it.

The record says who runs it and how it ended; it is reported to the server, which hands it to other
nodes. A run that an earlier agent of this node started is awaited, not repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from bedstone.errors import Error
from bedstone.model.resources import Instance, Preparation
from bedstone.node.reports import Reports
from bedstone.node.tasks import Tasks
from bedstone.node.view import View
from bedstone.node.watch import Watch
from bedstone.processes.spec import ProcessInfo
from bedstone.sandbox.protocol import Sandbox, Unit

TAIL_LINES = 12
TAIL_BYTES = 4000


class Key(NamedTuple):
    """What is prepared."""

    app: str
    cell: str
    workload: str
    revision: str

    @property
    def process(self) -> str:
        """The name of its process."""
        return "prepare/" + "/".join(self)


def key_of(instance: Instance) -> Key:
    """The preparation that an instance needs."""
    return Key(instance.app, instance.cell, instance.workload, instance.revision)


class Preparations:
    """The preparations that this node knows of."""

    def __init__(
        self,
        node: str,
        view: View,
        reports: Reports,
        watch: Watch,
        tasks: Tasks,
        changed: Callable[[], None],
    ) -> None:
        self._node = node
        self._view = view
        self._reports = reports
        self._watch = watch
        self._tasks = tasks
        self._changed = changed
        self._running: set[Key] = set()

    def state(self, instance: Instance) -> Preparation | None:
        """What is known: this node's own word before the server's."""
        key = f"preparations/{'/'.join(key_of(instance))}"
        return self._reports.preparations.get(key) or self._view.preparation(instance)

    def outcome(
        self, instance: Instance
    ) -> tuple[Literal["none", "running", "done", "failed"], str]:
        """The state and the reason, as the machine takes it."""
        found = self.state(instance)
        return (found.state, found.reason) if found is not None else ("none", "")

    def ensure(self, sandbox: Sandbox, unit: Unit) -> None:
        """See that it runs or has run, unless another node is at it."""
        instance = unit.instance
        key = key_of(instance)
        found = self.state(instance)
        if key in self._running or (found is not None and found.state != "running"):
            return
        if found is not None and found.node != self._node:
            return
        self._running.add(key)
        self._say(key, "running")
        self._tasks.start(self._run(sandbox, unit, key))

    async def _run(self, sandbox: Sandbox, unit: Unit, key: Key) -> None:
        mark = _size(unit.log)
        try:
            info = self._watch.latest.get(key.process)
            if info is None:
                command = unit.revision.spec.prepare or ()
                info = await sandbox.run(unit, key.process, command)
            info = await self._watch.ended(info)
            if info.state == "exited" and info.exit_code == 0:
                self._say(key, "done")
            else:
                self._say(key, "failed", _explain(info, unit.log, mark))
        except Error as error:
            self._say(key, "failed", error.message)
        finally:
            self._running.discard(key)

    def _say(self, key: Key, state: Literal["running", "done", "failed"], reason: str = "") -> None:
        app, cell, workload, revision = key
        self._reports.put(
            Preparation(
                app=app,
                cell=cell,
                workload=workload,
                revision=revision,
                node=self._node,
                state=state,
                reason=reason,
            )
        )
        self._changed()

    def retain(self, revisions: set[Key]) -> None:
        """Forget those of revisions that are no longer placed here."""
        for key, found in list(self._reports.preparations.items()):
            which = Key(found.app, found.cell, found.workload, found.revision)
            if which not in revisions and which not in self._running:
                del self._reports.preparations[key]


def _explain(info: ProcessInfo, log: Path, mark: int) -> str:
    return f"{info.ending()}{tail(log, mark)}"


def tail(log: Path, mark: int = 0) -> str:
    """The last lines of a log after `mark`, as part of a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(mark, _size(log) - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]
    return "".join(f"\n{line}" for line in lines)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
