"""The form of a served application's logs, where it gives them none: a JSON object a line.

Rules:
- An application that has configured logging is left alone.
- Each line names the trace and the span in which it was written.
"""

from __future__ import annotations

import logging

from opentelemetry import trace

from bedstone.telemetry.context import Trace, current, marked
from bedstone.telemetry.logs import JsonFormatter

CHATTY = ("uvicorn.error", "httpx")
"""Loggers of libraries that speak of each request or start: heard from warnings on."""


class LinkedFormatter(JsonFormatter):
    """A line of JSON with the trace that it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        """Encode a record."""
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            record.trace_id = trace.format_trace_id(span.trace_id)
            record.span_id = trace.format_span_id(span.span_id)
        elif (position := current().trace or _failed(record)) is not None:
            record.trace_id, record.span_id = position.trace_id, position.span_id
        return super().format(record)


def _failed(record: logging.LogRecord) -> Trace | None:
    """Where the failure happened that a server logs after its request."""
    return marked(record.exc_info[1]) if record.exc_info else None


def configure() -> None:
    """Give logs a form, if the application, now imported, has not given them one."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(LinkedFormatter())
        root.addHandler(handler)
        root.setLevel(logging.INFO)
    for name in CHATTY:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
