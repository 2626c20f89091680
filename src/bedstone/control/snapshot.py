"""The control plane's picture of the store: every resource, decoded, with the indices planners use.

Rules:
- A `Snapshot` is changed only by `apply`, in revision order, by the one loop that owns it;
  planners read it and never write.
- `apply` costs time proportional to the change.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from pydantic import ValidationError

from bedstone.model.resources import (
    App,
    Condition,
    Database,
    DatabaseStatus,
    Instance,
    InstanceStatus,
    Node,
    Preparation,
    Presence,
    Resource,
    Revision,
)
from bedstone.store import Event

R = TypeVar("R", bound=Resource)
_log = logging.getLogger(__name__)

_PREFIXES: tuple[tuple[str, type[Resource]], ...] = (
    ("status/instances/", InstanceStatus),
    ("status/databases/", DatabaseStatus),
    ("apps/", App),
    ("revisions/", Revision),
    ("instances/", Instance),
    ("databases/", Database),
    ("preparations/", Preparation),
    ("nodes/", Node),
    ("presence/", Presence),
    ("conditions/", Condition),
)
"""What the snapshot holds; other keys (audit, tokens) are read from the store when asked for."""


@dataclass(frozen=True, slots=True)
class Held:
    """A resource and the revision of its last write, for compare-and-put."""

    resource: Resource
    revision: int


@dataclass
class Changes:
    """What one `apply` changed."""

    upserts: list[Resource] = field(default_factory=list)
    deletes: list[Resource] = field(default_factory=list)
    """As they were before."""

    @property
    def apps(self) -> set[str]:
        """The apps that a change belongs to; every app where a node came or went."""
        found = {app_of(resource) for resource in (*self.upserts, *self.deletes)}
        found.discard("")
        return found

    @property
    def nodes(self) -> set[str]:
        """The nodes that came, went or changed."""
        found: set[str] = set()
        for resource in (*self.upserts, *self.deletes):
            match resource:
                case Node(name=name) | Presence(node=name):
                    found.add(name)
                case _:
                    pass
        return found


def app_of(resource: Resource) -> str:
    """The app that a resource belongs to, or an empty string."""
    return resource.name if isinstance(resource, App) else getattr(resource, "app", "")


class Snapshot:
    """All resources as of `revision`."""

    def __init__(self) -> None:
        self.revision = 0
        self._held: dict[str, Held] = {}
        self._by_app: defaultdict[tuple[type[Resource], str], dict[str, Resource]] = defaultdict(
            dict
        )
        self._on_node: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def apply(self, events: Iterable[Event]) -> Changes:
        """Take in one batch of events."""
        changes = Changes()
        for event in events:
            self.revision = max(self.revision, event.revision)
            before = self._held.pop(event.key, None)
            if before:
                self._index(before.resource).pop(event.key, None)
                self._count(before.resource, -1)
            after = _decode(event) if event.entry else None
            if after is None:
                if before:
                    changes.deletes.append(before.resource)
                continue
            self._held[event.key] = Held(after, event.revision)
            self._index(after)[event.key] = after
            self._count(after, +1)
            changes.upserts.append(after)
        return changes

    def get(self, kind: type[R], key: str) -> R | None:
        """The resource at a key, if it is there."""
        held = self._held.get(key)
        return held.resource if held and isinstance(held.resource, kind) else None

    def all_keys(self) -> set[str]:
        """Every key that is held."""
        return set(self._held)

    def __contains__(self, key: str) -> bool:
        return key in self._held

    def revision_of(self, key: str) -> int:
        """The revision of a key's last write; 0 (absent) where there is none."""
        held = self._held.get(key)
        return held.revision if held else 0

    def of(self, kind: type[R], app: str = "") -> Sequence[R]:
        """The resources of a kind within an app (or those that belong to none), sorted by key."""
        index = self._by_app.get((kind, app), {})
        return [cast("R", index[key]) for key in sorted(index)]

    def apps(self) -> Mapping[str, App]:
        """Every app, by name."""
        found = (key[1] for key in self._by_app if key[0] is App)
        held = {name: self.get(App, f"apps/{name}") for name in found}
        return {name: app for name, app in held.items() if app}

    def apps_on(self, node: str) -> set[str]:
        """The apps that have an instance or a database placed on a node."""
        return set(+self._on_node.get(node, Counter()))

    def nodes(self) -> Mapping[str, Node]:
        """Every node, present or not, by name."""
        return {node.name: node for node in self.of(Node)}

    def present(self, node: str) -> bool:
        """Whether the node's lease lives."""
        return f"presence/{node}" in self._held

    def status(self, instance: Instance) -> InstanceStatus | None:
        """What its node says of an instance."""
        return self.get(InstanceStatus, f"status/instances/{instance.path}")

    def ready(self, instance: Instance) -> bool:
        """Whether an instance may take requests: wanted, ready, and its node present."""
        status = self.status(instance)
        return (
            instance.desired == "running"
            and status is not None
            and status.phase == "ready"
            and status.node == instance.node
            and self.present(instance.node)
        )

    def _count(self, resource: Resource, step: int) -> None:
        match resource:
            case Instance(node=str(node)) | Database(node=str(node)):
                self._on_node[node][resource.app] += step
            case _:
                pass

    def _index(self, resource: Resource) -> dict[str, Resource]:
        return self._by_app[type(resource), app_of(resource)]


def _decode(event: Event) -> Resource | None:
    entry = event.entry
    if entry is None:
        return None
    for prefix, kind in _PREFIXES:
        if entry.key.startswith(prefix):
            try:
                return kind.decode(entry.value)
            except ValidationError:
                # One unreadable record must not stop the control plane; it is reported and kept.
                _log.exception("unreadable resource", extra={"key": entry.key})
                return None
    return None
