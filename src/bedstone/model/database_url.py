"""The URL of an external database: where it leads, and how it is dialled from somewhere else.

A URL is libpq's: `postgresql://USER:PASSWORD@HOST:PORT/NAME?OPTIONS`, where `host` and `port` among
the options go before those of the authority, several hosts are separated by commas, and a host that
is a path is the directory of a Unix socket.

Rule: nothing here shows a URL in a message, since it may hold a password.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from bedstone.errors import InvalidError

DEFAULT_PORT: Final = 5432
MAX_PORT: Final = 65535
_PLACES: Final = frozenset({"host", "hostaddr", "port"})


class Place(NamedTuple):
    """A host, by name or address, and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def place_of(url: str) -> Place | None:
    """Where a URL leads (of several hosts, the first); None for a Unix socket.

    Raises:
        InvalidError: its port is none.
    """
    host, port, options = _parts(url)
    host = options.get("hostaddr", options.get("host", host)).split(",")[0]
    port = options.get("port", port).split(",")[0] or str(DEFAULT_PORT)
    if not host or host.startswith(("/", "@")):
        return None
    if not (port.isascii() and port.isdigit() and 0 < int(port) <= MAX_PORT):
        raise InvalidError("the URL has a port that is not a number from 1 to 65535")
    return Place(host, int(port))


def dialled_at(url: str, address: Place) -> str:
    """The URL for whoever reaches its server at another address.

    Where the client shall verify the server's name (`sslmode=verify-full`), the name stays, and
    libpq is told the address beside it.
    """
    if place_of(url) is None:
        return url
    parts = urlsplit(url)
    account = parts.netloc.rpartition("@")[0]
    name, _, options = _parts(url)
    name = options.get("host", name).split(",")[0]
    kept = [
        (key, value)
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
        if key not in _PLACES
    ]
    netloc = str(address)
    if name and options.get("sslmode") == "verify-full":
        netloc = str(Place(quote(name, safe=":"), address.port))
        kept.append(("hostaddr", address.host))
    netloc = f"{account}@{netloc}" if account else netloc
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(kept, quote_via=quote)))


def _parts(url: str) -> tuple[str, str, dict[str, str]]:
    """The first host and the first port of the authority, and the options."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidError("the URL's host cannot be read") from error
    first = parts.netloc.rpartition("@")[2].split(",")[0]
    if first.startswith("["):
        host, _, rest = first[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = first.partition(":")
    return unquote(host), port, dict(parse_qsl(parts.query))
