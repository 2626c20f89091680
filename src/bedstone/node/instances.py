"""All instances that are placed on this node: one runner each, adopted, kept and let go.

The view says what is wanted; an instance that it no longer names is ended without waiting for a
release, since nothing can be sent to what nobody knows.
"""

from __future__ import annotations

import asyncio
import logging

from bedstone.model.resources import Desired, Instance, InstanceStatus, Revision
from bedstone.node.journal import Record
from bedstone.node.preparations import Key, key_of
from bedstone.node.runner import Runner, Surroundings
from bedstone.node.tasks import Tasks, insist
from bedstone.processes.spec import ProcessInfo
from bedstone.sandbox.protocol import process_name

_log = logging.getLogger(__name__)


class Instances:
    """All runners of the node."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._tasks = Tasks(around.failed)
        self._old: dict[str, Record] = {}
        self._runners: dict[str, Runner] = {}
        self._leaving: set[str] = set()
        around.watch.listen("instance/", self._ended)

    def load(self) -> None:
        """Read what an earlier agent of the same run left."""
        self._old = self._around.journal.load()
        for record in self._old.values():
            self._around.reports.put(record.status)

    def reconcile(self) -> None:
        """Run exactly what the view says."""
        wanted = {instance.path: instance for instance in self._around.view.instances()}
        for path, instance in wanted.items():
            runner = self._runners.get(path)
            if runner is not None and not runner.forgotten.is_set():
                if runner.instance != instance:
                    runner.assign(instance)
                continue
            if runner is not None:
                continue  # of the same name, and still ending; `_run` looks again
            revision = self._around.view.revision(instance)
            if revision is None:
                _log.warning("no revision", extra={"instance": path})
                continue
            self._begin(instance, revision)
        for path, runner in self._runners.items():
            if path not in wanted:
                # Deleted without a drain: nothing may be sent to it any more.
                gone = {"desired": Desired.DRAINED, "released": True}
                runner.assign(runner.instance.model_copy(update=gone))
                runner.forgotten.set()
        if self._around.view.known:
            for path in self._old.keys() - wanted.keys():
                self._tasks.start(self._discard(self._old.pop(path).status))
        self._around.preparations.retain(self._preparing())
        self.kick()

    def _begin(self, instance: Instance, revision: Revision) -> None:
        record = self._old.pop(instance.path, None)
        runner = Runner(self._around, instance, revision, record)
        self._runners[instance.path] = runner
        self._tasks.start(self._run(runner, record))

    async def _run(self, runner: Runner, record: Record | None) -> None:
        process = self._around.watch.latest.get(process_name(runner.instance))
        await runner.run(record.status.plumbing if record else None, process)
        # Stopped; it stays said until the server has deleted it.
        path = runner.instance.path
        await runner.forgotten.wait()
        await insist(
            "release", path, lambda: runner.sandbox.release(runner.instance, runner.plumbing)
        )
        del self._runners[path]
        self._around.reports.remove(f"status/instances/{path}")
        self._around.journal.forget(path)
        self.reconcile()

    async def _discard(self, old: InstanceStatus) -> None:
        """End what an earlier agent ran and the server deleted meanwhile."""
        instance = Instance(
            app=old.app,
            cell=old.cell,
            workload=old.workload,
            name=old.name,
            revision=old.revision,
            node=old.node,
        )
        sandbox = self._around.sandbox(old.isolation)
        self._leaving.add(old.path)
        await insist("stop", old.path, lambda: sandbox.stop(instance, 10.0))
        await insist("release", old.path, lambda: sandbox.release(instance, old.plumbing))
        self._leaving.discard(old.path)
        self._around.reports.remove(old.key)
        self._around.journal.forget(old.path)

    def expected(self) -> set[str]:
        """Names of the processes that belong to the instances of this node."""
        names = {process_name(runner.instance) for runner in self._runners.values()}
        names |= {f"instance/{path}" for path in self._old}
        names |= {f"instance/{path}" for path in self._leaving}
        return names | {key.process for key in self._preparing()}

    def _preparing(self) -> set[Key]:
        return {key_of(instance) for instance in self._around.view.instances()}

    def _ended(self, info: ProcessInfo) -> None:
        runner = self._runners.get(info.name.removeprefix("instance/"))
        if runner is not None:
            runner.ended(info)

    def kick(self) -> None:
        """A fact that runners wait for may have changed."""
        for runner in self._runners.values():
            runner.kick()

    def proxy_changed(self) -> None:
        """The proxy's acknowledgements have changed."""
        for runner in self._runners.values():
            runner.proxy_changed()

    def renewed(self, spiffe_id: str) -> None:
        """A workload has a new certificate."""
        for runner in self._runners.values():
            if runner.spiffe_id == spiffe_id:
                runner.renewed()

    async def settled(self, timeout: float) -> None:
        """Wait until everything adopted has been probed once, but no longer than `timeout`."""
        waits = [runner.settled.wait() for runner in self._runners.values()]
        if waits:
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.gather(*waits)
            except TimeoutError:
                return

    async def close(self) -> None:
        """Let go of everything, leaving it running."""
        await self._tasks.close()
