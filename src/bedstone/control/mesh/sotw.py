"""The server's side of one state-of-the-world ADS stream, which gRPC clients speak.

Rules (xDS protocol, "SotW variant"; gRFC A27):
- A request names everything that the client subscribes to; what it asks for and is not in the
  answer does not exist. The client here always names resources; there is no wildcard.
- The version of a response is the digest of all its resources. A rejected version is not sent
  again: the client keeps the last good one until something changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import count

from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.names import Key, Type
from bedstone.control.mesh.state import Encoded
from bedstone.control.mesh.streams import Interest, Rejection, Request, Response, rejection
from bedstone.control.mesh.views import Proxy


@dataclass(slots=True)
class _Subscription:
    """One type on one stream."""

    begun: bool = False
    names: frozenset[str] = frozenset()
    dirty: bool = False
    nonce: str = ""
    version: str = ""  # of the last response
    answered: bool = True
    sent: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    keys: set[Key] = field(default_factory=set)


class SotwStream:
    """One client's stream; implements `Stream`."""

    def __init__(self, proxy: Proxy, mesh: Mesh, interest: Interest) -> None:
        self.proxy = proxy
        self._mesh = mesh
        self._interest = interest
        self._types = {kind: _Subscription() for kind in Type}
        self._nonces = count(1)

    def receive(self, request: Request, now: float) -> None:
        """Take in a request of the client."""
        del now  # nothing of this dialect is timed
        subscription = self._types[request.kind]
        if subscription.nonce and request.nonce != subscription.nonce:
            return  # about an older response: the one about the latest is still to come
        names = frozenset(request.subscribe)
        if not subscription.begun or names != subscription.names:
            subscription.dirty = True
            # a name that is added must be answered even if nothing else has changed
            subscription.version = ""
        subscription.begun = True
        subscription.names = names
        if not subscription.answered:
            subscription.answered = True
            subscription.error = request.error
            if request.error is None:
                subscription.held = subscription.sent

    def mark(self, kind: Type, name: str) -> None:
        """A resource may have changed."""
        del name
        self._types[kind].dirty = True

    def mark_all(self) -> None:
        """The client's view may have changed."""
        for subscription in self._types.values():
            subscription.dirty = True

    def poll(self, now: float) -> list[Response]:
        """What to send now, in order."""
        del now
        if not self._mesh.complete:
            return []
        responses = []
        for kind in (Type.CDS, Type.EDS, Type.LDS, Type.RDS):
            subscription = self._types[kind]
            if subscription.begun and subscription.dirty and subscription.answered:
                response = self._respond(kind, subscription)
                if response is not None:
                    responses.append(response)
        return responses

    def _respond(self, kind: Type, subscription: _Subscription) -> Response | None:
        subscription.dirty = False
        before, subscription.keys = subscription.keys, set()
        found = [
            (name, made)
            for name in sorted(subscription.names)
            if (made := self._wanted(kind, name)) is not None
        ]
        for key in before - subscription.keys:
            self._interest.discard(key, self)
        digest = hashlib.sha256("\n".join(f"{n} {made.version}" for n, made in found).encode())
        version = digest.hexdigest()[:16]
        if version == subscription.version:
            return None
        subscription.version = version
        subscription.nonce = f"{kind.name.lower()}-{next(self._nonces)}"
        subscription.sent = {name: made.version for name, made in found}
        subscription.answered = False
        return Response(kind, subscription.nonce, tuple(found), version=version)

    def _wanted(self, kind: Type, name: str) -> Encoded | None:
        key = self._mesh.key(self.proxy, kind, name)
        if key is None:
            return None
        self._types[kind].keys.add(key)
        self._interest.add(key, self)
        return self._mesh.get(key)

    def wake_at(self, now: float) -> float | None:
        """Never: nothing of this dialect is timed."""

    def rejections(self) -> list[Rejection]:
        """What the client has rejected and was not replaced since."""
        return [
            rejection(self.proxy, kind, name, subscription.error)
            for kind, subscription in self._types.items()
            if subscription.error is not None
            for name in subscription.sent
            if subscription.sent[name] != subscription.held.get(name)
        ]

    def has(self, kind: Type, name: str) -> str | None:
        """The version of a resource that the client has acknowledged."""
        return self._types[kind].held.get(name)

    def current(self, kind: Type, name: str) -> bool:
        """Whether the client has acknowledged the latest version of a resource of its view."""
        key = self._mesh.key(self.proxy, kind, name)
        made = self._mesh.get(key) if key is not None else None
        return made is not None and self.has(kind, name) == made.version

    def names(self, kind: Type) -> AbstractSet[str]:
        """The names of a type that the client is subscribed to."""
        return self._types[kind].names

    def wants(self, kind: Type) -> int:
        """How many resources of a type the client is subscribed to."""
        return len(self._types[kind].names)

    def pending(self, kind: Type) -> int:
        """How many resources of a type are unsent or unacknowledged."""
        subscription = self._types[kind]
        waiting = subscription.begun and (subscription.dirty or not subscription.answered)
        return len(subscription.names) if waiting else 0

    def close(self) -> None:
        """Forget everything."""
        for subscription in self._types.values():
            for key in subscription.keys:
                self._interest.discard(key, self)
            subscription.keys.clear()
