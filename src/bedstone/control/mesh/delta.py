"""The server's side of one delta ADS stream (xDS protocol, "incremental variant").

Rules:
- One response of a type is unanswered at a time. Changes meanwhile only mark names, so a slow
  client gets the latest state once, and never a queue.
- Make before break: clusters and endpoints go out before the listeners and routes that need them;
  clusters are removed after these. A wait for that is bounded (`PATIENCE`).
- A client sees names of its own view only. A name outside of it is answered as "does not exist".
- After a rejection the culprits are left out, and offered again when they change or after a while;
  the rest is sent again. Where the message names no culprit, halving finds it.
- A returning client says what it has, and is sent the difference.
- Of a collection's members nothing is remembered but which are yet to be sent: a thousand clients
  of ten thousand endpoints must not cost ten million records.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import count

from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.names import Flavour, Key, Type
from bedstone.control.mesh.state import Encoded
from bedstone.control.mesh.streams import (
    Interest,
    Refused,
    Rejection,
    Request,
    Response,
    mentioned,
    refuse,
    rejection,
)
from bedstone.control.mesh.views import Proxy

PATIENCE = 1.0
_ROUTING = (Type.LDS, Type.RDS)


@dataclass(slots=True)
class _Sent:
    """A response that waits for its answer."""

    nonce: str
    resources: tuple[tuple[str, Encoded], ...]
    removed: tuple[str, ...]


@dataclass(slots=True)
class _Subscription:
    """One type on one stream."""

    begun: bool = False
    wildcard: bool = False
    owed: bool = False  # a client that begins waits for an answer, even an empty one
    names: set[str] = field(default_factory=set)
    globs: set[str] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)  # collections to be sent from scratch
    held: dict[str, str] = field(default_factory=dict)
    dirty: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)  # subscribed, and to be told it does not exist
    again: set[str] = field(default_factory=set)  # to be sent though the client has it
    sent: _Sent | None = None
    refused: dict[str, Refused] = field(default_factory=dict)
    halves: list[set[str]] = field(default_factory=list)  # where a culprit is being looked for

    @property
    def busy(self) -> bool:
        return self.begun and bool(self.sent or self.dirty or self.halves)

    def collects(self, name: str) -> bool:
        """Whether a name belongs to a collection that the client subscribes to."""
        return bool(self.globs) and name.rpartition("/")[0] + "/*" in self.globs


class DeltaStream:
    """One client's stream; implements `Stream`."""

    def __init__(self, proxy: Proxy, mesh: Mesh, interest: Interest) -> None:
        self.proxy = proxy
        self._mesh = mesh
        self._interest = interest
        self._keys: set[Key] = set()
        self._types = {kind: _Subscription() for kind in Type}
        self._nonces = count(1)
        self._awaited: set[str] = set()  # endpoints of new clusters, to be subscribed to
        self._blocked_since: float | None = None
        self._retained_since: float | None = None

    def receive(self, request: Request, now: float) -> None:
        """Take in a request of the client."""
        subscription = self._types[request.kind]
        if not subscription.begun:
            subscription.begun = True
            if not request.subscribe:
                self._subscribe(request.kind, ("*",))
        self._subscribe(request.kind, request.subscribe)
        if request.initial:
            self._returned(request.kind, request.initial)
        self._unsubscribe(request.kind, request.unsubscribe)
        sent = subscription.sent
        if sent is not None and request.nonce == sent.nonce:
            subscription.sent = None
            if request.error is None:
                self._acknowledged(request.kind, sent)
            else:
                self._rejected(request.kind, sent, request.error, now)

    def _returned(self, kind: Type, initial: Mapping[str, str]) -> None:
        """Take in what a returning client has."""
        subscription = self._types[kind]
        for name, version in initial.items():
            subscription.again.discard(name)
            if not subscription.collects(name):
                subscription.held[name] = version
            elif (wanted := self._wanted(kind, name)) and wanted.version == version:
                continue
            subscription.dirty.add(name)
        for glob in subscription.whole:
            missing = self._mesh.collection(self.proxy, glob).keys() - initial.keys()
            subscription.dirty |= missing
        subscription.whole.clear()

    def _subscribe(self, kind: Type, subscribe: Iterable[str]) -> None:
        subscription = self._types[kind]
        for name in subscribe:
            if name == "*":
                subscription.wildcard = subscription.owed = True
                subscription.dirty |= self._mesh.names(self.proxy, kind)
            elif name.endswith("/*"):
                subscription.globs.add(name)
                self._hear(Key(Flavour.ENVOY, kind, name))
                subscription.whole.add(name)
            else:
                subscription.names.add(name)
                subscription.absent.add(name)
                subscription.dirty.add(name)
                # subscribing anew to what the client has means that it lost it; an answer under
                # way may still be acknowledged, and came before this
                subscription.held.pop(name, None)
                subscription.again.add(name)
        if kind is Type.EDS:
            self._awaited -= subscription.names

    def _unsubscribe(self, kind: Type, unsubscribe: Iterable[str]) -> None:
        subscription = self._types[kind]
        for name in unsubscribe:
            if name == "*":
                subscription.wildcard = False
                subscription.dirty |= subscription.held.keys()
                continue
            subscription.names.discard(name)
            if name in subscription.globs:
                subscription.globs.discard(name)
                subscription.whole.discard(name)
                prefix = name.removesuffix("*")
                gone = [member for member in subscription.dirty if member.startswith(prefix)]
            else:
                gone = [name]
            if not subscription.wildcard:
                for member in (*gone, name):
                    # the client forgets it by itself
                    subscription.held.pop(member, None)
                    subscription.refused.pop(member, None)
                    subscription.dirty.discard(member)
                    subscription.absent.discard(member)
                    subscription.again.discard(member)
                    self._ignore(Key(Flavour.ENVOY, kind, member))

    def _acknowledged(self, kind: Type, sent: _Sent) -> None:
        subscription = self._types[kind]
        for name in sent.removed:
            subscription.held.pop(name, None)
        for name, encoded in sent.resources:
            if subscription.refused:
                subscription.refused.pop(name, None)
            if subscription.wildcard or name in subscription.names:
                subscription.held[name] = encoded.version
                if kind is Type.CDS:
                    self._await_endpoints(name)

    def _await_endpoints(self, cluster: str) -> None:
        match cluster.split("/"):
            case ["to", app, cell, _, callee]:
                service = f"{app}/{cell}/{callee}"
                if service not in self._types[Type.EDS].names:
                    self._awaited.add(service)
            case _:
                pass

    def _warm(self, clusters: Iterable[str]) -> None:
        """Send the endpoints of new and changed clusters again where the client has them.

        Envoy asks once for endpoints that several clusters share, and each cluster warms until an
        answer comes; without one, for the whole of its initial_fetch_timeout.
        """
        endpoints = self._types[Type.EDS]
        for cluster in clusters:
            match cluster.split("/"):
                case ["to", app, cell, _, callee] if (
                    service := f"{app}/{cell}/{callee}"
                ) in endpoints.names:
                    endpoints.dirty.add(service)
                    endpoints.again.add(service)
                case _:
                    pass

    def _rejected(self, kind: Type, sent: _Sent, message: str, now: float) -> None:
        subscription = self._types[kind]
        added = {name: encoded.version for name, encoded in sent.resources}
        culprits = mentioned(message, added) or (list(added) if len(added) == 1 else [])
        for name in culprits:
            before = subscription.refused.get(name)
            subscription.refused[name] = refuse(before, added[name], message, now)
            if subscription.held.get(name) == added[name]:
                # It has this very version, and refused to take it again: offer it once more.
                subscription.again.add(name)
        rest = sorted(added.keys() - set(culprits))
        if culprits:
            subscription.dirty.update(rest)
        else:
            middle = len(rest) // 2
            subscription.halves += [set(half) for half in (rest[:middle], rest[middle:]) if half]
        for name in sent.removed:
            if added:
                subscription.dirty.add(name)
            else:
                # nobody can refuse to have something no more
                subscription.held.pop(name, None)

    def _hear(self, key: Key) -> None:
        self._keys.add(key)
        self._interest.add(key, self)

    def _ignore(self, key: Key) -> None:
        self._keys.discard(key)
        self._interest.discard(key, self)

    def mark(self, kind: Type, name: str) -> None:
        """A resource may have changed, or entered or left the client's view."""
        subscription = self._types[kind]
        if subscription.begun:
            subscription.dirty.add(name)

    def mark_all(self) -> None:
        """The client's view may have changed."""
        for kind, subscription in self._types.items():
            if subscription.begun:
                subscription.dirty |= self._mesh.names(self.proxy, kind) | subscription.names
                subscription.dirty |= subscription.held.keys()

    def _subscribed(self, kind: Type, name: str) -> bool:
        subscription = self._types[kind]
        return subscription.wildcard or name in subscription.names or subscription.collects(name)

    def _wanted(self, kind: Type, name: str) -> Encoded | None:
        """What the client shall have under a name; remembers to hear of its changes."""
        if not self._subscribed(kind, name):
            return None
        key = self._mesh.key(self.proxy, kind, name)
        if key is None:
            return None
        if not self._types[kind].collects(name):  # heard of by the collection
            self._hear(key)
        return self._mesh.get(key)

    def poll(self, now: float) -> list[Response]:
        """What to send now, in order."""
        if not self._mesh.complete:
            return []
        responses = []
        for kind in (Type.CDS, Type.EDS, Type.LEDS, Type.LDS, Type.RDS):
            subscription = self._types[kind]
            if not subscription.begun or subscription.sent is not None:
                continue
            subscription.dirty.update(
                name for name, refused in subscription.refused.items() if refused.until <= now
            )
            if kind in _ROUTING and self._routing_waits(now):
                continue
            response = self._respond(kind, subscription, now)
            if response is not None:
                responses.append(response)
        return responses

    def _routing_waits(self, now: float) -> bool:
        """Whether listeners and routes must wait for the clusters that they need."""
        clusters, endpoints = self._types[Type.CDS], self._types[Type.EDS]
        unsent = clusters.sent is not None or endpoints.sent is not None
        if not (unsent or self._awaited):
            self._blocked_since = None
            return False
        if self._blocked_since is None:
            self._blocked_since = now
        if now - self._blocked_since < PATIENCE:
            return True
        self._awaited.clear()
        return False

    def _retains_clusters(self, now: float) -> bool:
        """Whether removed clusters must stay for listeners and routes that still use them."""
        if not any(self._types[kind].busy for kind in _ROUTING):
            self._retained_since = None
            return False
        if self._retained_since is None:
            self._retained_since = now
        return now - self._retained_since < PATIENCE

    def _respond(self, kind: Type, subscription: _Subscription, now: float) -> Response | None:
        if subscription.whole:
            resources, removed = self._wholes(subscription)
        else:
            resources, removed = self._difference(kind, subscription, now)
        if not (resources or removed or subscription.owed):
            return None
        subscription.owed = False
        if kind is Type.CDS:
            self._warm(name for name, _ in resources)
        nonce = f"{kind.name.lower()}-{next(self._nonces)}"
        subscription.sent = _Sent(nonce, resources, removed)
        return Response(kind, nonce, resources, removed)

    def _wholes(
        self, subscription: _Subscription
    ) -> tuple[tuple[tuple[str, Encoded], ...], tuple[str, ...]]:
        """One collection from scratch; an empty one is answered as absent."""
        glob = subscription.whole.pop()
        members = self._mesh.collection(self.proxy, glob)
        subscription.dirty -= members.keys()
        return tuple(members.items()), () if members else (glob,)

    def _difference(
        self, kind: Type, subscription: _Subscription, now: float
    ) -> tuple[tuple[tuple[str, Encoded], ...], tuple[str, ...]]:
        candidates = subscription.halves.pop() if subscription.halves else subscription.dirty
        resources: list[tuple[str, Encoded]] = []
        removed: list[str] = []
        later: set[str] = set()
        refusing: set[str] = set()
        for name in sorted(candidates):
            wanted = self._wanted(kind, name)
            if wanted is None:
                if (
                    name in subscription.held
                    or name in subscription.absent
                    or subscription.collects(name)
                ):
                    removed.append(name)
                subscription.refused.pop(name, None)
                continue
            refused = subscription.refused.get(name)
            if refused is not None and refused.version == wanted.version and now < refused.until:
                refusing.add(name)
                continue
            if subscription.held.get(name) != wanted.version or name in subscription.again:
                resources.append((name, wanted))
        emptied = [
            name
            for name, made in resources
            if subscription.held.get(name) != made.version and self._emptied(kind, name)
        ]
        if kind in (Type.CDS, Type.EDS) and (removed or emptied) and self._retains_clusters(now):
            later = subscription.held.keys() & (*removed, *emptied)
            removed = [name for name in removed if name not in later]
            resources = [(name, made) for name, made in resources if name not in later]
        if candidates is subscription.dirty:
            subscription.dirty = later
        else:
            subscription.dirty |= later
        subscription.absent -= {name for name, _ in resources}
        subscription.absent -= set(removed)
        subscription.again -= candidates - refusing - later
        return tuple(resources), tuple(removed)

    def _emptied(self, kind: Type, name: str) -> bool:
        """Whether these endpoints are none any more: routes must have left them first."""
        if kind is not Type.EDS:
            return False
        app, cell, workload = name.split("/")
        return not self._mesh.endpoints(app, workload, cell)

    def wake_at(self, now: float) -> float | None:
        """When `poll` may have something without further input."""
        times = [
            refused.until
            for subscription in self._types.values()
            for refused in subscription.refused.values()
        ]
        times += [
            since + PATIENCE
            for since in (self._blocked_since, self._retained_since)
            if since is not None
        ]
        return min((time for time in times if time > now), default=None)

    def repair(self, kind: Type, name: str) -> bool:
        """Send a resource again, or remove it again; False if an answer is awaited anyway."""
        subscription = self._types[kind]
        if not subscription.begun or subscription.sent is not None or name in subscription.refused:
            return False
        subscription.held[name] = ""
        subscription.dirty.add(name)
        return True

    def rejections(self) -> list[Rejection]:
        """What the client has rejected and was not replaced since."""
        return list(self._rejections())

    def _rejections(self) -> Iterator[Rejection]:
        for kind, subscription in self._types.items():
            for name, refused in subscription.refused.items():
                yield rejection(self.proxy, kind, name, refused.message)

    def has(self, kind: Type, name: str) -> str | None:
        """The version of a resource that the client has acknowledged."""
        return self._types[kind].held.get(name)

    def current(self, kind: Type, name: str) -> bool:
        """Whether the client has acknowledged the latest version of a resource of its view."""
        key = self._mesh.key(self.proxy, kind, name)
        made = self._mesh.get(key) if key is not None else None
        return made is not None and self.has(kind, name) == made.version

    def names(self, kind: Type) -> AbstractSet[str]:
        """The names of a type that the client is subscribed to, without those by collection."""
        subscription = self._types[kind]
        if subscription.wildcard:
            return self._mesh.names(self.proxy, kind)
        return subscription.names

    def wants(self, kind: Type) -> int:
        """How many resources of a type the client is subscribed to."""
        return len(self.names(kind)) + sum(
            len(self._mesh.collection(self.proxy, glob)) for glob in self._types[kind].globs
        )

    def pending(self, kind: Type) -> int:
        """How many resources of a type are unsent or unacknowledged."""
        subscription = self._types[kind]
        sent = subscription.sent
        unanswered = len(sent.resources) + len(sent.removed) if sent is not None else 0
        waiting = len(subscription.dirty) + len(subscription.whole)
        return unanswered + waiting + sum(map(len, subscription.halves))

    def close(self) -> None:
        """Forget everything."""
        for key in tuple(self._keys):
            self._ignore(key)
