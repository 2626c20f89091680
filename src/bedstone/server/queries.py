"""What the API reads: status, resources, logs and calls, from the picture and from nodes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from bedstone import __version__
from bedstone.control.loop import ControlLoop
from bedstone.control.overview import app_status
from bedstone.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from bedstone.model.api import (
    AppStatus,
    CallRequest,
    CallResult,
    DomainStatus,
    JoinGrant,
    JoinRequest,
    Part,
    ResourceEntry,
    ResourceList,
)
from bedstone.model.messages import Command, LogLine
from bedstone.model.resources import (
    App,
    Condition,
    Database,
    DatabaseStatus,
    Instance,
    Phase,
    Resource,
    Revision,
)
from bedstone.server.collecting import SERVER
from bedstone.server.sessions import Sessions, new_command_id
from bedstone.telemetry.lines import Filter
from bedstone.trust.authority import Authority

EVERYTHING = Filter()
MASK = "***"
"""What a reader sees in place of the value of an environment variable."""
_NODE_NAME = re.compile(r"[a-z][-a-z0-9]{0,39}")
R = TypeVar("R", bound=Resource)
Row = tuple[str, int, dict[str, object]]


class Programmed(Protocol):
    """What queries need of the mesh."""

    def route_programmed(self, app: str) -> bool:
        """Whether every gateway proxy has acknowledged the app's routes."""
        ...


class Queries:
    """Reads for the API; nothing here changes the store."""

    def __init__(
        self,
        loop: ControlLoop,
        sessions: Sessions,
        authority: Authority,
        mesh: Programmed,
        *,
        session_address: str,
        complete: Callable[[], bool],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._loop = loop
        self._sessions = sessions
        self._authority = authority
        self._mesh = mesh
        self._session_address = session_address
        self._complete = complete
        self._started = clock()

    def domain(self) -> DomainStatus:
        """The whole installation."""
        snapshot = self._loop.snapshot
        nodes = [
            Part(
                kind="proxy",
                name=node.name,
                state=node.proxy if snapshot.present(node.name) else Phase.STOPPED,
                detail=node.proxy_reason,
                pid=node.pid,
                restarts=node.proxy_restarts,
            )
            for node in snapshot.nodes().values()
        ]
        return DomainStatus(
            domain=self._authority.domain,
            version=__version__,
            started_at=self._started,
            complete=self._complete(),
            nodes=tuple(nodes),
            apps=tuple(self.app(name) for name in sorted(snapshot.apps())),
        )

    def app(self, name: str) -> AppStatus:
        """One app.

        Raises:
            NotFoundError: there is no such app.
        """
        return app_status(
            self._loop.snapshot,
            self._app(name),
            programmed=self._mesh.route_programmed(name),
            heard=self._sessions.heard,
        )

    async def watch(self, name: str) -> AsyncGenerator[AppStatus, None]:
        """The app's status now and whenever it changes; ends when the app is gone."""
        last: AppStatus | None = None
        version = 0
        while f"apps/{name}" in self._loop.snapshot:
            version = self._loop.version
            status = self.app(name)
            if status != last:
                yield status
                last = status
            await self._loop.changed(version)

    def resources(self, kind: str, prefix: str = "", *, masked: bool) -> ResourceList:
        """The resources of a kind whose name is `prefix` or lies below it, sorted.

        Args:
            kind: which kind.
            prefix: a name, or the beginning of one up to a slash.
            masked: without the values of environment variables, which may be secrets.

        Raises:
            InvalidError: there is no such kind.
        """
        rows = sorted(
            (name, revision, value)
            for name, revision, value in self._rows(kind, masked=masked)
            if not prefix or name == prefix or name.startswith(prefix.rstrip("/") + "/")
        )
        items = [
            ResourceEntry(kind=kind, name=name, revision=revision, value=value)
            for name, revision, value in rows
        ]
        return ResourceList(revision=self._loop.snapshot.revision, items=tuple(items))

    def resource(self, kind: str, name: str, *, masked: bool) -> ResourceEntry:
        """One resource; `masked` as of `resources`.

        Raises:
            NotFoundError: there is none of that name.
        """
        for row_name, revision, value in self._rows(kind, masked=masked):
            if row_name == name:
                return ResourceEntry(kind=kind, name=name, revision=revision, value=value)
        raise NotFoundError(f"there is no {kind} {name}", hint=f"see bedstone get {kind}")

    async def logs(
        self,
        app: str,
        workload: str,
        *,
        follow: bool,
        since: float | None,
        tail: int | None,
        wanted: Filter = EVERYTHING,
    ) -> AsyncGenerator[LogLine, None]:
        """Output of a workload's instances, from every node that runs one."""
        declared = self._app(app).spec.workloads
        if workload not in declared:
            known = ", ".join(sorted(declared))
            raise NotFoundError(f"app {app} has no workload {workload}, it has {known}")
        placed = [i for i in self._loop.snapshot.of(Instance, app) if i.workload == workload]
        nodes = sorted({i.node for i in placed}) or list(self._loop.snapshot.nodes())
        command = Command(
            id="",
            action="logs",
            subject=f"{app}/default/{workload}/",
            follow=follow,
            since=since,
            tail=tail,
            trace=wanted.trace,
            level=wanted.level,
            text=wanted.text,
        )
        async for line in self.lines(nodes, command):
            yield line

    async def engine_logs(
        self, name: str, *, follow: bool, since: float | None, tail: int | None
    ) -> AsyncGenerator[LogLine, None]:
        """Output of an engine, the server or the node agent, from every node."""
        nodes = list(self._loop.snapshot.nodes())
        command = Command(
            id="",
            action="logs",
            subject=f"engine:{name}",
            follow=follow,
            since=since,
            tail=tail,
        )
        async for line in self.lines(nodes, command):
            yield line

    async def lines(self, nodes: Sequence[str], command: Command) -> AsyncGenerator[LogLine, None]:
        """What these nodes answer to one command for logs, as it comes."""
        queue: asyncio.Queue[LogLine | Exception | None] = asyncio.Queue(maxsize=1000)

        async def read(node: str) -> None:
            own = command.model_copy(update={"id": new_command_id()})
            try:
                async for reply in self._sessions.get(node).command(own):
                    for line in reply.lines:
                        await queue.put(line)
                await queue.put(None)
            except Exception as error:  # noqa: BLE001 - handed to the reader of the queue
                await queue.put(error)

        # No TaskGroup: one may not be left and entered again around the yields of a generator.
        tasks = [asyncio.create_task(read(node)) for node in nodes]
        try:
            left = len(tasks)
            while left:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def call(self, app: str, workload: str, request: CallRequest) -> CallResult:
        """Send one HTTP request to a workload through the mesh, as an identity of its app.

        Raises:
            NotFoundError: the workload or the identity is not of this app.
            UnavailableError: no node with a proxy can be reached.
        """
        declared = self._app(app).spec.workloads
        for name in (workload, request.identity):
            if name not in declared and name != "operator":
                known = ", ".join(sorted(declared))
                raise NotFoundError(f"app {app} has no workload {name}, it has {known}")
        if not request.path.startswith("/"):
            raise InvalidError(f"got path {request.path!r}, expected one that starts with /")
        placed = self._loop.snapshot.of(Instance, app)
        own = [i.node for i in placed if i.workload == request.identity]
        nodes = sorted(set(own)) or sorted({i.node for i in placed})
        if not nodes:
            raise UnavailableError(f"app {app} runs on no node yet", retry_after=1.0)
        command = Command(
            id=new_command_id(),
            action="call",
            app=app,
            identity=request.identity,
            method=request.method,
            url=f"http://{workload}{request.path}",
            headers=request.headers,
            body=request.body,
            timeout=request.timeout,
        )
        reply = await self._sessions.call(nodes[0], command)
        return CallResult(status=reply.status or 0, headers=reply.headers, body=reply.body)

    def join(self, name: str, request: JoinRequest, *, local: bool) -> JoinGrant:
        """Sign a node's first certificate.

        Args:
            name: the node's.
            request: its key.
            local: whoever asks is on this machine, and could as well read the authority's key. To
                nobody else the name of a living node is given: it would get its assignments.

        Raises:
            ConflictError: a node of that name is there.
        """
        if not _NODE_NAME.fullmatch(name):
            raise InvalidError(f"got node name {name!r}, expected lower-case letters and digits")
        if name == SERVER:
            raise InvalidError(f"got node name {name}, which is the server's own")
        if not local and self._loop.snapshot.present(name):
            raise ConflictError(
                f"there is a node {name} already",
                hint="choose another name, or stop that node and try again after 10 seconds",
            )
        identity = f"spiffe://{self._authority.domain}/node/{name}"
        issued = self._authority.sign(request.request, identity)
        return JoinGrant(
            domain=self._authority.domain,
            chain=issued.chain,
            bundle=self._authority.bundle,
            session=self._session_address,
        )

    def _app(self, name: str) -> App:
        app = self._loop.snapshot.get(App, f"apps/{name}")
        if app is None:
            known = ", ".join(sorted(self._loop.snapshot.apps())) or "none at all"
            raise NotFoundError(f"there is no app {name}, there is {known}", hint="bedstone up")
        return app

    def _rows(self, kind: str, *, masked: bool) -> Iterator[Row]:
        for name, revision, value in self._unmasked(kind):
            if masked:
                _mask(kind, value)
            yield name, revision, value

    def _unmasked(self, kind: str) -> Iterable[Row]:
        snapshot = self._loop.snapshot
        rows: dict[str, Callable[[], Iterable[Row]]] = {
            "app": lambda: (self._row(app, name) for name, app in snapshot.apps().items()),
            "condition": lambda: (
                self._row(c, f"{c.app}/{c.subject}") for c in self._all(Condition)
            ),
            "database": self._database_rows,
            "instance": self._instance_rows,
            "node": lambda: (self._row(node, name) for name, node in snapshot.nodes().items()),
            "revision": lambda: (
                self._row(r, f"{r.app}/{r.workload}/{r.name}") for r in self._all(Revision)
            ),
            "route": self._route_rows,
            "workload": self._workload_rows,
        }
        if kind not in rows:
            raise InvalidError(f"there is no kind {kind}, expected one of {', '.join(rows)}")
        return rows[kind]()

    def _instance_rows(self) -> Iterator[Row]:
        for instance in self._all(Instance):
            row = self._row(instance, instance.path)
            if status := self._loop.snapshot.status(instance):
                row[2]["status"] = _public(status)
            yield row

    def _database_rows(self) -> Iterator[Row]:
        for database in self._all(Database):
            row = self._row(database, database.path)
            key = f"status/databases/{database.path}"
            if status := self._loop.snapshot.get(DatabaseStatus, key):
                row[2]["status"] = _public(status)
            yield row

    def _route_rows(self) -> Iterator[Row]:
        for name, app in self._loop.snapshot.apps().items():
            for route in app.spec.gateway.routes if app.spec.gateway else ():
                where = f"{name}:{route.host or ''}{route.path}"
                revision = self._loop.snapshot.revision_of(app.key)
                yield where, revision, route.model_dump(mode="json")

    def _workload_rows(self) -> Iterator[Row]:
        for name, app in self._loop.snapshot.apps().items():
            for workload, spec in app.spec.workloads.items():
                value = spec.model_dump(mode="json", exclude_none=True)
                yield f"{name}/{workload}", self._loop.snapshot.revision_of(app.key), value

    def _all(self, kind: type[R]) -> Iterator[R]:
        for app in self._loop.snapshot.apps():
            yield from self._loop.snapshot.of(kind, app)

    def _row(self, resource: Resource, name: str) -> Row:
        return name, self._loop.snapshot.revision_of(resource.key), _public(resource)


def _mask(kind: str, value: dict[str, Any]) -> None:
    """Leave of every workload's environment only the names, and nothing that may hold a token."""
    match kind:
        case "app":
            workloads = list(value["spec"]["workloads"].values())
        case "revision":
            workloads = [value["spec"]]
        case "workload":
            workloads = [value]
        case _:
            workloads = []
    if kind == "app":
        _mask_monitoring(value["spec"])
    for workload in workloads:
        workload["env"] = dict.fromkeys(workload.get("env") or {}, MASK)


def _mask_monitoring(spec: dict[str, Any]) -> None:
    """Hide where alerts and measurements are sent, and with which credentials."""
    monitoring = spec.get("monitoring") or {}
    parts = [
        *(spec.get("receivers") or {}).values(),
        *(monitoring.get("remote_write") or ()),
        *(monitoring.get("otlp") or ()),
    ]
    for part in parts:
        part["headers"] = dict.fromkeys(part.get("headers") or {}, MASK)
        for key in ("webhook", "url", "secret", "bearer"):
            if part.get(key):
                part[key] = MASK


def _public(resource: Resource) -> dict[str, object]:
    """A resource as readers may see it: without credentials."""
    value: dict[str, object] = resource.model_dump(
        mode="json",
        exclude={
            "plumbing": {"credential"},
            "url": True,
            "spec": {"databases": {"__all__": {"url"}}},
        },
    )
    return value
