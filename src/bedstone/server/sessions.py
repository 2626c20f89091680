"""The sessions that nodes open: assignments down, statuses up, commands and certificates.

Rules:
- A node writes only what is its own: statuses of instances that are placed on it. Anything else
  that it sends is refused and logged.
- A certificate is signed only for a workload placed on the node that asks, for its gateway or
  operator identity, or for the node itself.
- Assignments are sent as differences to what this session has been sent; a session that is slow
  gets the latest state once, never a queue of old ones.
- The newest session of a node replaces an older one.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from bedstone.control.assignment import assignment
from bedstone.control.loop import ControlLoop
from bedstone.control.snapshot import Changes, Snapshot
from bedstone.errors import DeniedError, Error, NotFoundError, UnavailableError, from_code
from bedstone.model.messages import (
    Assignments,
    Certificate,
    CertificateRequest,
    Command,
    Digests,
    FromNode,
    FromServer,
    Hello,
    ProxyState,
    Reply,
    Report,
    Spans,
)
from bedstone.model.resources import (
    App,
    Database,
    DatabaseStatus,
    Instance,
    InstanceStatus,
    Node,
    Preparation,
    Presence,
    Resource,
    Revision,
)
from bedstone.store import Delete, Operation, Put, Store
from bedstone.trust.authority import LEAF_LIFETIME, Authority

LEASE_SECONDS = 10.0
_KEEP_ALIVE_EVERY = 1.0
_log = logging.getLogger(__name__)

Send = Callable[[FromServer], Awaitable[None]]


class Proxies(Protocol):
    """What sessions need of the mesh."""

    def acknowledged(self, node: str) -> frozenset[str]:
        """Paths of the instances whose listeners the node's proxy has acknowledged."""
        ...

    def repair(self, node: str, digests: Mapping[str, str]) -> list[str]:
        """Push again whatever differs from the truth; return its names."""
        ...


class Session:
    """One stream of one node."""

    def __init__(self, node: str, sessions: Sessions) -> None:
        self.node = node
        self._sessions = sessions
        self._sent: dict[str, int] = {}
        self._available: dict[str, bool] = {}
        self._acknowledged: frozenset[str] | None = None
        self._outbox: deque[FromServer] = deque()
        self._wake = asyncio.Event()
        self._stale: set[str] = set()
        self._replies: dict[str, asyncio.Queue[Reply]] = {}
        self._renewed = 0.0
        self._started = False

    def mark(self, apps: Iterable[str]) -> None:
        """Assignments of these apps may have changed."""
        self._stale |= set(apps)
        self._wake.set()

    def wake(self) -> None:
        """Something else to send may have changed."""
        self._wake.set()

    def post(self, message: FromServer) -> None:
        """Send a message after those already waiting."""
        self._outbox.append(message)
        self._wake.set()

    async def run(self, incoming: AsyncIterator[FromNode], send: Send) -> None:
        """Serve the stream until either side ends it.

        Raises:
            DeniedError: the first message is not this node's `Hello`.
        """
        hello = await anext(incoming, None)
        if not isinstance(hello, Hello) or hello.node.name != self.node:
            raise DeniedError(f"expected the hello of node {self.node}")
        await self._hello(hello)
        sender = asyncio.create_task(self._send(send))
        serving = asyncio.current_task()

        def sent(_: asyncio.Task[None]) -> None:
            # A stream that tells its node nothing any more must end: the node opens another one.
            if serving is not None and not sender.cancelled():
                serving.cancel()

        sender.add_done_callback(sent)
        try:
            async for message in incoming:
                await self._take(message)
        finally:
            for queue in self._replies.values():
                _end(queue, "the node has gone away")
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sender

    async def command(self, command: Command) -> AsyncGenerator[Reply, None]:
        """Have the node do something; yields its replies, the last one included.

        Raises:
            Error: what the node answered, or that it went away.
        """
        queue: asyncio.Queue[Reply] = asyncio.Queue(maxsize=1000)
        self._replies[command.id] = queue
        self.post(command)
        try:
            while True:
                reply = await queue.get()
                if reply.error:
                    raise from_code(reply.error, reply.message)
                yield reply
                if reply.final:
                    return
        finally:
            del self._replies[command.id]
            self.post(Command(id=f"cancel-{command.id}", action="cancel", subject=command.id))

    async def _hello(self, hello: Hello) -> None:
        """Take the node's word for all of its statuses: what it does not name is gone."""
        snapshot = self._sessions.snapshot
        named = {status.key for status in (*hello.instances, *hello.databases)}
        held: list[InstanceStatus | DatabaseStatus] = []
        for app in snapshot.apps():
            held += snapshot.of(InstanceStatus, app)
            held += snapshot.of(DatabaseStatus, app)
        gone = [s.key for s in held if s.node == self.node and s.key not in named]
        revision = await self._write(
            [hello.node, *hello.instances, *hello.databases, *hello.preparations],
            [Delete(key) for key in gone],
            renew=True,
        )
        await self._sessions.note_hello(self.node, revision)

    async def _take(self, message: FromNode) -> None:  # noqa: C901 - a table
        match message:
            case Report():
                resources: list[Resource] = [*message.instances, *message.databases]
                resources += message.preparations
                if message.node is not None and message.node.name == self.node:
                    resources.append(message.node)
                removed: list[Operation] = [
                    Delete(key) for key in message.removed if self._owns(key)
                ]
                await self._write(resources, removed, renew=False)
            case CertificateRequest():
                self.post(self._sessions.certify(self.node, message))
            case Digests():
                repaired = self._sessions.proxies.repair(self.node, message.digests)
                if repaired:
                    _log.warning("repaired", extra={"node": self.node, "resources": repaired})
            case Reply():
                if queue := self._replies.get(message.id):
                    # A reader slower than the node ends its own command, and stalls no other.
                    if queue.full():
                        _end(queue, "the output came faster than it was read")
                    else:
                        queue.put_nowait(message)
            case Spans():
                self._sessions.told_spans(self.node, message)
            case Hello():
                await self._hello(message)

    def _owns(self, key: str) -> bool:
        status = self._sessions.snapshot.get(InstanceStatus, key) or self._sessions.snapshot.get(
            DatabaseStatus, key
        )
        return status is not None and status.node == self.node

    async def _write(
        self, resources: Iterable[Resource], operations: Iterable[Operation], *, renew: bool
    ) -> int:
        operations = list(operations)
        snapshot = self._sessions.snapshot
        for resource in resources:
            if not _may_write(snapshot, self.node, resource):
                _log.warning("refused status", extra={"node": self.node, "key": resource.key})
            elif snapshot.get(type(resource), resource.key) != resource:
                operations.append(Put(resource.key, resource.encode()))
        loop = asyncio.get_running_loop()
        lease = _lease(self.node)
        if renew or not snapshot.present(self.node):
            await self._sessions.store.grant(lease, LEASE_SECONDS)
            presence = Presence(node=self.node)
            operations.append(Put(presence.key, presence.encode(), lease=lease))
        elif loop.time() - self._renewed > _KEEP_ALIVE_EVERY:
            # NotFound: it has just ended; the next report sees that the presence is gone.
            with contextlib.suppress(NotFoundError):
                await self._sessions.store.keep_alive(lease)
            self._renewed = loop.time()
        return await self._sessions.store.commit(operations) if operations else 0

    async def _send(self, send: Send) -> None:
        snapshot = self._sessions.snapshot
        while True:
            self._wake.clear()
            apps, self._stale = self._stale, set()
            if not self._started:
                apps = set(snapshot.apps())
            if changes := self._difference(apps):
                await send(changes)
            self._started = True
            acknowledged = self._sessions.proxies.acknowledged(self.node)
            if acknowledged != self._acknowledged:
                before = self._acknowledged or frozenset()
                await send(
                    ProxyState(
                        acknowledged=tuple(sorted(acknowledged - before)),
                        removed=tuple(sorted(before - acknowledged)),
                        complete=self._acknowledged is None,
                    )
                )
                self._acknowledged = acknowledged
            while self._outbox:
                await send(self._outbox.popleft())
            await self._wake.wait()

    def _difference(self, apps: set[str]) -> Assignments | None:
        found = assignment(self._sessions.snapshot, self.node, sorted(apps))
        fresh = [
            resource
            for key, (revision, resource) in found.resources.items()
            if self._sent.get(key) != revision
        ]
        removed = [
            key for key in self._sent if key not in found.resources and _app_of_key(key) in apps
        ]
        available = {
            name: ready
            for name, ready in found.available.items()
            if self._available.get(name) != ready
        }
        if self._started and not (fresh or removed or available):
            return None
        self._sent.update({r.key: found.resources[r.key][0] for r in fresh})
        for key in removed:
            del self._sent[key]
        self._available.update(available)
        return Assignments(
            complete=not self._started,
            domain=self._sessions.authority.domain,
            apps=tuple(r for r in fresh if isinstance(r, App)),
            revisions=tuple(r for r in fresh if isinstance(r, Revision)),
            instances=tuple(r for r in fresh if isinstance(r, Instance)),
            databases=tuple(r for r in fresh if isinstance(r, Database)),
            preparations=tuple(r for r in fresh if isinstance(r, Preparation)),
            removed=tuple(removed),
            available=available,
        )


class Sessions:
    """All sessions of this server."""

    def __init__(
        self,
        store: Store,
        loop: ControlLoop,
        authority: Authority,
        proxies: Proxies,
        *,
        lifetime: dt.timedelta = LEAF_LIFETIME,
    ) -> None:
        self._lifetime = lifetime
        self.store = store
        self.authority = authority
        self.proxies = proxies
        self._loop = loop
        self._sessions: dict[str, tuple[Session, asyncio.Task[object] | None]] = {}
        self.heard: set[str] = set()
        """The nodes that have said hello since this server started."""
        self.told_spans: Callable[[str, Spans], None] = lambda _node, _spans: None
        """Takes the spans of each node; it must not wait."""
        loop.observe(self._observe)

    @property
    def snapshot(self) -> Snapshot:
        """The control plane's picture."""
        return self._loop.snapshot

    def heard_from_all(self) -> bool:
        """Whether every node that lives has said hello since this server started."""
        return all(
            name in self.heard for name in self.snapshot.nodes() if self.snapshot.present(name)
        )

    def get(self, node: str) -> Session:
        """The node's session.

        Raises:
            UnavailableError: it has none now.
        """
        found = self._sessions.get(node)
        if found is None:
            raise UnavailableError(f"node {node} has no session with this server", retry_after=1.0)
        return found[0]

    def wake(self, node: str) -> None:
        """The node's proxy acknowledged something."""
        if found := self._sessions.get(node):
            found[0].wake()

    async def note_hello(self, node: str, revision: int) -> None:
        """Note that a node's hello, written at `revision`, is part of the picture."""
        await self._loop.reached(revision)
        self.heard.add(node)
        await self._loop.announce()

    async def serve(self, node: str, incoming: AsyncIterator[FromNode], send: Send) -> None:
        """Serve one stream of a node whose identity has been verified."""
        await self._loop.loaded()
        session = Session(node, self)
        if before := self._sessions.get(node):
            _log.info("session replaced", extra={"node": node})
            if before[1]:
                before[1].cancel()
        self._sessions[node] = (session, asyncio.current_task())
        try:
            await session.run(incoming, send)
        finally:
            if self._sessions.get(node, (None,))[0] is session:
                del self._sessions[node]

    async def call(self, node: str, command: Command) -> Reply:
        """Run a command that has one reply."""
        async with contextlib.aclosing(self.get(node).command(command)) as replies:
            async for reply in replies:
                return reply
        raise UnavailableError(f"node {node} did not answer")

    def certify(self, node: str, request: CertificateRequest) -> Certificate:
        """Answer a certificate request, by the rule of this module."""
        try:
            if not self._may_certify(node, request.spiffe_id):
                raise DeniedError(f"{request.spiffe_id} is not placed on node {node}")
            issued = self.authority.sign(
                request.request, request.spiffe_id, lifetime=self._lifetime
            )
        except Error as error:
            _log.warning(
                "certificate refused",
                extra={"node": node, "spiffe_id": request.spiffe_id, "reason": error.message},
            )
            return Certificate(id=request.id, error=error.code, message=error.message)
        return Certificate(id=request.id, chain=issued.chain, bundle=self.authority.bundle)

    def _may_certify(self, node: str, spiffe_id: str) -> bool:
        prefix = f"spiffe://{self.authority.domain}/"
        if spiffe_id == f"{prefix}node/{node}":
            return True
        app, _, workload = spiffe_id.removeprefix(prefix).partition("/")
        if not spiffe_id.startswith(prefix) or f"apps/{app}" not in self.snapshot:
            return False
        placed = [i for i in self.snapshot.of(Instance, app) if i.node == node]
        match workload:
            case "gateway" | "operator":
                return bool(placed)
            case _:
                return any(instance.workload == workload for instance in placed)

    def _observe(self, changes: Changes) -> None:
        apps = changes.apps.union(*(self.snapshot.apps_on(node) for node in changes.nodes))
        for session, _ in self._sessions.values():
            session.mark(apps)


def new_command_id() -> str:
    """An identifier for a `Command`."""
    return secrets.token_hex(8)


def _end(queue: asyncio.Queue[Reply], message: str) -> None:
    """Fail a command after what its reader has not read yet; a full queue loses its oldest."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(Reply(id="", final=True, error="unavailable", message=message))


def _may_write(snapshot: Snapshot, node: str, resource: Resource) -> bool:
    match resource:
        case Node():
            return resource.name == node
        case InstanceStatus():
            instance = snapshot.get(Instance, f"instances/{resource.path}")
            return resource.node == node and instance is not None and instance.node == node
        case DatabaseStatus():
            database = snapshot.get(Database, f"databases/{resource.path}")
            return resource.node == node and database is not None and database.node == node
        case Preparation():
            key = f"revisions/{resource.app}/{resource.workload}/{resource.revision}"
            return resource.node == node and snapshot.get(Revision, key) is not None
        case _:
            return False


def _lease(node: str) -> str:
    return f"node/{node}"


def _app_of_key(key: str) -> str:
    parts = key.split("/")
    return parts[2] if parts[0] == "status" else parts[1]
