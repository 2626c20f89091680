"""The URL of an external database: where it leads, and how it is dialled from somewhere else.

A URL is libpq's: `postgresql://USER:PASSWORD@HOST:PORT/NAME?OPTIONS`, where `host` and `port` among
the options go before those of the authority, several hosts are separated by commas, and a host that
is a path is the directory of a Unix socket.

Rule: nothing here shows a URL in a message, since it may hold a password.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from bedstone.errors import InvalidError
from bedstone.model.interpolation import interpolate
from bedstone.model.spec import AppSpec

DEFAULT_PORT: Final = 5432
MAX_PORT: Final = 65535
SCHEMES: Final = ("postgres://", "postgresql://")
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


def resolve_urls(spec: AppSpec, environ: Mapping[str, str]) -> AppSpec:
    """A manifest with the references in the URLs of its databases replaced.

    Who applies a manifest does this, since its own environment is meant: what the server is told is
    what shall be used, so that a variable with another value is a change as any other.

    Raises:
        InvalidError: a variable is not set, or what comes out is no URL of a database.
    """
    databases = {}
    for name, database in spec.databases.items():
        if database.url is None:
            continue
        try:
            url = interpolate(database.url, lambda reference: environ.get(reference.name))
            check_url(url)
        except InvalidError as error:
            raise InvalidError(f"databases.{name}.url: {error.message}", hint=error.hint) from error
        databases[name] = database.model_copy(update={"url": url})
    return spec.model_copy(update={"databases": {**spec.databases, **databases}})


def check_url(url: str) -> None:
    """Refuse what cannot be used, without showing it.

    Raises:
        InvalidError: it is no URL of a PostgreSQL, or a reference in it was not replaced.
    """
    if "${env." in url:
        raise InvalidError("a reference to the environment in it was not replaced")
    if not url.startswith(SCHEMES):
        raise InvalidError(
            "the value is not a URL of PostgreSQL, expected postgres://USER:PASSWORD@HOST/NAME"
        )
    place_of(url)


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
