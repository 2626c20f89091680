"""The shape of a manifest: each part by itself, in words for people.

The types in `spec` decide, as pydantic applies them; the words come from the published JSON Schema,
so that a message names exactly the forms that are accepted.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pydantic import ValidationError

from bedstone.model.fields import KIND_TAG
from bedstone.model.monitoring_spec import ALERT_KEYS
from bedstone.model.positions import Document, Location, Problem
from bedstone.model.schema import PROBE_KEYS, describe, keys_at, places_of, schema_at
from bedstone.model.spec import UNBUILT, AppSpec

_SYNONYMS: Final = {
    "name": "app",
    "services": "workloads",
    "environment": "env",
    "depends_on": "uses",
    "cmd": "command",
    "args": "command",
    "entrypoint": "command",
    "scale": "replicas",
    "instances": "replicas",
    "healthcheck": "ready",
    "readiness": "ready",
    "liveness": "live",
    "resources": "limits",
    "dir": "path",
    "workdir": "path",
    "cwd": "path",
    "directory": "path",
    "target": "to",
    "service": "to",
    "workload": "to",
    "prefix": "path",
    "mem": "memory",
    "cpus": "cpu",
    "nofile": "files",
    "expr": "when",
    "condition": "when",
    "description": "summary",
    "url": "webhook",
    "slo": "objective",
}
"""What other tools call a key of ours."""
_KEY: Final = "the key itself"
"""The kind of mistake that is in a mapping's key, and not in its value."""


def check_shape(document: Document) -> tuple[AppSpec | None, list[Problem]]:
    """Check each part by itself: what the JSON Schema can tell, and keys not built yet."""
    problems = list(document.problems)
    if not isinstance(document.data, dict):
        if not problems:
            found = _spelling(document, (), document.data)
            problems.append(
                Problem(
                    document.position(()),
                    f"got {found}, expected a mapping with the keys app and workloads",
                    "`bedstone init` writes a manifest to start from",
                )
            )
        return None, problems
    problems += _unbuilt(document)
    spec = None
    try:
        spec = AppSpec.model_validate(document.data)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            location = _locate(document.data, detail["type"], detail["loc"])
            # A collection whose items are all wrong is "too short" to pydantic, but not to people.
            spurious = detail["type"] == "too_short" and _lookup(document.data, location)
            if not spurious and not _covered(location, problems):
                kind = _KEY if "[key]" in detail["loc"] else detail["type"]
                problems.append(_translate(document, kind, location))
    return (None if problems else spec), problems


def _covered(location: Location, problems: Iterable[Problem]) -> bool:
    """Whether a problem is already reported of the same part, or of one that contains it."""
    return any(
        problem.location and location[: len(problem.location)] == problem.location
        for problem in problems
    )


def _locate(data: Any, kind: str, raw: Iterable[int | str]) -> Location:
    """Where in the data pydantic's location is: without its own marks for unions and keys."""
    location: list[int | str] = []
    for part in raw:
        if isinstance(part, str) and (part.startswith(KIND_TAG) or part == "[key]"):
            continue
        present = (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        )
        if present:
            data = data[part]
        elif kind != "missing" or not isinstance(data, dict):
            break
        location.append(part)
    return tuple(location)


def _translate(document: Document, kind: str, location: Location) -> Problem:
    """Say what pydantic found in the words of the manifest."""
    parent, last = location[:-1], location[-1] if location else ""
    match kind:
        case "extra_forbidden":
            known = keys_at(document.data, parent)
            return Problem(
                document.key_position(location),
                f"unknown key {last!r}, expected one of {', '.join(known)}",
                _of_one_kind(str(last), parent) or _suggestion(str(last), known),
                location,
            )
        case "missing":
            node = schema_at(document.data, location)
            expected = f", expected {describe(node)}" if node else ""
            return Problem(
                document.position(parent), f"missing key {last!r}{expected}", None, location
            )
        case _ if kind == _KEY:
            names = (schema_at(document.data, parent) or {}).get("propertyNames", {})
            return Problem(
                document.key_position(location),
                f"got the name {last!r}, expected {describe(names)}",
                None,
                location,
            )
    value = _lookup(document.data, location)
    node = schema_at(document.data, location)
    return Problem(
        document.position(location),
        f"got {_spelling(document, location, value)}, expected "
        + (describe(node) if node else "another value"),
        _advice(location, value, node),
        location,
    )


def _of_one_kind(key: str, parent: Location) -> str | None:
    """What to say where a key belongs to another kind of the thing than the keys beside it."""
    if key in PROBE_KEYS and parent[-1:] in (("ready",), ("live",)):
        return f"a probe has one of {', '.join(PROBE_KEYS)}"
    if key in ALERT_KEYS and parent[:1] == ("alerts",):
        return f"an alert has one of {', '.join(ALERT_KEYS)}"
    return None


def _advice(location: Location, value: Any, node: Mapping[str, Any] | None) -> str | None:
    """What to do about the mistakes that are made most."""
    kind = (node or {}).get("type")
    if kind == "array" and isinstance(value, str):
        words = _words(value) if location[-1] in {"command", "prepare"} else [value]
        return f"write it as a list: [{', '.join(words)}]"
    if kind == "string" and isinstance(value, int | float) and "pattern" not in (node or {}):
        return "put it in quotes"
    if isinstance(value, str) and (options := (node or {}).get("enum")):
        return _nearest(value, options)
    if isinstance(value, str) and value[:1].isalpha() and location[-1] in {"ready", "live"}:
        return f"did you mean '/{value}'?"
    if isinstance(value, dict) and location[:1] == ("alerts",):
        return next((near for key in value if (near := _nearest(str(key), ALERT_KEYS))), None)
    return None


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    return [_quoted(word) for word in words]


def _quoted(word: str) -> str:
    plain = word and all(letter.isalnum() or letter in "._/=+-" for letter in word)
    return word if plain and not word[0].isdigit() and word[0] != "-" else f'"{word}"'


def _suggestion(key: str, known: list[str]) -> str | None:
    """The key that was meant: another word for it, one spelled like it, or one in another place."""
    if (meant := _SYNONYMS.get(key.lower())) in known:
        return f"did you mean {meant!r}?"
    if near := _nearest(key, known):
        return near
    places = places_of(key)
    return f"it belongs in {' or '.join(places)}" if places else None


def _nearest(word: str, known: Iterable[str]) -> str | None:
    matches = difflib.get_close_matches(word.lower(), list(known), 1, 0.6)
    return f"did you mean {matches[0]!r}?" if matches else None


def _spelling(document: Document, location: Location, value: Any) -> str:
    """A value as the text has it, shortened."""
    match value:
        case dict():
            return "a mapping" if value else "an empty mapping"
        case list():
            return "a list" if value else "an empty list"
        case str():
            return repr(value if len(value) <= 60 else value[:57] + "…")
        case _:
            return document.scalars.get(location, str(value))


def _lookup(data: Any, location: Location) -> Any:
    for part in location:
        data = data[part]
    return data


def _unbuilt(document: Document) -> Iterator[Problem]:
    """Keys of the design that this version refuses."""
    for pattern, reason in UNBUILT.items():
        for location in _matches(document.data, pattern):
            yield Problem(
                document.key_position(location),
                f"the key {location[-1]!r} cannot be used: {reason}",
                "remove it",
                location,
            )
    for location in _matches(document.data, ("workloads", "*", "isolation")):
        value = _lookup(document.data, location)
        if value == "enclave":
            yield Problem(
                document.position(location),
                "got isolation 'enclave', expected process, container, gvisor or microvm: "
                "enclaves are not built yet",
                "microvm is the strongest that there is",
                location,
            )


def _matches(data: Any, pattern: tuple[str, ...]) -> Iterator[Location]:
    if not pattern:
        yield ()
        return
    if not isinstance(data, dict):
        return
    first, *rest = pattern
    for key in data if first == "*" else (first,):
        if key in data:
            for tail in _matches(data[key], tuple(rest)):
                yield (key, *tail)
