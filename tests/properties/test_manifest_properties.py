"""The parser against the published schema, and reading against writing."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bedstone.model.fields import KIND_TAG, NAME_PATTERN
from bedstone.model.interpolation import escape, interpolate, references
from bedstone.model.manifest import parse_manifest
from bedstone.model.monitoring_spec import alert_kind
from bedstone.model.positions import (
    ManifestError,
    Problem,
    format_location,
    parse_location,
    read_document,
)
from bedstone.model.rules import url_variable
from bedstone.model.schema import json_schema
from bedstone.model.shape import check_shape
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.model.units import format_duration, format_size, parse_duration, parse_size

# Text without line ends: Python's `$` matches before one, ECMA-262's and the parser's do not.
words = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=6)
names = st.from_regex(NAME_PATTERN, fullmatch=True)
numbers = st.integers(-2, 5) | st.sampled_from(
    [0.0, 0.5, 1.0, 2.0, 1e-9, 65535, 65536, 1000, 1001, 86400, 86400.5, 1e20]
)
almost = st.sampled_from(
    [
        "5s",
        "0s",
        "1.5m",
        "00.0h",
        "9.s",
        "256MiB",
        "0KB",
        "1 GB",
        "tcp",
        "/x",
        "/",
        "x:y",
        "process",
    ]
)
scalars = st.one_of(numbers, st.booleans(), words, names, almost)
junk = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=4,
)

durations = st.sampled_from(["5s", "500ms", 1, 0.5, 86400])
timing = {"interval": durations, "timeout": durations, "failures": st.integers(1, 5)}
commands = st.lists(words, min_size=1, max_size=2)
probes = st.one_of(
    st.sampled_from(["tcp", "/", "/x"]),
    st.fixed_dictionaries({"path": st.just("/x")}, optional=timing),
    st.fixed_dictionaries({}, optional={"tcp": st.sampled_from([True]), **timing}),
    st.fixed_dictionaries({"command": commands}, optional=timing),
)
limits = {
    "memory": st.sampled_from([1, "256MiB", "1.5GB"]),
    "cpu": st.sampled_from([0.5, 2]),
    "files": st.integers(1, 5),
    "processes": st.integers(1, 5),
}
common = {
    "env": st.dictionaries(words, words, max_size=2),
    "writes": st.lists(words, max_size=2),
    "prepare": commands,
    "replicas": st.sampled_from([0, 1.0, 1000]),
    "protocol": st.sampled_from(["http", "http2", "grpc"]),
    "uses": st.lists(names, max_size=2),
    "ready": probes,
    "live": probes,
    "start_timeout": durations,
    "timeout": durations,
    "limits": st.fixed_dictionaries({}, optional=limits),
}
boxes = st.sampled_from(["container", "gvisor", "microvm"])
own = {"path": words, "python": words, "isolation": st.just("process") | boxes, **common}
workloads = st.one_of(
    st.fixed_dictionaries({"run": st.just("a.b:c")}, optional=own),
    st.fixed_dictionaries({"command": commands}, optional=own),
    st.fixed_dictionaries(
        {"image": st.just("x:1")}, optional={**common, "command": commands, "isolation": boxes}
    ),
)
routes = st.fixed_dictionaries(
    {"to": names},
    optional={
        "path": st.just("/x"),
        "strip": st.booleans(),
        "host": words,
        "timeout": durations,
    },
)
gateways = st.fixed_dictionaries(
    {"routes": st.lists(routes, min_size=1, max_size=2)},
    optional={"port": st.sampled_from([1, 8080, 65535]), "address": words},
)
databases = st.fixed_dictionaries({}, optional={"engine": st.just("postgres"), "url": words})
expressions = st.sampled_from(["x", "x > 5", "rate(x[5m])"])
spans = durations | st.sampled_from(["3d", "1w"])
told = {
    "severity": st.sampled_from(["page", "ticket", "info"]),
    "summary": words,
    "labels": st.dictionaries(st.sampled_from(["a", "b_c"]), words, max_size=2),
    "group_by": st.lists(st.sampled_from(["a", "rule"]), max_size=2),
}
windows = st.fixed_dictionaries(
    {"long": spans, "short": spans, "factor": st.sampled_from([1, 14.4])},
    optional={"severity": told["severity"]},
)
burning = {
    "period": spans,
    "windows": st.lists(windows, max_size=2),
    **told,
}
objectives = st.sampled_from(["99.9%", "50%", 0.5])
alerts = st.one_of(
    st.fixed_dictionaries({"when": expressions}, optional={"for": durations, **told}),
    st.fixed_dictionaries({"objective": objectives, "of": names}, optional=burning),
    st.fixed_dictionaries(
        {"objective": objectives, "errors": st.just("x"), "total": st.just("y")}, optional=burning
    ),
    st.fixed_dictionaries(
        {"series": expressions},
        optional={
            "season": st.sampled_from(["1d", "1w"]),
            "deviates": st.sampled_from([3, 0.5, "50%"]),
            "direction": st.sampled_from(["above", "below", "both"]),
            "for": durations,
            **told,
        },
    ),
    st.fixed_dictionaries({"expects": expressions}, optional={"within": durations, **told}),
)
urls = st.sampled_from(["http://h", "https://h:1/x?y", "${env.X:-http://h}"])
headers = st.dictionaries(words, words, max_size=2)
receivers = st.fixed_dictionaries(
    {"webhook": urls},
    optional={
        "headers": headers,
        "secret": words,
        "severities": st.lists(told["severity"], max_size=2),
        "group_wait": durations,
        "repeat": durations,
        "resolved": st.booleans(),
    },
)
exports = st.lists(
    st.fixed_dictionaries({"url": urls}, optional={"headers": headers, "bearer": words}), max_size=1
)
monitoring = st.fixed_dictionaries(
    {},
    optional={
        "traces": st.fixed_dictionaries(
            {}, optional={"slow": durations, "share": st.sampled_from([0, 0.1, 1, "10%", "100%"])}
        ),
        "remote_write": exports,
        "otlp": exports,
        "disabled": st.lists(st.just("disk-almost-full"), max_size=1),
    },
)
right = st.fixed_dictionaries(
    {"app": names, "workloads": st.dictionaries(names, workloads, min_size=1, max_size=2)},
    optional={
        "gateway": gateways,
        "databases": st.dictionaries(names, databases, max_size=2),
        "monitoring": monitoring,
        "alerts": st.dictionaries(names, alerts, max_size=2),
        "receivers": st.dictionaries(names, receivers, max_size=1),
    },
)
keys = words | st.sampled_from(
    [
        *("run", "command", "path", "tcp", "image", "per_cell", "cells", "replica", "standby"),
        *("url", "when", "objective", "of", "errors", "total", "series", "expects", "for", "for_"),
    ]
)


def containers(data: Any) -> list[Any]:
    """The mappings and lists in some data, itself included."""
    match data:
        case dict():
            return [data, *(found for value in data.values() for found in containers(value))]
        case list():
            return [data, *(found for value in data for found in containers(value))]
        case _:
            return []


@st.composite
def manifests(draw: st.DrawFn) -> Any:
    """A manifest whose shape is right, but for at most two changes anywhere in it."""
    data = draw(right)
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.sampled_from(containers(data)))
        present = list(place) if isinstance(place, dict) else list(range(len(place)))
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace" if present:
                place[draw(st.sampled_from(present))] = draw(junk)
            case "remove" if present:
                del place[draw(st.sampled_from(present))]
            case _ if isinstance(place, dict):
                place[draw(keys)] = draw(junk)
            case _:
                place.append(draw(junk))
    return data


@cache
def validator() -> Any:
    return jsonschema.Draft202012Validator(json_schema())


def outcome(text: str | bytes) -> tuple[AppSpec | None, tuple[Problem, ...]]:
    """What a text declares, or its mistakes."""
    try:
        return parse_manifest(text, "m.yaml", environ={}).spec, ()
    except ManifestError as error:
        return None, error.problems


def entries(data: Any, key: str) -> list[dict[str, Any]]:
    """The mappings in a mapping."""
    named = data.get(key) if isinstance(data, dict) else None
    each = named.values() if isinstance(named, dict) else ()
    return [entry for entry in each if isinstance(entry, dict)]


def says_one_of_two_ways(data: Any) -> bool:
    """The structural rules that the parser checks with those that span parts.

    An image has a command of its own, which another may take the place of.
    """
    return all(
        "run" not in w if "image" in w else ("run" in w) != ("command" in w)
        for w in entries(data, "workloads")
    ) and all(
        ("of" in a) != ("errors" in a) and ("errors" in a) == ("total" in a)
        for a in entries(data, "alerts")
        if alert_kind(a) == KIND_TAG + "burn-rate"
    )


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(manifests())
def test_parser_and_schema_accept_the_same(data: Any) -> None:
    document = read_document(json.dumps(data), "m.yaml")
    assert document.problems == () or not isinstance(data, dict)
    spec, problems = check_shape(document)
    accepted = spec is not None and not problems and says_one_of_two_ways(data)
    errors = [error.message for error in validator().iter_errors(data)]
    assert accepted == (not errors), (problems, errors)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(manifests())
def test_every_mistake_has_a_place_in_the_text_and_words_for_people(data: Any) -> None:
    text = json.dumps(data, indent=1)
    lines = text.count("\n") + 1
    spec, problems = outcome(text)
    assert (spec is None) == bool(problems)
    for problem in problems:
        assert 1 <= problem.position.line <= lines
        assert problem.position.column >= 1
        assert "\n" not in str(problem)
        assert "input should" not in problem.message.lower()
    if spec is not None:
        assert AppSpec.model_validate_json(spec.model_dump_json(exclude_defaults=True)) == spec


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_a_manifest_or_has_mistakes_nothing_else(text: str | bytes) -> None:
    spec, problems = outcome(text)
    assert (spec is None) == bool(problems)
    assert all(str(problem).startswith("m.yaml:") for problem in problems)


@given(st.text(max_size=40))
def test_escaped_text_is_itself(text: str) -> None:
    assert references(escape(text)) == ()
    assert interpolate(escape(text), lambda _: None) == text


@given(st.floats(0.001, 86400))
def test_a_written_duration_reads_back(seconds: float) -> None:
    rounded = float(f"{seconds:.6f}")
    assert abs(parse_duration(format_duration(rounded)) - rounded) < 1e-6


@given(st.integers(1, 2**50))
def test_a_written_size_reads_back(size: int) -> None:
    text = format_size(size)
    assert (int(text) if text.isdigit() else parse_size(text)) == size


@given(names, names)
def test_two_names_never_share_a_variable(one: str, other: str) -> None:
    assert (url_variable(one) == url_variable(other)) == (one == other)


@given(st.lists(names | st.integers(0, 99), max_size=5).filter(lambda p: not p or p[0] != 0))
def test_locations_read_back(parts: list[str | int]) -> None:
    assert parse_location(format_location(tuple(parts))) == tuple(parts)


@given(st.builds(WorkloadSpec, command=st.just(("x",)), replicas=st.integers(0, 1000)))
def test_a_workload_survives_json(workload: WorkloadSpec) -> None:
    assert WorkloadSpec.model_validate_json(workload.model_dump_json()) == workload
