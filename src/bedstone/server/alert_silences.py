"""Silences: what nobody is told of, for a time, and who wanted it so.

Rule: a silence and the audit record of who made or ended it stand or fall together.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from bedstone.errors import NotFoundError
from bedstone.model.alert_records import SilenceRecord
from bedstone.model.alerts import Silence, SilenceRequest
from bedstone.server.alert_store import AlertStore
from bedstone.server.changes import Changes
from bedstone.store import ABSENT, Delete, Put


@dataclass
class Silences:
    """The silences that have not ended.

    Args:
        kept: where they are removed when they have ended.
        changes: writes them, with who made them.
        clock: seconds since the epoch.
    """

    kept: AlertStore
    changes: Changes
    clock: Callable[[], float]
    _records: dict[str, SilenceRecord] = field(default_factory=dict)

    def restore(self, records: Iterable[SilenceRecord]) -> None:
        """Take what the store has."""
        self._records = {record.id: record for record in records}

    def list(self) -> list[Silence]:
        """All, the first to end first."""
        found = sorted(self._records.values(), key=lambda record: record.until)
        return [record.public() for record in found]

    def of(self, labels: Mapping[str, str]) -> SilenceRecord | None:
        """The one that holds an alert the longest, if one does."""
        now = self.clock()
        found = [
            record
            for record in self._records.values()
            if record.until > now
            and all(labels.get(name, "") == value for name, value in record.labels.items())
        ]
        return max(found, key=lambda record: record.until, default=None)

    def expire(self) -> None:
        """Remove those that have ended."""
        now = self.clock()
        for record in [record for record in self._records.values() if record.until <= now]:
            del self._records[record.id]
            self.kept.delete(record.key)

    async def add(self, request: SilenceRequest, who: str) -> SilenceRecord:
        """Make one."""
        now = self.clock()
        record = SilenceRecord(
            id=secrets.token_hex(4),
            labels=request.labels,
            until=now + request.seconds,
            why=request.why,
            who=who,
            created_at=now,
        )
        operations = [Put(record.key, record.encode(), expected=ABSENT)]
        labels = ", ".join(f"{name}={value}" for name, value in request.labels.items())
        await self.changes.recorded(who, "silence", labels[:200], request.why, operations)
        self._records[record.id] = record
        return record

    async def end(self, silence: str, who: str) -> None:
        """End one.

        Raises:
            NotFoundError: there is none of that id.
        """
        record = self._records.get(silence)
        if record is None:
            raise NotFoundError(
                f"there is no silence {silence}", hint="see bedstone alerts silences"
            )
        await self.changes.recorded(who, "unsilence", silence, record.why, [Delete(record.key)])
        self._records.pop(silence, None)
