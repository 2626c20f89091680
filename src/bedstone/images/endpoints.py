"""Where a registry's content is fetched from. Pure, but for the environment.

Rule: a registry is spoken to by TLS; only one on this machine's loopback may be plain HTTP.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bedstone.errors import InvalidError
from bedstone.images.reference import DEFAULT_REGISTRY, Reference

_DOCKER_HUB = "https://registry-1.docker.io"
_VARIABLE = "BEDSTONE_REGISTRY_MIRRORS"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server that has a registry's content.

    Args:
        url: without `/v2` and without a slash at the end.
        registry: whose credentials it gets.
        mirror: whether it only repeats what another has: it gets nothing pushed.
    """

    url: str
    registry: str
    mirror: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is spoken to without TLS."""
        return self.url.startswith("http://")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Finds the servers for a reference: mirrors first, as they are given, then the registry.

    Args:
        mirrors: URLs of mirrors, by registry.
        insecure: registries that are spoken to without TLS, by their users' explicit wish.
    """

    mirrors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    insecure: frozenset[str] = frozenset()

    def of(self, reference: Reference) -> list[Endpoint]:
        """Where to look, in order."""
        found = [_mirror(url) for url in self.mirrors.get(reference.registry, ())]
        return [*found, self.origin(reference)]

    def origin(self, reference: Reference) -> Endpoint:
        """The registry itself."""
        registry = reference.registry
        if registry == DEFAULT_REGISTRY:
            return Endpoint(_DOCKER_HUB, registry)
        plain = registry in self.insecure or _loopback(registry)
        return Endpoint(f"{'http' if plain else 'https'}://{registry}", registry)


def from_environment(mirrors: Sequence[str] = ()) -> Endpoints:
    """Mirrors as given and by `BEDSTONE_REGISTRY_MIRRORS`: `REGISTRY=URL`, separated by blanks.

    Raises:
        InvalidError: one of them cannot be understood.
    """
    found: dict[str, list[str]] = {}
    for text in (*mirrors, *os.environ.get(_VARIABLE, "").split()):
        registry, equals, url = text.partition("=")
        if not equals:
            raise InvalidError(
                f"got mirror {text!r}, expected REGISTRY=URL",
                hint="for example docker.io=https://mirror.example.com",
            )
        _mirror(url)
        found.setdefault(registry, []).append(url)
    return Endpoints(found)


def _mirror(url: str) -> Endpoint:
    split = urlsplit(url)
    if split.scheme not in ("http", "https") or not split.netloc or split.username:
        raise InvalidError(f"got mirror {url!r}, expected a URL such as https://mirror.example.com")
    return Endpoint(url.rstrip("/"), split.netloc, mirror=True)


def _loopback(registry: str) -> bool:
    host = registry.rsplit(":", 1)[0] if not registry.endswith("]") else registry
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
