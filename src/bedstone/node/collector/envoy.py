"""Reads Envoy's statistics over its administration's socket. Blocking: for a thread.

Invariant: who answers is known. The other end of the socket is the process that listens on it, by
the kernel's word, so what a new Envoy counted is never taken for what an old one did.
"""

from __future__ import annotations

import http.client
import socket
import struct
from pathlib import Path

from bedstone.errors import UnavailableError
from bedstone.node.collector.envoy_text import EnvoyCounts, Naming
from bedstone.node.collector.processes import identity_of
from bedstone.node.http import UnixConnection
from bedstone.telemetry.frames import Series

_MERGE = "/stats?type=TextReadouts&usedonly"
"""The smallest answer that has Envoy bring the histograms of its threads together."""
_READ = "/stats?format=prometheus&usedonly"
_UCRED = struct.Struct("3i")


class EnvoyStatistics:
    """One connection, kept open, to whichever Envoy listens on the socket.

    Args:
        admin: path of the socket.
        naming: turns statistics into series.
        timeout: seconds for each answer.
    """

    def __init__(self, admin: Path, naming: Naming, timeout: float) -> None:
        self._admin = admin
        self._naming = naming
        self._timeout = timeout
        self._connection: UnixConnection | None = None
        self._counts = EnvoyCounts(naming)
        self.incarnation = ""

    def merge(self) -> None:
        """Have Envoy bring its histograms up to date, for the reading that follows.

        Raises:
            UnavailableError: it does not answer.
        """
        self._get(_MERGE)

    def read(self) -> dict[Series, float]:
        """The values of all series; `incarnation` says of which Envoy.

        Raises:
            UnavailableError: it does not answer.
        """
        return self._counts.update(self._get(_READ))

    def _get(self, path: str) -> bytes:
        if self._connection is None:
            self._connect()
        connection = self._connection
        if connection is None:
            raise AssertionError("a connection was just made")
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise UnavailableError(f"envoy does not answer: {_words(error)}") from error
        if answer.status != 200:
            raise UnavailableError(f"envoy answers with {answer.status}")
        return body

    def _connect(self) -> None:
        connection = UnixConnection(str(self._admin), self._timeout)
        try:
            connection.connect()
            credentials = connection.sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size
            )
        except OSError as error:
            connection.close()
            raise UnavailableError(f"envoy does not answer: {_words(error)}") from error
        incarnation = identity_of(_UCRED.unpack(credentials)[0])
        if incarnation is None:
            connection.close()
            raise UnavailableError("envoy has just ended")
        if incarnation != self.incarnation:
            self.incarnation = incarnation
            self._counts = EnvoyCounts(self._naming)
        self._connection = connection

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or type(error).__name__
