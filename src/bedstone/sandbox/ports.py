"""Ports of this machine for instances, from a range that the kernel does not give out itself.

A port is handed out once in this process, and only after binding it has worked. Another program may
still take it before its owner does; who then fails to bind asks for new ones.
"""

from __future__ import annotations

import random
import socket

from bedstone.errors import UnavailableError

DEFAULT_RANGE = (20000, 31999)
"""Below the usual ephemeral range, which starts at 32768."""


class Ports:
    """The ports of one range: `first` and `last` are included."""

    def __init__(
        self,
        first: int = DEFAULT_RANGE[0],
        last: int = DEFAULT_RANGE[1],
        *,
        start: int | None = None,
    ) -> None:
        self._first, self._last = first, last
        self._taken: set[int] = set()
        # Two runs on one machine start apart, so that they seldom meet.
        self._next = random.randint(first, last) if start is None else start  # noqa: S311

    def hold(self, port: int) -> None:
        """Never hand this one out: it is in use already."""
        self._taken.add(port)

    def free(self, port: int) -> None:
        """It is not in use any more."""
        self._taken.discard(port)

    def take(self, host: str = "127.0.0.1") -> int:
        """A port that nothing listens on at `host`.

        Raises:
            UnavailableError: none is left.
        """
        for _ in range(self._last - self._first + 1):
            port = self._next
            self._next = port + 1 if port < self._last else self._first
            if port not in self._taken and bindable(host, port):
                self._taken.add(port)
                return port
        raise UnavailableError(
            f"no free port from {self._first} to {self._last} on {host}",
            hint="give the node another `port_range`, or end programs that listen in this one",
        )


def bindable(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
