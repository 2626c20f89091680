"""ADS over gRPC: one stream a client, both dialects; and what the server asks about proxies.

Owns the streams' transport; what to send is decided by `bedstone.control.mesh`.

Rules:
- Who a client is comes from its certificate, and it gets its own resources only.
- A change goes out at the next turn of the event loop; there is no timer to wait for.
- A workload is not trusted with the server's memory: the size and number of what it asks for, and
  its streams, are limited. One that asks for more loses its stream.
- A slow client holds back nobody: each stream has its own task and no queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from bedstone.control.mesh import queries
from bedstone.control.mesh.delta import DeltaStream
from bedstone.control.mesh.mesh import Changes, Mesh
from bedstone.control.mesh.names import GATEWAY, OPERATOR, Type
from bedstone.control.mesh.protos import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)
from bedstone.control.mesh.sotw import SotwStream
from bedstone.control.mesh.streams import Interest, Rejection, Request, Response, Stream
from bedstone.control.mesh.views import GrpcClient, NodeProxy, Proxy
from bedstone.errors import DeniedError

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_LOG = logging.getLogger(__name__)
_LARGE = 256 << 10
_LARGE_AT_ONCE = 16
_LARGE_WAIT = 2.0
STREAMS_EACH = 8
"""Streams that each instance of a workload may have; one channel of a gRPC program needs one."""
NAMES_MOST = 1_000
REQUEST_MOST = 1 << 20
_TYPES = {kind.value: kind for kind in Type}

Context = grpc.aio.ServicerContext[bytes, bytes]
Authorize = Callable[[Context], Proxy]


def by_certificate(domain: str) -> Authorize:
    """Identity from the client certificate's URI SAN (SPIFFE X.509-SVID §4.1)."""

    def authorize(context: Context) -> Proxy:
        found = context.auth_context().get("x509_subject_alternative_name", ())
        ids = [name for name in (n.decode(errors="replace") for n in found) if "://" in name]
        # exactly one URI: X.509-SVID, section 2
        match ids[0].split("/") if len(ids) == 1 else ():
            case ["spiffe:", "", trust, "node", node] if trust == domain:
                return NodeProxy(node)
            case ["spiffe:", "", trust, app, workload] if trust == domain and workload not in (
                GATEWAY,
                OPERATOR,
            ):
                return GrpcClient(app, workload)
            case _:
                raise DeniedError(
                    "the client's certificate names no node or workload of this domain"
                )

    return authorize


@dataclass(frozen=True, slots=True)
class ProxyState:
    """One connected client: for each type how many it wants, and how many are on their way."""

    proxy: str
    dialect: str
    subscribed: dict[str, int]
    pending: dict[str, int]


class _TooMuch(Exception):  # noqa: N818 - says it all
    """A workload wants more than it may have."""


class _Connection:
    """A stream with its transport."""

    def __init__(self, stream: Stream, dialect: str) -> None:
        self.stream = stream
        self.dialect = dialect
        self.wake = asyncio.Event()
        self.closed = False


class AdsService:
    """Serves a mesh to proxies.

    Args:
        mesh: what to serve.
        authorize: says who a client is, or raises DeniedError.

    Attributes:
        bytes_sent: since the beginning, to all clients.
        responses_sent: likewise.
    """

    def __init__(self, mesh: Mesh, authorize: Authorize) -> None:
        self._mesh = mesh
        self._authorize = authorize
        self._interest = Interest()
        self._connections: dict[Stream, _Connection] = {}
        self._by_proxy: defaultdict[Proxy, set[Stream]] = defaultdict(set)
        self._observers: list[Callable[[Proxy], None]] = []
        self._progress = asyncio.Event()
        self.bytes_sent = 0
        self.responses_sent = 0
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        self._unwatch = mesh.watch(self._changed)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service with a gRPC server."""
        handlers: dict[str, Any] = {
            "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(self._delta),
            "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(self._sotw),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _changed(self, changes: Changes) -> None:
        if not changes:
            for connection in self._connections.values():
                connection.wake.set()
            return
        for key in changes.keys:
            for stream in self._interest.of(key):
                stream.mark(key.type, key.name)
                self._connections[stream].wake.set()
        if not changes.views and not changes.apps:
            return
        for stream, connection in self._connections.items():
            match stream.proxy:
                case NodeProxy(node) if node in changes.views:
                    for kind, name in changes.views[node]:
                        stream.mark(kind, name)
                    connection.wake.set()
                case GrpcClient(app) if app in changes.apps:
                    stream.mark_all()
                    connection.wake.set()
                case _:
                    pass

    async def _delta(self, _requests: Any, context: Context) -> None:
        await self._serve(context, DeltaStream, _read_delta, _write_delta, "delta")

    async def _sotw(self, _requests: Any, context: Context) -> None:
        await self._serve(context, SotwStream, _read_sotw, _write_sotw, "sotw")

    async def _serve(
        self,
        context: Context,
        make: Callable[[Proxy, Mesh, Interest], Stream],
        read: Callable[[bytes], Request | None],
        write: Callable[[Response], bytes],
        dialect: str,
    ) -> None:
        try:
            proxy = self._authorize(context)
        except DeniedError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, error.message)
        if isinstance(proxy, GrpcClient) and (excess := self._excess(proxy, dialect)):
            _LOG.warning("ads client refused", extra={"proxy": str(proxy), "reason": excess})
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, excess)
        connection = _Connection(make(proxy, self._mesh, self._interest), dialect)
        self._connections[connection.stream] = connection
        self._by_proxy[proxy].add(connection.stream)
        _LOG.info("ads client connected", extra={"proxy": str(proxy), "dialect": dialect})
        reader = asyncio.create_task(self._read(context, connection, read))
        try:
            await self._send(context, connection, write)
        finally:
            reader.cancel()
            (failure,) = await asyncio.gather(reader, return_exceptions=True)
            if isinstance(failure, _TooMuch):
                _LOG.warning(
                    "ads client ended", extra={"proxy": str(proxy), "reason": str(failure)}
                )
            elif isinstance(failure, Exception) and not isinstance(failure, grpc.aio.UsageError):
                _LOG.error("ads client not understood", exc_info=failure)
            del self._connections[connection.stream]
            connection.stream.close()
            self._by_proxy[proxy].discard(connection.stream)
            if not self._by_proxy[proxy]:
                del self._by_proxy[proxy]
            self._advance(proxy)
            _LOG.info("ads client gone", extra={"proxy": str(proxy), "dialect": dialect})
        if isinstance(failure, _TooMuch):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(failure))

    def _excess(self, proxy: GrpcClient, dialect: str) -> str:
        """Why a workload may not have another stream; empty if it may."""
        if dialect != "sotw":  # what a delta stream remembers grows with every request
            return "a workload's client must use StreamAggregatedResources"
        most = STREAMS_EACH * max(1, self._mesh.instances(proxy.app, proxy.workload))
        if len(self._by_proxy.get(proxy, ())) >= most:
            return f"{proxy} has {most} streams, which is the most it may have"
        return ""

    async def _read(
        self, context: Context, connection: _Connection, read: Callable[[bytes], Request | None]
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                data: Any = await context.read()
                if data is grpc.aio.EOF:
                    return
                workload = isinstance(connection.stream.proxy, GrpcClient)
                if workload and len(data) > REQUEST_MOST:
                    raise _TooMuch(f"a request of {len(data)} bytes, at most {REQUEST_MOST}")
                request = read(data)
                if request is None:
                    continue
                if workload and len(request.subscribe) > NAMES_MOST:
                    asked = len(request.subscribe)
                    raise _TooMuch(f"{asked} names of a type, at most {NAMES_MOST}")
                if request.error is not None:
                    _LOG.warning(
                        "ads client rejected",
                        extra={
                            "proxy": str(connection.stream.proxy),
                            "type": request.kind.name,
                            "reason": request.error,
                        },
                    )
                connection.stream.receive(request, loop.time())
                connection.wake.set()
                self._advance(connection.stream.proxy)
        finally:
            connection.closed = True
            connection.wake.set()

    async def _send(
        self, context: Context, connection: _Connection, write: Callable[[Response], bytes]
    ) -> None:
        loop = asyncio.get_running_loop()
        while not connection.closed:
            connection.wake.clear()
            for response in connection.stream.poll(loop.time()):
                await self._write(context, write(response))
            at = connection.stream.wake_at(loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(at):
                    await connection.wake.wait()

    async def _write(self, context: Context, data: bytes) -> None:
        """Write; of large responses only a few at a time, as each is a copy in memory."""
        self.bytes_sent += len(data)
        self.responses_sent += 1
        if len(data) < _LARGE:
            await context.write(data)
            return
        held = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LARGE_WAIT):  # a client that does not read is no excuse
                held = await self._large.acquire()
        try:
            await context.write(data)
        finally:
            if held:
                self._large.release()

    def observe(self, observer: Callable[[Proxy], None]) -> None:
        """Call `observer` whenever a client has acknowledged, rejected, come or gone."""
        self._observers.append(observer)

    def _advance(self, proxy: Proxy) -> None:
        """Tell whoever waits for acknowledgements."""
        for observer in self._observers:
            observer(proxy)
        self._progress.set()
        self._progress = asyncio.Event()

    async def progressed(self) -> None:
        """Return once any client has acknowledged, rejected, come or gone."""
        await self._progress.wait()

    async def settled(
        self, app: str, workload: str, timeout: float, nodes: Iterable[str] = ()
    ) -> bool:
        """Wait until every client that uses a service has acknowledged its current endpoints.

        Args:
            app: of the service.
            workload: the service.
            timeout: seconds; a client that does not answer must not hold things up for ever.
            nodes: whose proxies are known to run: one that is not connected has its old endpoints.

        Returns:
            Whether that has happened.
        """
        proxies = {NodeProxy(node) for node in nodes}
        try:
            async with asyncio.timeout(timeout):
                while not proxies <= self._by_proxy.keys():
                    await self.progressed()
                waiting = list(self._connections)
                while True:
                    # one look at the last of them for each step, and not at all of them
                    while waiting and (
                        waiting[-1] not in self._connections
                        or queries.settled(waiting[-1], self._mesh, app, workload)
                    ):
                        waiting.pop()
                    if not waiting:
                        return True
                    await self.progressed()
        except TimeoutError:
            return False

    def route_programmed(self, app: str) -> bool:
        """Whether the app's gateway is served, by every connected proxy that shall."""
        return queries.route_programmed(self._connections, self._mesh, app)

    def listening(self, node: str) -> frozenset[str]:
        """The instances (by path) of a node whose listeners its proxy has acknowledged."""
        streams = self._by_proxy.get(NodeProxy(node), ())
        return queries.listening(streams, self._mesh, node)

    def repair(self, node: str, reported: Mapping[str, str]) -> list[str]:
        """Send again whatever a node's proxy has not as it should; returns what that was.

        Args:
            node: whose proxy it is.
            reported: what it has, by `digests_from_config_dump`.
        """
        streams = self._by_proxy.get(NodeProxy(node), ())
        repaired = queries.repair(streams, self._mesh, node, reported)
        for stream in streams if repaired else ():
            self._connections[stream].wake.set()
        return repaired

    def rejections(self) -> list[Rejection]:
        """What clients have rejected and was not replaced since."""
        return [entry for stream in self._connections for entry in stream.rejections()]

    def proxies(self) -> list[ProxyState]:
        """The connected clients."""
        return [
            ProxyState(
                str(stream.proxy),
                connection.dialect,
                {kind.name: stream.wants(kind) for kind in Type if stream.wants(kind)},
                {kind.name: stream.pending(kind) for kind in Type if stream.pending(kind)},
            )
            for stream, connection in self._connections.items()
        ]


def _read_delta(data: bytes) -> Request | None:
    message = DeltaDiscoveryRequest.FromString(data)
    kind = _TYPES.get(message.type_url)
    if kind is None:
        return None
    return Request(
        kind,
        subscribe=tuple(message.resource_names_subscribe),
        unsubscribe=tuple(message.resource_names_unsubscribe),
        initial=dict(message.initial_resource_versions),
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
    )


def _write_delta(response: Response) -> bytes:
    head = DeltaDiscoveryResponse(
        type_url=response.kind.value, nonce=response.nonce, removed_resources=response.removed
    )
    return b"".join(
        (head.SerializeToString(), *(encoded.entry for _, encoded in response.resources))
    )


def _read_sotw(data: bytes) -> Request | None:
    message = DiscoveryRequest.FromString(data)
    kind = _TYPES.get(message.type_url)
    if kind is None:
        return None
    return Request(
        kind,
        subscribe=tuple(message.resource_names),
        nonce=message.response_nonce,
        error=message.error_detail.message if message.HasField("error_detail") else None,
        version=message.version_info,
    )


def _write_sotw(response: Response) -> bytes:
    head = DiscoveryResponse(
        type_url=response.kind.value, nonce=response.nonce, version_info=response.version
    )
    return b"".join(
        (head.SerializeToString(), *(encoded.state for _, encoded in response.resources))
    )
