"""What the node says of itself and of what it runs: the truth, and what of it is not told yet.

Invariant: `hello` is always everything; `take` gives each change once. What was taken and lost with
a broken stream is told again by the next stream's `hello`. A reason is one line.
"""

from __future__ import annotations

import asyncio

from bedstone.model.messages import Hello, Report
from bedstone.model.resources import DatabaseStatus, InstanceStatus, Node, Preparation

LONGEST = 500
"""Characters of a reason of several lines."""
Status = Node | InstanceStatus | DatabaseStatus | Preparation


class Reports:
    """All statuses by key; `changed` is set while something is not told yet."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.instances: dict[str, InstanceStatus] = {}
        self.databases: dict[str, DatabaseStatus] = {}
        self.preparations: dict[str, Preparation] = {}
        self.changed = asyncio.Event()
        self._dirty: set[str] = set()
        self._removed: set[str] = set()

    def put(self, status: Status) -> bool:
        """Say this; False if it was said before."""
        status = _brief(status)
        if self._find(status.key) == status:
            return False
        match status:
            case Node():
                self.node = status
            case InstanceStatus():
                self.instances[status.key] = status
            case DatabaseStatus():
                self.databases[status.key] = status
            case Preparation():
                self.preparations[status.key] = status
        self._dirty.add(status.key)
        self._removed.discard(status.key)
        self.changed.set()
        return True

    def remove(self, key: str) -> None:
        """It exists no more."""
        for table in (self.instances, self.databases, self.preparations):
            table.pop(key, None)
        self._dirty.discard(key)
        self._removed.add(key)
        self.changed.set()

    def hello(self) -> Hello:
        """Everything; nothing is left untold after it."""
        self._clear()
        return Hello(
            node=self.node,
            instances=tuple(self.instances.values()),
            databases=tuple(self.databases.values()),
            preparations=tuple(self.preparations.values()),
        )

    def take(self) -> Report:
        """What changed since it was last asked for; may be empty."""
        dirty, removed = self._dirty, tuple(sorted(self._removed))
        report = Report(
            node=self.node if self.node.key in dirty else None,
            instances=tuple(v for k, v in self.instances.items() if k in dirty),
            databases=tuple(v for k, v in self.databases.items() if k in dirty),
            preparations=tuple(v for k, v in self.preparations.items() if k in dirty),
            removed=removed,
        )
        self._clear()
        return report

    def _clear(self) -> None:
        self._dirty, self._removed = set(), set()
        self.changed.clear()

    def _find(self, key: str) -> Status | None:
        if key == self.node.key:
            return self.node
        return self.instances.get(key) or self.databases.get(key) or self.preparations.get(key)


def _brief(status: Status) -> Status:
    field = "proxy_reason" if isinstance(status, Node) else "reason"
    reason = getattr(status, field)
    return status.model_copy(update={field: one_line(reason)}) if "\n" in reason else status


def one_line(text: str) -> str:
    """What a text of several lines begins with, and the error it ends with; all is in the logs."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        errors = [line for line in lines[1:] if line.startswith("error:")]
        lines = [f"{lines[0].rstrip(':')}: {(errors or lines)[-1].removeprefix('error: ')}"]
    return lines[0][:LONGEST] if lines else ""
