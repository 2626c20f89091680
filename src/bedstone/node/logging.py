"""The agent's own log: one line an event, with its fields; to standard error, which is a file."""

from __future__ import annotations

import json
import logging

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class Formatter(logging.Formatter):
    """`TIME LEVEL LOGGER: EVENT {FIELDS}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback where there is one."""
        fields = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        line = super().format(record)
        if not fields:
            return line
        first, newline, rest = line.partition("\n")
        return f"{first} {json.dumps(fields, default=str)}{newline}{rest}"


def configure(level: int = logging.INFO) -> None:
    """Send everything to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("asyncio", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
