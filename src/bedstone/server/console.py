"""The console's place in the server: its routes in the API, and its listener on loopback.

Rules:
- It listens on loopback only: it speaks plain HTTP, which leaves the machine by a tunnel alone.
- That its port is taken does not stop the control plane: it is tried again until it is free, and
  whoever asks for a link is told.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from bedstone import __version__
from bedstone.console.app import HOST, Console
from bedstone.console.links import Links
from bedstone.console.signins import VISITOR, Audit, SignIns, Visitor
from bedstone.errors import ConflictError, InvalidError, UnavailableError
from bedstone.model.monitoring import (
    ConsoleLink,
    ConsoleLinkRequest,
    ConsoleSession,
    ConsoleSignIn,
)
from bedstone.server.api import Operator, Reader
from bedstone.server.config import host_and_port
from bedstone.store import Store

_log = logging.getLogger(__name__)
_AGAIN = 1.0

Serve = Callable[[ASGIApp, socket.socket], Awaitable[None]]
"""Serves an application on a socket that listens, until cancelled."""


class ConsoleService:
    """Signing in, and the listener, where there is one.

    Args:
        address: HOST:PORT of the listener; None: no console.
        domain: the installation's name.
        store: where sessions are kept.
        audit: where it is recorded who signs in and out.
    """

    def __init__(self, address: str | None, domain: str, store: Store, audit: Audit) -> None:
        self._address = _loopback(address) if address else None
        self._domain = domain
        self._links = Links()
        self._signins = SignIns(store, audit)
        self._audit = audit
        self._failure = "is not listening yet"

    def add_routes(self, app: FastAPI) -> None:
        """The routes of the API that are the console's."""

        @app.post("/v1/console/links")
        async def link(request: ConsoleLinkRequest, who: Operator) -> ConsoleLink:
            return await self._link(who.who, request)

        @app.get("/v1/console/session")
        async def session(request: Request, who: Reader) -> ConsoleSession:
            visitor = request.scope.get(VISITOR)
            return self._described(who.who, who.role, visitor.csrf if visitor else "")

        @app.get("/v1/console/sessions")
        async def sessions(_: Operator) -> list[ConsoleSignIn]:
            return await self._signins.listed()

        @app.delete("/v1/console/sessions/{session_id}")
        async def revoke(session_id: str, who: Operator) -> dict[str, str]:
            await self._signins.end(session_id, who.who, "revoke")
            return {"deleted": session_id}

    async def run(self, api: ASGIApp, serve: Serve) -> None:
        """Serve the console until cancelled; return at once where there is none."""
        if self._address is None:
            return
        console = Console(api, self._links, self._signins, self._about, port=self._address[1])
        while True:
            async with self._listening(*self._address) as listener:
                if listener is not None:
                    await serve(console, listener)
                    return
            await asyncio.sleep(_AGAIN)

    @asynccontextmanager
    async def _listening(self, host: str, port: int) -> AsyncIterator[socket.socket | None]:
        try:
            listener = listen(host, port)
        except OSError as error:
            failure = f"cannot listen on {host}:{port}: {error.strerror}"
            if failure != self._failure:
                _log.error("console not served", extra={"reason": failure})
            self._failure = failure
            yield None
            return
        with listener:
            _log.info("console served", extra={"address": f"{host}:{port}"})
            self._failure = ""
            yield listener

    async def _link(self, who: str, request: ConsoleLinkRequest) -> ConsoleLink:
        if self._address is None:
            raise ConflictError(
                "this server serves no console",
                hint="`bedstone down`, then `bedstone up` without `--console-port off`",
            )
        if self._failure:
            raise UnavailableError(
                f"the console {self._failure}",
                hint="stop the program that has the port, or start with another --console-port",
            )
        await self._audit.noted(who, "link", "console", request.role)
        code, grant = self._links.make(who, request.role)
        return ConsoleLink(
            url=f"http://{HOST}:{self._address[1]}/login#code={code}",
            role=grant.role,
            expires_at=grant.expires_at,
        )

    def _about(self, visitor: Visitor) -> ConsoleSession:
        return self._described(visitor.who, visitor.role, visitor.csrf)

    def _described(self, who: str, role: str, csrf: str) -> ConsoleSession:
        return ConsoleSession.model_validate(
            {"who": who, "role": role, "domain": self._domain, "version": __version__, "csrf": csrf}
        )


def listen(host: str, port: int) -> socket.socket:
    """Listen on HOST:PORT.

    Raises:
        OSError: it cannot be had.
    """
    # asyncio turns Nagle's algorithm off only where the protocol is named.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def _loopback(address: str) -> tuple[str, int]:
    host, port = host_and_port(address)
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise InvalidError(
            f"the console's address is {address}, expected one of loopback",
            hint="reach it from elsewhere through a tunnel: ssh -L PORT:127.0.0.1:PORT HOST",
        )
    return host, port
