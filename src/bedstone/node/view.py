"""What the server wants of this node, as last heard, and what follows from it.

It is kept on disk, so that a node that restarts while no server is there goes on with it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from bedstone.model.messages import Assignments, ProxyState
from bedstone.model.resources import (
    App,
    Database,
    Instance,
    Preparation,
    Resource,
    Revision,
)
from bedstone.model.spec import AppSpec
from bedstone.trust.svid import write_private


class View:
    """Assigned resources by key. `known` says whether a server or the disk ever told."""

    def __init__(self) -> None:
        self.domain = ""
        self.known = False
        self.resources: dict[str, Resource] = {}
        self.available: dict[str, bool] = {}
        self.acknowledged: set[str] = set()

    def clear(self) -> None:
        """Forget everything."""
        self.domain, self.known = "", False
        self.resources.clear()
        self.available.clear()
        self.acknowledged.clear()

    def apply(self, message: Assignments) -> None:
        """Take in what the server sent."""
        if message.complete:
            self.resources.clear()
            self.available.clear()
        self.known = True
        self.domain = message.domain
        for group in (
            message.apps,
            message.revisions,
            message.instances,
            message.databases,
            message.preparations,
        ):
            self.resources.update({resource.key: resource for resource in group})
        for key in message.removed:
            self.resources.pop(key, None)
        self.available.update(message.available)

    def apply_proxy(self, message: ProxyState) -> None:
        """Take in which instances' listeners the proxy has acknowledged."""
        if message.complete:
            self.acknowledged.clear()
        self.acknowledged |= set(message.acknowledged)
        self.acknowledged -= set(message.removed)

    def apps(self) -> list[App]:
        """The apps that this node serves."""
        return [value for value in self.resources.values() if isinstance(value, App)]

    def instances(self) -> list[Instance]:
        """The instances placed here."""
        return [value for value in self.resources.values() if isinstance(value, Instance)]

    def databases(self) -> list[Database]:
        """The databases of the apps served here, wherever they are."""
        return [value for value in self.resources.values() if isinstance(value, Database)]

    def app(self, name: str) -> App | None:
        """An app."""
        found = self.resources.get(f"apps/{name}")
        return found if isinstance(found, App) else None

    def revision(self, instance: Instance) -> Revision | None:
        """What an instance runs."""
        key = f"revisions/{instance.app}/{instance.workload}/{instance.revision}"
        found = self.resources.get(key)
        return found if isinstance(found, Revision) else None

    def database(self, app: str, cell: str, name: str) -> Database | None:
        """A database."""
        found = self.resources.get(f"databases/{app}/{cell}/{name}")
        return found if isinstance(found, Database) else None

    def preparation(self, instance: Instance) -> Preparation | None:
        """The outcome of a revision's `prepare:`, as the server knows it."""
        where = f"{instance.app}/{instance.cell}/{instance.workload}/{instance.revision}"
        found = self.resources.get(f"preparations/{where}")
        return found if isinstance(found, Preparation) else None

    def save(self, path: Path) -> None:
        """Write it down."""

        def of(kind: type) -> tuple[Resource, ...]:
            return tuple(value for value in self.resources.values() if isinstance(value, kind))

        message = Assignments.model_construct(
            complete=True,
            domain=self.domain,
            apps=of(App),
            revisions=of(Revision),
            instances=of(Instance),
            databases=of(Database),
            preparations=of(Preparation),
            available=self.available,
        )
        write_private(path, message.model_dump_json())

    def load(self, path: Path) -> None:
        """Read what `save` wrote; nothing if it is missing or of another version."""
        try:
            self.apply(Assignments.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            return


def cycle_of(spec: AppSpec, workload: str) -> frozenset[str]:
    """The workloads that use each other in a circle with this one, itself included.

    Two workloads are in one circle if each reaches the other by `uses`: they can't wait for each
    other.
    """

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        todo = [start]
        while todo:
            declared = spec.workloads.get(todo.pop())
            for name in declared.uses if declared else ():
                if name in spec.workloads and name not in found:
                    found.add(name)
                    todo.append(name)
        return found

    return frozenset({workload} | {name for name in reached(workload) if workload in reached(name)})
