"""Logs of Bedstone's own processes: one JSON object a line, an event name and fields.

`logging.getLogger(__name__).info("session replaced", extra={"node": "local"})` becomes
`{"time": …, "level": "info", "event": "session replaced", "node": "local", …}`.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TextIO

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One line of JSON a record; fields given by `extra` stand beside the event."""

    def format(self, record: logging.LogRecord) -> str:
        """Encode a record; a value that is not JSON is given as its string."""
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "event": record.getMessage().rstrip("\n"),
            "logger": record.name,
        }
        fields = {k: v for k, v in record.__dict__.items() if k not in _STANDARD}
        line.update({k: v for k, v in fields.items() if k not in line})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(stream: TextIO = sys.stdout, level: int = logging.INFO) -> None:
    """Send every log record to `stream`, once; libraries speak from warnings on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("bedstone").setLevel(level)
