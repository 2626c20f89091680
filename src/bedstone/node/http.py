"""One HTTP request over a Unix socket or TLS, with the standard library only.

The node makes few requests: it joins, reads its proxy's administration, and makes calls for people.
They run in a thread, so that the loop goes on.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bedstone.errors import InvalidError, UnavailableError, UnknownOutcomeError

LARGEST_ANSWER = 16 << 20
"""Bytes of a body; whoever answers need not be one of ours."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


async def request(
    target: str,
    method: str,
    path: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes = b"",
    ca_file: Path | None = None,
    timeout: float = 30.0,
    largest: int | None = LARGEST_ANSWER,
) -> Answer:
    """Make one request.

    Args:
        target: path of a Unix socket, or an `http(s)://HOST:PORT` URL.
        method: the method.
        path: path and query.
        headers: names and values; a `Host` among them replaces the default.
        body: the body.
        ca_file: authorities for a URL; the system's by default.
        timeout: seconds for each step.
        largest: bytes of the answer's body; None if who answers is trusted with our memory.

    Raises:
        UnavailableError: nothing was sent.
        UnknownOutcomeError: it was sent, and no answer came, or one that is too large.
    """
    return await asyncio.to_thread(
        _request, target, method, path, tuple(headers), body, ca_file, timeout, largest
    )


def _connection(target: str, ca_file: Path | None, timeout: float) -> http.client.HTTPConnection:
    if not target.startswith(("http://", "https://")):
        return UnixConnection(target.removeprefix("unix:"), timeout)
    parts = urlsplit(target)
    if parts.hostname is None:
        raise InvalidError(f"got {target!r}, expected a URL with a host")
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout)
    context = ssl.create_default_context(cafile=ca_file)
    return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=timeout, context=context)


def _request(
    target: str,
    method: str,
    path: str,
    headers: tuple[tuple[str, str], ...],
    body: bytes,
    ca_file: Path | None,
    timeout: float,
    largest: int | None,
) -> Answer:
    connection = _connection(target, ca_file, timeout)
    try:
        try:
            connection.connect()
        except OSError as error:
            raise UnavailableError(f"nothing answers at {target}: {error}") from error
        try:
            given = {name.lower() for name, _ in headers}
            connection.putrequest(
                method,
                path,
                skip_host="host" in given,
                skip_accept_encoding="accept-encoding" in given,
            )
            for name, value in headers:
                connection.putheader(name, value)
            if body or method in ("POST", "PUT", "PATCH"):
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read(None if largest is None else largest + 1)
        except (OSError, http.client.HTTPException) as error:
            raise UnknownOutcomeError(
                f"no answer from {target}: {str(error) or type(error).__name__}"
            ) from error
        if largest is not None and len(content) > largest:
            raise UnknownOutcomeError(
                f"the answer is too large: got {answer.status} with more than {largest} bytes",
                hint="ask for less, or use a client of your own",
            )
        return Answer(answer.status, tuple(answer.getheaders()), content)
    finally:
        connection.close()
