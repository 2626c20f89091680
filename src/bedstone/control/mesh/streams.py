"""What both dialects of ADS share: what a client may have, what it rejected, who waits for what.

`Stream` is the interface of one client's stream, free of gRPC and of clocks: the server feeds it
requests and changes, asks it for responses, and sends these.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol

from bedstone.control.mesh import names
from bedstone.control.mesh.names import Flavour, Key, Type
from bedstone.control.mesh.state import Encoded
from bedstone.control.mesh.views import Proxy

RETRY_FIRST = 1.0
RETRY_MOST = 30.0


@dataclass(frozen=True, slots=True)
class Request:
    """A discovery request of either dialect.

    Attributes:
        kind: the type.
        subscribe: names to add (delta), or all names (state of the world).
        unsubscribe: names to drop (delta only).
        initial: what a returning client has, by name (delta only).
        nonce: of the response that this acknowledges or rejects; empty if it does neither.
        error: why the client rejects the response with this nonce; None if it does not.
        version: the version that the client has (state of the world only).
    """

    kind: Type
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """A discovery response of either dialect: resources by the client's names for them."""

    kind: Type
    nonce: str
    resources: tuple[tuple[str, Encoded], ...]
    removed: tuple[str, ...] = ()
    version: str = ""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A resource that a proxy refused; it keeps the last one that it accepted.

    `app` and `subject` say which part of which manifest it is about.
    """

    proxy: str
    type: str
    name: str
    message: str
    app: str
    subject: str


@dataclass(slots=True)
class Refused:
    """The memory of a rejection: the same version is offered again only after a while."""

    version: str
    message: str
    until: float
    attempts: int = 1


def refuse(before: Refused | None, version: str, message: str, now: float) -> Refused:
    """The next state after a rejection."""
    attempts = before.attempts + 1 if before is not None and before.version == version else 1
    wait = min(RETRY_FIRST * 2 ** (attempts - 1), RETRY_MOST)
    return Refused(version, message, now + wait, attempts)


def rejection(proxy: Proxy, kind: Type, name: str, message: str) -> Rejection:
    """A rejection in the manifest's terms."""
    app, subject = names.subject_of(name)
    return Rejection(str(proxy), kind.name, name, message, app, subject)


def mentioned(message: str, candidates: Iterable[str]) -> list[str]:
    """Those of the names that a proxy's error message is about."""
    return [
        name
        for name in candidates
        if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", message)
    ]


class Stream(Protocol):
    """One client's ADS stream, without its transport."""

    @property
    def proxy(self) -> Proxy:
        """Whose stream it is."""

    def receive(self, request: Request, now: float) -> None:
        """Take in a request of the client."""

    def mark(self, kind: Type, name: str) -> None:
        """A resource, by its key's name, may have changed."""

    def mark_all(self) -> None:
        """The client's view may have changed."""

    def poll(self, now: float) -> Sequence[Response]:
        """What to send now, in order; at most one response of a type is unanswered at a time."""

    def wake_at(self, now: float) -> float | None:
        """When `poll` may have something without further input; None: never."""

    def rejections(self) -> list[Rejection]:
        """What the client has rejected and was not replaced since."""

    def has(self, kind: Type, name: str) -> str | None:
        """The version of a resource (by the client's name) that the client has acknowledged."""

    def current(self, kind: Type, name: str) -> bool:
        """Whether the client has acknowledged the latest version of a resource of its view."""

    def names(self, kind: Type) -> AbstractSet[str]:
        """The names of a type that the client is subscribed to, without those by collection."""

    def wants(self, kind: Type) -> int:
        """How many resources of a type the client is subscribed to."""

    def pending(self, kind: Type) -> int:
        """How many resources of a type are unsent or unacknowledged."""

    def close(self) -> None:
        """Forget everything; nothing else may be called afterwards."""


class Interest:
    """Who must hear of a change of which resource."""

    def __init__(self) -> None:
        self._by_key: defaultdict[Key, set[Stream]] = defaultdict(set)

    def add(self, key: Key, stream: Stream) -> None:
        """The stream shall hear of changes of `key` (idempotent)."""
        self._by_key[key].add(stream)

    def discard(self, key: Key, stream: Stream) -> None:
        """The stream need not hear of it any more (idempotent)."""
        streams = self._by_key.get(key)
        if streams is not None:
            streams.discard(stream)
            if not streams:
                del self._by_key[key]

    def of(self, key: Key) -> set[Stream]:
        """Who shall hear of a change of `key`; for an endpoint also by its collection."""
        streams = self._by_key.get(key, set())
        if key.type is Type.LEDS:
            glob = Key(Flavour.ENVOY, Type.LEDS, key.name.rpartition("/")[0] + "/*")
            return streams | self._by_key.get(glob, set())
        return streams
