"""A control plane for tests of nodes: it speaks the session, signs, and plays the proxy's part.

It is a fake, not a mock: a real gRPC server with mutual TLS and a real authority, that assigns what
a test says, keeps what nodes report, and opens the listeners that a proxy would open, so that
instances can start without one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from bedstone.model.messages import (
    SESSION_METHOD,
    Assignments,
    Certificate,
    CertificateRequest,
    Command,
    FromNode,
    FromServer,
    Hello,
    ProxyState,
    Reply,
    Report,
    decode_from_node,
    encode,
)
from bedstone.model.resources import (
    App,
    DatabaseStatus,
    Instance,
    InstanceStatus,
    Node,
    Phase,
    Preparation,
    Resource,
    Revision,
)
from bedstone.model.spec import AppSpec
from bedstone.processes.client import RunInfo, SupervisorClient, run_directory, start_supervisor
from bedstone.processes.spec import STAGE_NODE, ProcessSpec
from bedstone.trust.authority import Authority
from bedstone.trust.spiffe import node_id, server_id
from bedstone.trust.svid import certificate_request, new_key

NODE = "here"
Status = InstanceStatus | DatabaseStatus | Preparation


class FakeServer:
    """One server. What it knows survives `stop` and `start`, as a store would."""

    def __init__(self, folder: Path, api: Path) -> None:
        self.authority = Authority.open(folder)
        self.lifetime = dt.timedelta(hours=1)
        self.proxied = True
        """Whether listeners are opened and acknowledged."""
        self.node: Node | None = None
        self.statuses: dict[str, Status] = {}
        self.history: list[Status] = []
        """Every status that was reported after a hello, in order."""
        self.hellos: list[Hello] = []
        self.heartbeats: list[float] = []
        self.replies: dict[str, list[Reply]] = {}
        self.signed: list[str] = []
        self._api = api
        self._resources: dict[str, Resource] = {}
        self._available: dict[str, bool] = {}
        self._outboxes: set[asyncio.Queue[FromServer]] = set()
        self._changed = asyncio.Condition()
        self._listeners: dict[tuple[str, int], socket.socket] = {}
        self._acknowledged: set[str] = set()
        self._grpc: grpc.aio.Server | None = None
        self._http: asyncio.Server | None = None
        self.session = "127.0.0.1:0"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
        for listener in self._listeners.values():
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()

    async def start(self) -> None:
        """Serve; on the same port as before, if there was one."""
        key = new_key()
        identity = server_id(self.authority.domain)
        chain = self.authority.sign(
            certificate_request(key, identity), identity, hosts=["127.0.0.1", "localhost"]
        ).chain
        credentials = grpc.ssl_server_credentials(
            [(key.encode(), chain.encode())],
            self.authority.bundle.encode(),
            require_client_auth=True,
        )
        self._grpc = grpc.aio.server()
        service, _, method = SESSION_METHOD.strip("/").partition("/")
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve, request_deserializer=decode_from_node, response_serializer=encode
        )
        self._grpc.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        port = self._grpc.add_secure_port(self.session, credentials)
        self.session = f"127.0.0.1:{port}"
        await self._grpc.start()
        self._api.unlink(missing_ok=True)
        self._http = await asyncio.start_unix_server(self._join, str(self._api))

    async def stop(self) -> None:
        """Be gone."""
        if self._http is not None:
            self._http.close()
            self._api.unlink(missing_ok=True)
        if self._grpc is not None:
            await self._grpc.stop(0)
            self._grpc = None

    # What a test says.

    def assign(
        self,
        *resources: Resource,
        remove: tuple[str, ...] = (),
        available: dict[str, bool] | None = None,
    ) -> None:
        """Make these resources known to the node, and withdraw others by key."""
        self._resources.update({resource.key: resource for resource in resources})
        for key in remove:
            self._resources.pop(key, None)
        self._available.update(available or {})
        self._send(self._assignments(resources, remove, available or {}))

    def command(self, command: Command) -> None:
        """Ask the node to do something."""
        self._send(command)

    def phase(self, instance: Instance) -> Phase | None:
        """The phase that was last reported of an instance."""
        found = self.status(instance)
        return found.phase if found else None

    def status(self, instance: Instance) -> InstanceStatus | None:
        """What was last reported of an instance."""
        found = self.statuses.get(f"status/instances/{instance.path}")
        return found if isinstance(found, InstanceStatus) else None

    async def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        """Wait for something that reports bring about; an AssertionError says what was there."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            seen = {
                key: (value.phase, value.reason)
                for key, value in self.statuses.items()
                if not isinstance(value, Preparation)
            }
            raise AssertionError(f"not seen within {seconds:g} s; reported is {seen}") from None

    async def until_phase(self, instance: Instance, phase: Phase, seconds: float = 15.0) -> None:
        """Wait until an instance is reported to be in a phase."""
        await self.until(lambda: self.phase(instance) is phase, seconds)

    # The session.

    async def _serve(self, requests: AsyncIterator[FromNode], context: Any) -> None:
        outbox: asyncio.Queue[FromServer] = asyncio.Queue()
        sender = asyncio.ensure_future(self._drain(outbox, context))
        try:
            async for message in requests:
                if isinstance(message, Hello):
                    outbox.put_nowait(self._assignments(tuple(self._resources.values()), (), {}))
                    acknowledged = tuple(sorted(self._acknowledged))
                    outbox.put_nowait(ProxyState(acknowledged=acknowledged, complete=True))
                    self._outboxes.add(outbox)
                await self._hear(message, outbox)
                async with self._changed:
                    self._changed.notify_all()
        finally:
            self._outboxes.discard(outbox)
            sender.cancel()

    async def _drain(self, outbox: asyncio.Queue[FromServer], context: Any) -> None:
        while True:
            await context.write(await outbox.get())

    async def _hear(self, message: FromNode, outbox: asyncio.Queue[FromServer]) -> None:
        match message:
            case Hello():
                self.hellos.append(message)
                self.node = message.node
                self.statuses.clear()
                self._keep((*message.instances, *message.databases, *message.preparations))
            case Report():
                self.heartbeats.append(time.monotonic())
                self.node = message.node or self.node
                statuses: tuple[Status, ...] = (
                    *message.instances,
                    *message.databases,
                    *message.preparations,
                )
                self.history += statuses
                self._keep(statuses)
                for key in message.removed:
                    self.statuses.pop(key, None)
            case CertificateRequest():
                self.signed.append(message.spiffe_id)
                issued = self.authority.sign(
                    message.request, message.spiffe_id, lifetime=self.lifetime
                )
                outbox.put_nowait(
                    Certificate(id=message.id, chain=issued.chain, bundle=self.authority.bundle)
                )
            case Reply():
                self.replies.setdefault(message.id, []).append(message)
            case _:
                pass

    def _keep(self, statuses: tuple[Status, ...]) -> None:
        for status in statuses:
            self.statuses[status.key] = status
            if isinstance(status, InstanceStatus) and status.plumbing and self.proxied:
                self._proxy(status)

    def _proxy(self, status: InstanceStatus) -> None:
        """Open what the proxy would open, and acknowledge it."""
        if status.plumbing is None:
            return
        for address in (status.plumbing.outbound, status.plumbing.inbound):
            place = (address.host, address.port)
            if place not in self._listeners:
                # Bound before the first await: several reports may come at once.
                listener = socket.create_server(place)
                self._listeners[place] = listener
                listener.setblocking(False)  # noqa: FBT003 - its only argument
                loop = asyncio.get_running_loop()
                loop.add_reader(listener, _accept, listener)
        if status.path not in self._acknowledged:
            self._acknowledged.add(status.path)
            self._send(ProxyState(acknowledged=(status.path,)))

    def _send(self, message: FromServer) -> None:
        for outbox in self._outboxes:
            outbox.put_nowait(message)

    def _assignments(
        self, resources: tuple[Resource, ...], removed: tuple[str, ...], available: dict[str, bool]
    ) -> Assignments:
        groups: dict[str, list[Resource]] = {}
        for resource in resources:
            groups.setdefault(f"{resource.kind}s", []).append(resource)
        complete = not available and not removed and len(resources) == len(self._resources)
        return Assignments.model_validate(
            {
                "complete": complete,
                "domain": self.authority.domain,
                "removed": removed,
                "available": self._available if complete else available,
                **groups,
            }
        )

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        name = head.split(b" ")[1].decode().split("/")[3]
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        )
        asked = json.loads(await reader.readexactly(length))
        identity = node_id(self.authority.domain, name)
        issued = self.authority.sign(asked["request"], identity, lifetime=self.lifetime)
        answer = {
            "domain": self.authority.domain,
            "chain": issued.chain,
            "bundle": self.authority.bundle,
            "session": self.session,
        }
        body = json.dumps(answer).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: ")
        writer.write(f"{len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()


def _accept(listener: socket.socket) -> None:
    listener.accept()[0].close()


class World:
    """A real supervisor and a real node agent, and a fake server."""

    def __init__(
        self, server: FakeServer, supervisor: SupervisorClient, run: RunInfo, code: Path
    ) -> None:
        self.server = server
        self.supervisor = supervisor
        self.run = run
        self.code = code

    @property
    def state(self) -> Path:
        """The node's state directory."""
        return Path(self.run.state_dir)

    def app(self, **workloads: dict[str, Any]) -> App:
        """An app `shop` with these workloads; assigns it with a revision `r1` of each."""
        spec = AppSpec.model_validate({"app": "shop", "workloads": workloads})
        app = App(name="shop", spec=spec, root=str(self.code))
        revisions = [
            Revision(app="shop", workload=name, name="r1", spec=declared, root=str(self.code))
            for name, declared in spec.workloads.items()
        ]
        self.server.assign(app, *revisions)
        return app

    def instance(self, workload: str, name: str = "1", **fields: Any) -> Instance:
        """An instance of `r1`; assigns it."""
        instance = Instance(
            app="shop",
            workload=workload,
            name=f"{workload}-{name}",
            revision="r1",
            node=NODE,
            **fields,
        )
        self.server.assign(instance)
        return instance


@asynccontextmanager
async def node_world(files: dict[str, str]) -> AsyncIterator[World]:
    """A world whose code directory has these files; everything is ended and removed after it."""
    base = Path(tempfile.mkdtemp(prefix="bedstone-node-"))
    base.chmod(0o755)
    code, state = base / "code", base / "state"
    code.mkdir(mode=0o755)
    state.mkdir(mode=0o700)
    for name, text in files.items():
        (code / name).write_text(text)
    run_dir = run_directory(state.resolve())
    config = {
        "name": NODE,
        "state_dir": str(state),
        "run_dir": str(run_dir),
        "api": str(base / "api.sock"),
        "supervisor": str(run_dir / "supervisor.sock"),
        "enforce": "never",
        "lease": 3.0,
    }
    (state / "node.json").write_text(json.dumps(config))
    argv = (sys.executable, "-P", "-m", "bedstone.node", "--config", str(state / "node.json"))
    log = state / "logs" / "node.log"
    log.parent.mkdir()
    node = ProcessSpec(
        name="node",
        argv=argv,
        env={"PATH": "/usr/bin:/bin"},
        stdout=str(log),
        stage=STAGE_NODE,
        restart="always",
    )
    try:
        async with FakeServer(base / "authority", base / "api.sock") as server:
            run = await start_supervisor(state, [node])
            async with SupervisorClient(run.socket) as supervisor:
                try:
                    yield World(server, supervisor, run, code)
                finally:
                    await supervisor.shutdown()
    finally:
        shutil.rmtree(base, ignore_errors=True)
