"""Between the picture and the mesh: feeds it, holds it while incomplete, drains, reports.

Rules:
- The mesh is held until every living node has said hello since this server started, so that no
  proxy loses an endpoint because of our restart.
- An instance that makes way is released to its node only when every proxy that uses its service
  has acknowledged endpoints without it, or the wait has run out.
- What a proxy rejects becomes a condition of the app, in the manifest's terms.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping

from bedstone.control.loop import ControlLoop
from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.streams import Rejection
from bedstone.control.mesh.views import NodeProxy, Proxy
from bedstone.control.snapshot import Changes as Batch
from bedstone.errors import ConflictError, Error
from bedstone.model.resources import Condition, Desired, Instance, Phase
from bedstone.server.ads import AdsService
from bedstone.server.changes import Changes
from bedstone.server.sessions import Sessions
from bedstone.store import Put, Store

SETTLE_SECONDS = 5.0
WORKER_SECONDS = 0.1
REPORT_SECONDS = 0.1
_log = logging.getLogger(__name__)


class Meshing:
    """Keeps the mesh in step with the picture."""

    def __init__(self, store: Store, loop: ControlLoop, mesh: Mesh, ads: AdsService) -> None:
        self._store = store
        self._loop = loop
        self._mesh = mesh
        self._ads = ads
        self._sessions: Sessions | None = None
        self._draining: set[str] = set()
        self._drain: asyncio.Queue[Instance] = asyncio.Queue()
        self._progress = asyncio.Event()
        ads.observe(self._progressed)
        mesh.hold()
        loop.observe(self._observe)

    def connect(self, sessions: Sessions) -> None:
        """Take the sessions that say when every node has been heard from."""
        self._sessions = sessions

    @property
    def complete(self) -> bool:
        """Whether the mesh's view is complete, so that it may be pushed."""
        return self._mesh.complete

    def acknowledged(self, node: str) -> frozenset[str]:
        """Paths of the instances whose listeners the node's proxy has acknowledged."""
        return self._ads.listening(node)

    def repair(self, node: str, digests: Mapping[str, str]) -> list[str]:
        """Push again whatever differs from the truth; return its names."""
        return self._ads.repair(node, digests)

    def route_programmed(self, app: str) -> bool:
        """Whether every gateway proxy has acknowledged the app's routes."""
        return self._ads.route_programmed(app)

    async def run(self, changes: Changes) -> None:
        """Release, drain and report, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._release())
            group.create_task(self._report(changes))
            while True:
                instance = await self._drain.get()
                group.create_task(self._drained(instance))

    def _observe(self, batch: Batch) -> None:
        self._mesh.apply(batch.upserts, [resource.key for resource in batch.deletes])
        for resource in batch.upserts:
            if (
                isinstance(resource, Instance)
                and resource.desired is Desired.DRAINED
                and not resource.released
                and resource.path not in self._draining
            ):
                self._draining.add(resource.path)
                self._drain.put_nowait(resource)

    async def _release(self) -> None:
        await self._loop.loaded()
        version = -1
        while not (self._sessions and self._sessions.heard_from_all()):
            version = await self._loop.changed(version)
        self._mesh.release()
        _log.info("view complete", extra={"revision": self._loop.snapshot.revision})
        await self._loop.announce()

    async def _drained(self, instance: Instance) -> None:
        try:
            settled = await self._ads.settled(
                instance.app, instance.workload, SETTLE_SECONDS, self._proxied()
            )
            if not settled:
                _log.warning("released unsettled", extra={"instance": instance.path})
            # A proxy's main thread acknowledges; its workers follow a moment later.
            await asyncio.sleep(WORKER_SECONDS)
            released = instance.model_copy(update={"released": True})
            expected = self._loop.snapshot.revision_of(instance.key)
            if expected:
                await self._store.commit([Put(released.key, released.encode(), expected)])
        except ConflictError:
            # Written meanwhile, by somebody who did not release it; or it is gone.
            self._drain.put_nowait(instance)
            return
        except Error as error:
            _log.warning("not released", extra={"instance": instance.path, "error": str(error)})
            await asyncio.sleep(1.0)
            self._drain.put_nowait(instance)
            return
        self._draining.discard(instance.path)

    def _proxied(self) -> list[str]:
        """The living nodes whose proxies run."""
        snapshot = self._loop.snapshot
        nodes = snapshot.nodes().values()
        return [n.name for n in nodes if snapshot.present(n.name) and n.proxy is Phase.READY]

    def _progressed(self, proxy: Proxy) -> None:
        if isinstance(proxy, NodeProxy) and self._sessions:
            self._sessions.wake(proxy.node)
        self._progress.set()

    async def _report(self, changes: Changes) -> None:
        """Turn rejections into conditions; many acknowledgements at once cost one look."""
        while True:
            await self._progress.wait()
            self._progress.clear()
            await self._loop.announce()
            found: dict[str, dict[str, Condition]] = {app: {} for app in self._loop.snapshot.apps()}
            for rejection in self._ads.rejections():
                if rejection.app in found:
                    condition = _condition(rejection)
                    found[rejection.app][condition.subject] = condition
            for app, conditions in found.items():
                try:
                    await changes.set_conditions(app, list(conditions.values()))
                except Error as error:
                    _log.warning("conditions not kept", extra={"app": app, "error": str(error)})
            await asyncio.sleep(REPORT_SECONDS)


def _condition(rejection: Rejection) -> Condition:
    """What a user should know of a rejection; a port that is taken is the common case."""
    reason = _own_part(rejection)
    message, hint = f"the proxy refused it: {reason}", "see bedstone logs engine:envoy"
    if "Address already in use" in reason:
        message = "another program has its port"
        hint = "stop that program, or change the port; bedstone tries again by itself"
    elif "Permission denied" in reason:
        message = "its port may not be opened"
        hint = "choose a port above 1023"
    return Condition(
        app=rejection.app,
        subject=rejection.subject or "proxy",
        message=message,
        hint=hint,
        since=time.time(),
    )


def _own_part(rejection: Rejection) -> str:
    """The part of a proxy's message that is about this resource: one message tells of many."""
    _, found, rest = rejection.message.partition(f"{rejection.name}: ")
    if not found:
        return rejection.message
    kinds = "outbound|inbound|service|database|gateway|connect|call|telemetry"
    return re.split(rf"\b(?:{kinds})/", rest)[0].strip()
