"""The fields of a manifest: names, durations, sizes, shares, and the base of its parts.

Rules: each type accepts exactly what its JSON Schema says, short forms included.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    WithJsonSchema,
)

from bedstone.model.units import (
    DURATION_PATTERN,
    OBJECTIVE_PATTERN,
    SHARE_PATTERN,
    SIZE_PATTERN,
    SPAN_PATTERN,
    parse_duration,
    parse_objective,
    parse_share,
    parse_size,
    parse_span,
)

NAME_PATTERN = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
IMAGE_PATTERN = r"^[A-Za-z0-9][^\s]*$"
RUN_PATTERN = (
    r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"
    r":[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"
)
MODULE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"
PATH_PATTERN = r"^/[^\s?#]*$"
MAX_DURATION = 86400.0
MAX_SPAN = 90 * 86400.0

Name = Annotated[
    str,
    StringConstraints(pattern=NAME_PATTERN),
    Field(description="A DNS label: lower-case letters, digits, hyphens; at most 40."),
]
Duration = Annotated[
    float,
    Strict(),
    Field(gt=0, le=MAX_DURATION, description="Seconds, or a duration as 500ms, 2s, 5m."),
    BeforeValidator(parse_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_DURATION},
                {"type": "string", "pattern": DURATION_PATTERN},
            ]
        }
    ),
]
Span = Annotated[
    float,
    Strict(),
    Field(gt=0, le=MAX_SPAN, description="Seconds, or a duration as 30s, 5m, 6h, 3d, 1w."),
    BeforeValidator(parse_span),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SPAN},
                {"type": "string", "pattern": SPAN_PATTERN},
            ]
        }
    ),
]
Share = Annotated[
    float,
    Strict(),
    Field(ge=0, le=1),
    BeforeValidator(parse_share),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": 1},
                {"type": "string", "pattern": SHARE_PATTERN},
            ]
        }
    ),
]
Objective = Annotated[
    float,
    Strict(),
    Field(gt=0, lt=1),
    BeforeValidator(parse_objective),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                {"type": "string", "pattern": OBJECTIVE_PATTERN},
            ]
        }
    ),
]
Size = Annotated[
    int,
    Strict(),
    Field(gt=0),
    BeforeValidator(parse_size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0},
                {"type": "string", "pattern": SIZE_PATTERN},
            ]
        }
    ),
]
Port = Annotated[int, Strict(), Field(ge=1, le=65535, description="A TCP port.")]
Path = Annotated[
    str,
    StringConstraints(pattern=PATH_PATTERN),
    Field(description="The path of a URL, without its query."),
]
Flag = Annotated[bool, Strict()]
Failures = Annotated[
    int, Strict(), Field(ge=1, description="Consecutive failures that make it unready.")
]


KIND_TAG = "kind:"
"""Prefix of the tags of a union's members, which pydantic puts into the locations of its errors."""


class Spec(BaseModel):
    """An immutable part of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)
