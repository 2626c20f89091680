"""How a structured log line looks to people: time, level, message, and what else it says."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Final

from bedstone.cli.terminal import clean, paint
from bedstone.telemetry.lines import structured

_WIDTH: Final = 8
"""Of the longest level's name."""
_LONG: Final = ("exception", "exc_info", "stack", "stacktrace", "stack_info", "traceback")
_SHORT_TRACE: Final = 8


def readable(text: str) -> list[str]:
    """The line as people read it: one, and more where it holds a traceback."""
    said = structured(text)
    if not said.fields:
        return [clean(text)]
    parts = []
    if said.time is not None:
        parts.append(time.strftime("%H:%M:%S", time.localtime(said.time)))
    if said.level:
        parts.append(paint(said.level.ljust(_WIDTH), said.level))
    parts.append(" ".join(clean(line) for line in said.text.splitlines()))
    rest = said.rest
    long = [str(rest.pop(name)) for name in _LONG if isinstance(rest.get(name), str)]
    parts += _pairs(rest)
    if said.trace:
        parts.append(f"trace={clean(said.trace)[:_SHORT_TRACE]}")
    return [
        " ".join(parts),
        *(f"    {clean(line)}" for block in long for line in block.splitlines()),
    ]


def _pairs(fields: Mapping[str, Any]) -> list[str]:
    found = []
    for name, value in fields.items():
        plain = isinstance(value, str) and value and not any(it in value for it in ' ="\n')
        text = value if plain else json.dumps(value, ensure_ascii=False, default=str)
        found.append(f"{clean(name)}={clean(text)}")
    return found
