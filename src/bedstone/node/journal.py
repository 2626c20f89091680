"""What an agent must remember of each instance, on disk: one file each, replaced at each change.

Invariant: a process is asked for only after the addresses that it gets were written here, so that a
process that runs is always one whose addresses are known. Records of another run of the supervisor
are of processes that no longer are, and are not read.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from bedstone.model.resources import InstanceStatus
from bedstone.trust.svid import write_private

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """An instance's last status, and whether it was ever ready."""

    status: InstanceStatus
    served: bool


class Journal:
    """The records of one run."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id

    def load(self) -> dict[str, Record]:
        """What an earlier agent of this run wrote, by the instance's path; the rest is deleted."""
        found = {}
        for path in self._folder.glob("*.json"):
            try:
                value = json.loads(path.read_bytes())
                if value["run_id"] != self._run_id:
                    path.unlink(missing_ok=True)
                    continue
                status = InstanceStatus.model_validate(value["status"])
                found[status.path] = Record(status, bool(value["served"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def write(self, record: Record) -> str:
        """Remember this; why it cannot be, or an empty text.

        On a full disk what runs goes on, and is lost to a next agent.
        """
        value = {
            "run_id": self._run_id,
            "served": record.served,
            "status": record.status.model_dump(mode="json", exclude_defaults=True),
        }
        try:
            write_private(self._path(record.status.path), json.dumps(value))
        except OSError as error:
            _log.error("cannot write", extra={"reason": str(error)})
            return f"cannot write its record: {error.strerror or error}"
        return ""

    def forget(self, path: str) -> None:
        """The instance is no more."""
        self._path(path).unlink(missing_ok=True)

    def _path(self, path: str) -> Path:
        # Names are DNS labels: a dot is in none of them.
        return self._folder / f"{path.replace('/', '.')}.json"
