"""Log lines of any program: read as structured ones where they are JSON objects, pure.

Rules:
- A line that is no JSON object is its own text. Nothing that a program writes is an error.
- Names differ from library to library; each list here is tried in order, without regard to case.
- Levels are brought to six names. A number is pino's and bunyan's (10 to 60), or OpenTelemetry's
  (1 to 24).
- A line belongs to a trace if it names it, in whichever field, or in plain text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from bedstone.errors import InvalidError

LEVELS: Final = ("trace", "debug", "info", "warning", "error", "critical")
"""From the least to the most severe."""

_ALIASES: Final = {
    "verbose": "trace",
    "finest": "trace",
    "fine": "debug",
    "information": "info",
    "informational": "info",
    "notice": "info",
    "log": "info",
    "warn": "warning",
    "err": "error",
    "severe": "error",
    "fatal": "critical",
    "crit": "critical",
    "panic": "critical",
    "dpanic": "critical",
    "alert": "critical",
    "emerg": "critical",
    "emergency": "critical",
}
_MESSAGE: Final = ("message", "msg", "event", "body", "text", "@message")
_LEVEL: Final = (
    "level",
    "severity",
    "severity_text",
    "severitytext",
    "lvl",
    "levelname",
    "loglevel",
)
_TIME: Final = ("time", "timestamp", "ts", "@timestamp", "asctime", "datetime")
_TRACE: Final = ("trace_id", "traceid", "trace.id", "trace", "oteltraceid", "dd.trace_id")
_SPAN: Final = ("span_id", "spanid", "span.id", "span", "otelspanid", "dd.span_id")
_LONGEST_NUMBER: Final = 24  # OpenTelemetry's highest; pino's begin at 10 and go by tens


@dataclass(frozen=True, slots=True)
class Structured:
    """What a line says.

    Args:
        text: its message; all of it for one that is no JSON object.
        level: one of `LEVELS`; empty if it names none that is known.
        time: seconds since the epoch, if it says when.
        trace: the trace that it names, in lower case.
        span: the span.
        fields: all that the object holds; empty for one that is none.
    """

    text: str
    level: str = ""
    time: float | None = None
    trace: str = ""
    span: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rest(self) -> dict[str, Any]:
        """The fields that the other attributes do not show."""
        known = {*_LEVEL, *_TIME, *_TRACE, *_SPAN}
        return {
            name: value
            for name, value in self.fields.items()
            if name.lower() not in known
            and not (name.lower() in _MESSAGE and _text(value) == self.text)
        }


def structured(line: str) -> Structured:
    """Read a line."""
    stripped = line.strip()
    if not (stripped.startswith("{") and stripped.endswith("}")):
        return Structured(line)
    try:
        fields = json.loads(stripped)
    except (ValueError, RecursionError):
        return Structured(line)
    if not isinstance(fields, dict):
        return Structured(line)
    lower = {name.lower(): value for name, value in reversed(fields.items())}
    message = _first(lower, _MESSAGE)
    return Structured(
        line if message is None else _text(message),
        level_of(_first(lower, _LEVEL)),
        _time(_first(lower, _TIME)),
        _identifier(_first(lower, _TRACE)),
        _identifier(_first(lower, _SPAN)),
        fields,
    )


def level_of(value: object) -> str:
    """The name of a level that a program writes in its own way; empty for one that is unknown."""
    match value:
        case bool() | None:
            return ""
        case int() | float():
            return _numbered(value)
        case str():
            name = value.strip().lower()
            if name.isdecimal():
                return _numbered(int(name))
            name = _ALIASES.get(name, name)
            return name if name in LEVELS else ""
        case _:
            return ""


def checked_level(name: str) -> str:
    """A level that somebody asks for.

    Raises:
        InvalidError: there is no such level.
    """
    found = level_of(name)
    if not found:
        raise InvalidError(f"got level {name!r}, expected one of {', '.join(LEVELS)}")
    return found


@dataclass(frozen=True, slots=True)
class Filter:
    """Which lines are wanted; all of them by default.

    Args:
        trace: those that name this trace.
        level: those of this level and above; a line without a level is of none.
        text: those that contain this, without regard to case.
    """

    trace: str = ""
    level: str = ""
    text: str = ""

    def __bool__(self) -> bool:
        return bool(self.trace or self.level or self.text)

    def takes(self, line: str) -> bool:
        """Whether a line is wanted."""
        lower = line.lower()
        if self.trace and self.trace.lower() not in lower:
            return False
        if self.text and self.text.lower() not in lower:
            return False
        if not self.level:
            return True
        found = structured(line).level
        return bool(found) and LEVELS.index(found) >= LEVELS.index(self.level)


def _numbered(value: float) -> str:
    """Pino's numbers are whole tens, and OpenTelemetry's all but 10 and 20 are not."""
    if value in {10, 20} or value > _LONGEST_NUMBER:
        return LEVELS[min(5, max(0, int(value // 10) - 1))]
    return LEVELS[min(5, (int(value) - 1) // 4)] if value >= 1 else ""


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) not in (None, "")), None)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _identifier(value: object) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def _time(value: object) -> float | None:
    """Seconds since the epoch: so many, or milli-, micro- or nanoseconds, or an ISO 8601 time."""
    try:
        match value:
            case bool():
                return None
            case int() | float():
                at = float(value)
                while 1e11 < at < 1e20:  # the year 5138 in seconds, and in nanoseconds
                    at /= 1000.0
                return at if 0 < at <= 1e11 else None
            case str():
                return datetime.fromisoformat(value.strip().replace(",", ".")).timestamp()
            case _:
                return None
    except (ValueError, OverflowError):
        return None
