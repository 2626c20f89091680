"""The control-plane daemon: composes store, authority, controllers, mesh, sessions and API.

Start order: the store (exclusive), the authority, the picture; then the listeners, so that whoever
connects finds a server that knows what the store knows. Proxies are sent nothing until every node
that lives has said hello: an incomplete view is never pushed.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from bedstone.control import scheduling
from bedstone.control.loop import Controller, ControlLoop
from bedstone.control.mesh.mesh import Mesh
from bedstone.control.monitoring.promql import Engine
from bedstone.errors import DeniedError, Error, UnavailableError
from bedstone.model import messages
from bedstone.model.resources import Address
from bedstone.server.actions import Actions
from bedstone.server.ads import AdsService, by_certificate
from bedstone.server.alert_promql import PromqlEvaluator
from bedstone.server.alert_routes import alert_routes
from bedstone.server.alert_routes import lines as alert_lines
from bedstone.server.alert_sending import Senders
from bedstone.server.alerting import Alerting
from bedstone.server.api import build_api
from bedstone.server.auth import PeerProtocol
from bedstone.server.changes import Changes
from bedstone.server.config import ServerConfig, host_and_port
from bedstone.server.console import ConsoleService, listen
from bedstone.server.console_views import ConsoleViews
from bedstone.server.credentials import ServerCredentials
from bedstone.server.lines import Lines
from bedstone.server.meshing import Meshing
from bedstone.server.monitoring import Monitoring
from bedstone.server.peers import peer_node
from bedstone.server.prometheus import Prometheus
from bedstone.server.queries import Queries
from bedstone.server.sessions import Sessions
from bedstone.server.tapping import Tapping
from bedstone.server.tracing import TraceCounts, TraceExemplars, Tracing
from bedstone.server.transactions import Transactions, located, through_mesh
from bedstone.store import open_store
from bedstone.trust.authority import Authority

_log = logging.getLogger(__name__)
_GRACE = 1.0
GRPC_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Proxies and nodes ping every few seconds, with jitter; too strict a bound here would have
    # gRPC hang up on an idle stream for "too many pings".
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    # An answer to `bedstone call`, which may have 16 MiB, comes from its node in base64.
    ("grpc.max_receive_message_length", 24 << 20),
)


async def serve(config: ServerConfig) -> None:
    """Run the server until SIGTERM or SIGINT.

    Raises:
        UnavailableError: the store or a listener cannot be had.
        InvalidError: the configuration or what is on disk is wrong.
    """
    authority = Authority.open(config.state_dir / "authority")
    stopped = _on_signals()
    async with open_store(config.store_url) as store, Senders() as senders:
        loop = ControlLoop(store, [Controller("scheduling", scheduling.plan)])
        host, port = host_and_port(config.session)
        mesh = Mesh(authority.domain, control=Address(host=host, port=port))
        ads = AdsService(mesh, by_certificate(authority.domain))
        meshing = Meshing(store, loop, mesh, ads)
        lifetime = dt.timedelta(seconds=config.certificate_seconds)
        sessions = Sessions(store, loop, authority, meshing, lifetime=lifetime)
        meshing.connect(sessions)
        changes = Changes(store, loop)
        queries = Queries(
            loop,
            sessions,
            authority,
            meshing,
            session_address=config.session,
            complete=lambda: meshing.complete,
        )
        transactions = Transactions(loop, located(sessions), through_mesh(queries))
        console = ConsoleService(config.console, authority.domain, store, changes)
        monitoring = Monitoring(config.state_dir, sessions, transactions)
        tracing = Tracing(monitoring.directory, sessions, changes.noted)
        monitoring.collecting.add(TraceCounts(tracing))
        prometheus = Prometheus(Engine(monitoring.series), TraceExemplars(tracing.exemplars))
        alerting = Alerting(
            store,
            loop,
            monitoring.series,
            PromqlEvaluator(monitoring.series),
            senders,
            changes,
        )
        views = ConsoleViews(
            loop,
            monitoring.series,
            changes,
            authority.domain,
            alerts=lambda: alert_lines(alerting),
        )
        api = build_api(
            store,
            queries,
            changes,
            transactions,
            more=(
                monitoring.routes,
                tracing.add_routes,
                console.add_routes,
                Actions(changes).add_routes,
                views.add_routes,
                Lines(loop, queries).add_routes,
                prometheus.routes,
                alert_routes(alerting),
                Tapping(loop, sessions, changes.noted).add_routes,
            ),
        )
        credentials = ServerCredentials(authority, [host])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(loop.run())
                group.create_task(meshing.run(changes))
                group.create_task(transactions.run())
                group.create_task(monitoring.run())
                group.create_task(alerting.run())
                group.create_task(tracing.run())
                await loop.loaded()
                server = await _serve_grpc(config, credentials, sessions, ads, authority.domain)
                # Bound before anybody is answered: a server that will fail must not look alive.
                remote = _bind(config.api_listen) if config.api_listen else None
                listeners = [_local_api(config, api)]
                if remote:
                    listeners.append(_remote_api(config, api, credentials, remote))
                listeners.append(console.run(api, _serve_console))
                for listener in listeners:
                    group.create_task(listener)
                _log.info("started", extra={"session": config.session, "domain": mesh.domain})
                await stopped.wait()
                await server.stop(_GRACE)
                raise _Stopped
        except* _Stopped:
            _log.info("stopped")


class _Stopped(Exception):  # noqa: N818 - not an error: it ends the task group
    """Somebody asked the server to stop."""


def _on_signals() -> asyncio.Event:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


async def _serve_grpc(
    config: ServerConfig,
    credentials: ServerCredentials,
    sessions: Sessions,
    ads: AdsService,
    domain: str,
) -> grpc.aio.Server:
    server = grpc.aio.server(options=GRPC_OPTIONS)
    ads.add_to(server)
    server.add_generic_rpc_handlers((_session_handler(sessions, domain),))
    try:
        server.add_secure_port(config.session, credentials.grpc())
        await server.start()
    except RuntimeError as error:
        raise UnavailableError(
            f"the address {config.session} for nodes and proxies cannot be had",
            hint="another program has taken the port; run bedstone down, then up again",
        ) from error
    return server


def _session_handler(sessions: Sessions, domain: str) -> grpc.GenericRpcHandler:
    async def session(
        incoming: AsyncIterator[messages.FromNode],
        context: grpc.aio.ServicerContext[messages.FromNode, messages.FromServer],
    ) -> None:
        try:
            await sessions.serve(peer_node(context, domain), incoming, context.write)
        except DeniedError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, error.message)
        except Error as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, error.message)

    service, _, method = messages.SESSION_METHOD.strip("/").partition("/")
    return grpc.method_handlers_generic_handler(
        service,
        {
            method: grpc.stream_stream_rpc_method_handler(
                session,
                request_deserializer=messages.decode_from_node,
                response_serializer=messages.encode,
            )
        },
    )


class _Uvicorn(uvicorn.Server):
    """A uvicorn that leaves signals to the daemon."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers."""
        yield


def settings(api: ASGIApp, key: Path | None = None, chain: Path | None = None) -> uvicorn.Config:
    """How the API is served, with TLS if there is a key.

    By default uvicorn would take the peer's address from `X-Forwarded-For` of a caller on loopback,
    who could then say that it is a local operator.
    """
    return uvicorn.Config(
        api,
        http=PeerProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ssl_keyfile=key,
        ssl_certfile=chain,
    )


async def _local_api(config: ServerConfig, api: FastAPI) -> None:
    """Serve the API on a Unix socket of mode 0600."""
    with _unix_socket(config.api_socket) as listener:
        await _Uvicorn(settings(api)).serve(sockets=[listener])


def _bind(address: str) -> socket.socket:
    """Listen on HOST:PORT."""
    host, port = host_and_port(address)
    try:
        return listen(host, port)
    except OSError as error:
        raise UnavailableError(
            f"the API cannot listen on {host}:{port}: {error.strerror}",
            hint="choose another address with --api-listen",
        ) from error


async def _serve_console(app: ASGIApp, listener: socket.socket) -> None:
    """Serve the console, which checks itself who is there."""
    await _Uvicorn(settings(app)).serve(sockets=[listener])


async def _remote_api(
    config: ServerConfig, api: FastAPI, credentials: ServerCredentials, listener: socket.socket
) -> None:
    """Serve the API on TCP with TLS; callers need tokens."""
    key, chain = credentials.save(config.state_dir / "authority")
    with listener:
        await _Uvicorn(settings(api, key, chain)).serve(sockets=[listener])


@contextlib.contextmanager
def _unix_socket(path: Path) -> Iterator[socket.socket]:
    """Listen on a path; made under another name, so that it is never there with another mode."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(os.fspath(temporary))
        finally:
            os.umask(before)
        listener.listen(128)
        temporary.replace(path)
        yield listener
    except OSError as error:
        raise UnavailableError(
            f"the API's socket {path} cannot be made: {error.strerror}",
            hint="check the directory's permissions and the length of its path",
        ) from error
    finally:
        listener.close()
