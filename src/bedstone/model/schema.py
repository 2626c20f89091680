"""The JSON Schema of a manifest, generated from the types, and the words for its parts.

Rules:
- The schema accepts exactly the forms that the parser accepts (short forms included); what spans
  several places, such as a name in `uses` that nothing has, only the parser can tell.
- Keys that are not built yet are absent. Null is no value.
- Messages of the parser describe what was expected from this schema, so that both agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final, cast

from pydantic.json_schema import GenerateJsonSchema

from bedstone.model.fields import (
    IMAGE_PATTERN,
    KIND_TAG,
    NAME_PATTERN,
    PATH_PATTERN,
    RUN_PATTERN,
)
from bedstone.model.monitoring_spec import ALERT_KEYS, LABEL_PATTERN, URL_PATTERN, alert_kind
from bedstone.model.positions import Location
from bedstone.model.spec import UNBUILT, AppSpec, expand_probe, probe_kind
from bedstone.model.units import (
    DURATION_PATTERN,
    OBJECTIVE_PATTERN,
    PERCENT_PATTERN,
    SHARE_PATTERN,
    SIZE_PATTERN,
    SPAN_PATTERN,
)

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_ID: Final = "urn:bedstone:schema:manifest:1"

Schema = dict[str, Any]

PROBE_KEYS: Final = ("path", "tcp", "command")
"""The keys of which a probe has one."""

_PATTERNS: Final = {
    NAME_PATTERN: "a name of at most 40 lower-case letters, digits and hyphens, from a letter",
    PATH_PATTERN: "a path such as /healthz",
    RUN_PATTERN: "an ASGI application as module:attribute",
    IMAGE_PATTERN: "an image such as python:3.12 or ghcr.io/acme/app:1",
    DURATION_PATTERN: "a duration such as 500ms, 2s, 5m or 1h",
    SIZE_PATTERN: "a size such as 256MiB or 1GB",
    SPAN_PATTERN: "a duration such as 30s, 6h, 3d or 1w",
    SHARE_PATTERN: "a share such as 10%",
    OBJECTIVE_PATTERN: "a share such as 99.9%",
    PERCENT_PATTERN: "a share such as 50%",
    URL_PATTERN: "a URL of http or https",
    LABEL_PATTERN: "a label of letters, digits and underscores",
}
_SHORT_FORMS: Final = {
    "Duration": (DURATION_PATTERN, "Seconds, or a string such as 500ms, 2s, 5m or 1h."),
    "Size": (SIZE_PATTERN, "Bytes, or a string such as 256MiB or 1GB."),
    "Span": (SPAN_PATTERN, "Seconds, or a string such as 30s, 6h, 3d or 1w."),
}
_PROBES: Final = {
    "HttpProbe": KIND_TAG + "http",
    "TcpProbe": KIND_TAG + "tcp",
    "ExecProbe": KIND_TAG + "exec",
}
_ALERTS: Final = {
    "ConditionAlert": KIND_TAG + "condition",
    "BurnRateAlert": KIND_TAG + "burn-rate",
    "BaselineAlert": KIND_TAG + "baseline",
    "DeadManAlert": KIND_TAG + "dead-man",
}
_KINDS: Final = _PROBES | _ALERTS
_KIND_KEYS: Final = (*PROBE_KEYS, *ALERT_KEYS)


class _Generator(GenerateJsonSchema):
    """Leaves out the titles that pydantic makes from field names."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - overrides
        return False


def json_schema() -> Schema:
    """The manifest's JSON Schema (Draft 2020-12), a new copy each time."""
    schema = AppSpec.model_json_schema(schema_generator=_Generator)
    definitions: Schema = schema.pop("$defs")
    for part in (schema, *definitions.values()):
        _name_keys(part)
    for location in UNBUILT:
        _remove(schema, definitions, location)
    for part in (schema, *definitions.values()):
        _strip_null(part)
    workload = definitions["WorkloadSpec"]
    workload["properties"]["isolation"]["enum"].remove("enclave")
    workload["oneOf"] = [
        {"required": ["run"], "not": {"required": ["image"]}},
        {"required": ["command"], "not": {"required": ["image"]}},
        {"required": ["image"], "not": {"required": ["run"]}},
    ]
    for name, (pattern, description) in _SHORT_FORMS.items():
        shared: Schema = {}
        for part in definitions.values():
            shared |= _share(part, name, pattern)
        definitions[name] = {"title": name, "description": description, **shared}
    definitions["Probe"] = {
        "title": "Probe",
        "description": "A probe: a path such as `/healthz`, `tcp`, or a mapping.",
        "anyOf": [
            {"type": "string", "pattern": PATH_PATTERN},
            {"const": "tcp"},
            *({"$ref": f"#/$defs/{name}"} for name in _PROBES),
        ],
    }
    definitions["Alert"] = {
        "title": "Alert",
        "description": "An alert: a mapping with one of "
        + ", ".join(f"`{key}`" for key in ALERT_KEYS)
        + ".",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in _ALERTS],
    }
    schema["properties"]["alerts"]["additionalProperties"] = {"$ref": "#/$defs/Alert"}
    definitions["BurnRateAlert"] |= {
        "oneOf": [{"required": ["of"]}, {"required": ["errors"]}],
        "dependentRequired": {"errors": ["total"], "total": ["errors"]},
    }
    for key in ("ready", "live"):
        given = workload["properties"][key]
        workload["properties"][key] = {
            "$ref": "#/$defs/Probe",
            "description": given["description"],
        }
    return {
        "$schema": DIALECT,
        "$id": SCHEMA_ID,
        **schema,
        "title": "Bedstone manifest",
        "description": "What a bedstone.yaml declares: an app, its workloads and its databases.",
        "$defs": definitions,
    }


def _share(part: Schema, name: str, pattern: str) -> Schema:
    """Let the properties of a definition that accept a short form refer to one definition of it."""
    shared: Schema = {}
    for value in part.get("properties", {}).values():
        options = value.get("anyOf", [])
        if options and options[-1].get("pattern") == pattern:
            shared = {"anyOf": value.pop("anyOf")}
            value["$ref"] = f"#/$defs/{name}"
    return shared


def _name_keys(part: Schema) -> None:
    """Say of mappings by name that *every* key must be a name; pydantic constrains none else."""
    for value in part.get("properties", {}).values():
        if patterns := value.pop("patternProperties", None):
            ((pattern, item),) = patterns.items()
            value["propertyNames"] = {"pattern": pattern}
            value["additionalProperties"] = item


def _remove(schema: Schema, definitions: Schema, location: tuple[str, ...]) -> None:
    """Take a key that is not built yet out of the object that has it."""
    if location[0] not in schema["properties"]:
        return
    node = schema
    for part in location[:-1]:
        node = node["additionalProperties"] if part == "*" else node["properties"][part]
        if "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]]
    node["properties"].pop(location[-1], None)


def _strip_null(node: Any) -> None:
    """Remove null from alternatives and defaults, at every depth."""
    match node:
        case dict():
            if "default" in node and node["default"] is None:
                del node["default"]
            options = [option for option in node.get("anyOf", ()) if option != {"type": "null"}]
            if len(options) == 1:
                del node["anyOf"]
                kept = {key: value for key, value in options[0].items() if key not in node}
                node.update(kept)
            elif options:
                node["anyOf"] = options
            for value in node.values():
                _strip_null(value)
        case list():
            for value in node:
                _strip_null(value)
        case _:
            pass


@cache
def _schema() -> Schema:
    return json_schema()


def _resolve(node: Schema) -> Schema:
    while "$ref" in node:
        target = cast("Schema", _schema()["$defs"][node["$ref"].rpartition("/")[2]])
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return node


def schema_at(data: Any, location: Location) -> Schema | None:
    """The part of the schema for a place in a manifest, or None for a place it does not know.

    Args:
        data: the manifest; it decides which kind of probe or alert something is.
        location: the place.
    """
    node = _resolve(_schema())
    for part in location:
        node = _narrow(node, data)
        data = _child(data, part)
        if isinstance(part, int):
            following = node.get("items")
        else:
            following = node.get("properties", {}).get(part, node.get("additionalProperties"))
        if not isinstance(following, dict):
            return None
        node = _resolve(following)
    return node


def _child(data: Any, part: str | int) -> Any:
    try:
        return data[part]
    except (KeyError, IndexError, TypeError):
        return None


def _narrow(node: Schema, data: Any) -> Schema:
    """Choose the kind that the data declares, where something may be of several."""
    member = node.get("anyOf", [{}])[-1].get("$ref", "").rpartition("/")[2]
    if member not in _KINDS:
        return node
    try:
        kind = probe_kind(expand_probe(data)) if member in _PROBES else alert_kind(data)
    except ValueError:
        kind = None
    for name, tag in _KINDS.items():
        if tag == kind:
            return cast("Schema", _schema()["$defs"][name])
    return node


def keys_at(data: Any, location: Location) -> list[str]:
    """The keys that a mapping at a place may have, in the order of their declaration."""
    node = schema_at(data, location)
    if node is None:
        return []
    return list(_narrow(node, _lookup(data, location)).get("properties", {}))


def places_of(key: str) -> list[str]:
    """Where else in a manifest a key may stand, for messages."""
    definitions = _schema()["$defs"]
    return [
        place
        for place, part in (
            ("the top level", _schema()),
            ("gateway", definitions["Gateway"]),
            ("a route", definitions["Route"]),
            ("a workload", definitions["WorkloadSpec"]),
            ("limits", definitions["Limits"]),
            ("a database", definitions["DatabaseSpec"]),
            ("monitoring", definitions["MonitoringSpec"]),
            ("a receiver", definitions["ReceiverSpec"]),
        )
        if key in part["properties"]
    ]


def _lookup(data: Any, location: Location) -> Any:
    for part in location:
        data = _child(data, part)
    return data


def describe(node: Schema) -> str:
    """What a part of the schema accepts, as a phrase that follows "expected"."""
    node = _resolve(node)
    match node:
        case {"const": value}:
            return _literal(value)
        case {"enum": values}:
            return "one of " + ", ".join(map(_literal, values))
        case {"anyOf": options}:
            return _alternatives(options)
        case {"pattern": pattern} if pattern in _PATTERNS:
            return _PATTERNS[pattern]
        case _:
            return _of_type(node)


def _of_type(node: Schema) -> str:
    empty = ", not empty" if node.get("minItems") or node.get("minProperties") else ""
    match node.get("type"):
        case "integer":
            return "an integer" + _bounds(node)
        case "number":
            return "a number" + _bounds(node)
        case "boolean":
            return "true or false"
        case "array":
            return f"a list of {_plural(describe(node.get('items', {})))}{empty}"
        case "object":
            return "a mapping" + empty
        case _:
            return "a string"


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plural(phrase: str) -> str:
    if phrase == "a mapping":
        return "mappings"
    return "names" if phrase == _PATTERNS[NAME_PATTERN] else "strings"


def _alternatives(options: list[Schema]) -> str:
    def phrases() -> Iterator[str]:
        objects: list[str] = []
        for option in options:
            resolved = _resolve(option)
            if resolved.get("type") == "object":
                objects += [key for key in _KIND_KEYS if key in resolved.get("properties", {})]
            else:
                yield describe(resolved)
        if objects:
            yield f"a mapping with one of {', '.join(objects)}"

    *most, last = dict.fromkeys(phrases())
    return f"{', '.join(most)} or {last}" if most else last


def _bounds(node: Schema) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    if above is not None and below is not None:
        return f" > {above:g} and < {below:g}"
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    if low is not None:
        return f" ≥ {low:g}"
    if above is not None:
        return f" > {above:g}" + (f" and ≤ {high:g}" if high is not None else "")
    return ""
