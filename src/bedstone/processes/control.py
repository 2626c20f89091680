"""The supervisor's control socket: line-delimited JSON over a Unix socket, without threads.

A request is `{"id": N, "op": NAME, ...}`; its answer `{"id": N, "ok": VALUE}` or
`{"id": N, "error": {"code", "message", "hint"}}`, possibly much later; a watcher gets
`{"event": {...}}` lines besides.

Only the supervisor's own user and root are heard (SO_PEERCRED). A client that does not read what it
asked for is dropped rather than kept in memory.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bedstone.errors import Error

_LINE_LIMIT = 4 << 20
_BACKLOG_LIMIT = 8 << 20

Handler = Callable[["Connection", int, dict[str, Any]], None]


class Connection:
    """One client. Answers are queued; `watching` says whether it wants events."""

    def __init__(self, server: ControlServer, link: socket.socket) -> None:
        self._server = server
        self.link = link
        self.watching = False
        self._input = bytearray()
        self._output = bytearray()
        self.closed = False

    def answer(self, number: int, value: Any) -> None:
        """Answer a request."""
        self._send({"id": number, "ok": value})

    def fail(self, number: int, error: Error) -> None:
        """Answer a request with an error."""
        detail = {"code": error.code, "message": error.message, "hint": error.hint}
        self._send({"id": number, "error": detail})

    def event(self, kind: str, process: dict[str, Any] | None = None) -> None:
        """Tell a watcher."""
        self._send({"event": {"kind": kind, "process": process}})

    def _send(self, value: dict[str, Any]) -> None:
        if self.closed:
            return
        self._output += json.dumps(value, separators=(",", ":")).encode() + b"\n"
        if len(self._output) > _BACKLOG_LIMIT:
            self.close()
        else:
            self.flush()

    def flush(self) -> None:
        """Write what the client takes now."""
        try:
            while self._output:
                sent = self.link.send(self._output)
                del self._output[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._server.interest(self, write=bool(self._output))

    def receive(self, handle: Handler) -> None:
        """Read what is there and handle its complete lines."""
        try:
            chunk = self.link.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return
        self._input += chunk
        while not self.closed and (end := self._input.find(b"\n")) >= 0:
            line = bytes(self._input[:end])
            del self._input[: end + 1]
            try:
                request = json.loads(line)
                number = int(request["id"])
            except (ValueError, TypeError, KeyError):
                self.close()
                return
            handle(self, number, request)
        if len(self._input) > _LINE_LIMIT:
            self.close()

    def close(self) -> None:
        """Drop the client."""
        if not self.closed:
            self.closed = True
            self._server.drop(self)


class ControlServer:
    """Listens, and keeps the connections; the supervisor's loop drives it."""

    def __init__(self, path: Path, selector: selectors.BaseSelector, handle: Handler) -> None:
        self._selector = selector
        self._handle = handle
        self.connections: set[Connection] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.settimeout(0)
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(mask)
        self._listener.listen(64)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def broadcast(self, kind: str, process: dict[str, Any]) -> None:
        """Tell every watcher."""
        for connection in tuple(self.connections):
            if connection.watching:
                connection.event(kind, process)

    def interest(self, connection: Connection, *, write: bool) -> None:
        """Say whether a connection waits to write."""
        if not connection.closed:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if write else 0)
            key = self._selector.get_key(connection.link)
            if key.events != events:
                self._selector.modify(connection.link, events, key.data)

    def drop(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self._selector.unregister(connection.link)
        connection.link.close()
        self.connections.discard(connection)

    def close(self) -> None:
        """Stop listening and drop every client, after writing what they take at once."""
        self._selector.unregister(self._listener)
        self._listener.close()
        for connection in tuple(self.connections):
            connection.flush()
            connection.close()

    def _accept(self, _events: int) -> None:
        try:
            link, _ = self._listener.accept()
        except OSError:
            return
        peer = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid = struct.unpack("3i", peer)[1]
        if uid not in (0, os.getuid()):
            link.close()
            return
        link.settimeout(0)
        connection = Connection(self, link)
        self.connections.add(connection)

        def ready(events: int) -> None:
            if events & selectors.EVENT_WRITE and not connection.closed:
                connection.flush()
            if events & selectors.EVENT_READ and not connection.closed:
                connection.receive(self._handle)

        self._selector.register(link, selectors.EVENT_READ, ready)
