"""Log records that instances send over OTLP: appended, as JSON lines, to their own log files.

Rules:
- Whose they are says the sender that the proxy named.
- Files are touched on one thread only. What waits there is bounded; beyond it records are dropped,
  and the sender is told so.
- A file is never made here: an instance that is gone gets no more lines.
"""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bedstone.node.collector.intake import Sender
from bedstone.node.collector.otlp_metrics import plain_value, plain_values
from bedstone.node.logfile import LONGEST_LINE
from bedstone.telemetry.lines import level_of

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

_log = logging.getLogger(__name__)

MOST_WAITING: Final = 16 << 20
"""Bytes that wait to be written."""


def line(record: Any, logger: str, now: float) -> str:
    """One record (`LogRecord`) as a line of JSON.

    Args:
        record: it.
        logger: who wrote it: the name of its scope.
        now: seconds since the epoch, for a record without a time.
    """
    at = record.time_unix_nano or record.observed_time_unix_nano
    body = plain_value(record.body)
    text = body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    found: dict[str, Any] = {
        "time": round(at / 1e9, 3) if at else round(now, 3),
        "level": level_of(record.severity_text) or level_of(record.severity_number) or "info",
        "event": text,
        "logger": logger,
    }
    if record.trace_id:
        found["trace_id"] = record.trace_id.hex()
    if record.span_id:
        found["span_id"] = record.span_id.hex()
    found |= {k: v for k, v in plain_values(record.attributes).items() if k not in found}
    whole = json.dumps(found, ensure_ascii=False, default=str)
    if len(whole.encode()) >= LONGEST_LINE:  # a line that is cut would be no JSON
        kept = {name: found[name] for name in ("time", "level", "logger")} | {
            name: found[name] for name in ("trace_id", "span_id") if name in found
        }
        whole = json.dumps(kept | {"event": text[: LONGEST_LINE // 8], "truncated": True})
    return whole


def lines(request: ExportLogsServiceRequest, now: float) -> Iterable[str]:
    """The lines of a request."""
    for resource in request.resource_logs:
        for scope in resource.scope_logs:
            for record in scope.log_records:
                yield line(record, scope.scope.name, now)


class ApplicationLogs:
    """Appends to the logs of instances.

    Args:
        logs: the directory of the node's logs.
        clock: seconds since the epoch.
        most: bytes that may wait.
    """

    def __init__(
        self, logs: Path, clock: Callable[[], float] = time.time, *, most: int = MOST_WAITING
    ) -> None:
        self._folder = logs / "instances"
        self._clock = clock
        self._most = most
        self._waiting = 0
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "bedstone-application-logs")

    def logs(self, sender: Sender, request: ExportLogsServiceRequest) -> int:
        """Take what an instance sends; how many records were dropped."""
        every = list(lines(request, self._clock()))
        return 0 if self._append(sender, every) else len(every)

    def tell(self, sender: Sender, text: str) -> None:
        """Say something of our own in an instance's log."""
        said = {"time": round(self._clock(), 3), "level": "warning", "event": text}
        self._append(sender, [json.dumps(said | {"logger": "bedstone"})])

    def close(self) -> None:
        """Write what waits, and end."""
        self._thread.shutdown(wait=True)

    def _append(self, sender: Sender, every: list[str]) -> bool:
        data = "".join(f"{one}\n" for one in every).encode(errors="replace")
        with self._lock:
            if not data or self._waiting + len(data) > self._most:
                return not data
            self._waiting += len(data)
        self._thread.submit(self._write, sender, data)
        return True

    def _write(self, sender: Sender, data: bytes) -> None:
        try:
            if not {".", ".."} & set(sender):
                path = self._folder.joinpath(*sender[:3], f"{sender.instance}.log")
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                try:
                    os.write(descriptor, data)
                finally:
                    os.close(descriptor)
        except OSError as error:
            extra = {"instance": str(sender), "reason": str(error)}
            _log.warning("cannot write log records", extra=extra)
        finally:
            with self._lock:
                self._waiting -= len(data)
