# ruff: noqa: INP001 - scripts, not a package
"""Write the parts of the reference that the code knows best, between their marks in the pages.

    .venv/bin/python docs/generate.py           renew them
    .venv/bin/python docs/generate.py --check   exit 1 and name the pages that are not current

A part begins with `<!-- generated: NAME -->` and ends with `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import click
import grpc

PAGES = Path(__file__).parent / "reference"
_PART = re.compile(r"(<!-- generated: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_WIDTH = 80

_OBJECTS = (
    ("The top level", "", ""),
    ("`gateway`", "Gateway", ""),
    ("`gateway.routes[]`", "Route", ""),
    (
        "`workloads.NAME`",
        "WorkloadSpec",
        "It has `run`, `command`, or `image`, beside which `command` may be.",
    ),
    ("`ready` and `live`", "Probe", "The mapping is of one of the three kinds below."),
    ("A probe over HTTP", "HttpProbe", ""),
    ("A probe of the port", "TcpProbe", ""),
    ("A probe by a command", "ExecProbe", ""),
    ("`workloads.NAME.limits`", "Limits", "`bedstone doctor` says what this machine can."),
    ("`databases.NAME`", "DatabaseSpec", ""),
    ("`transactions`", "TransactionsSpec", ""),
    ("`monitoring`", "MonitoringSpec", ""),
    ("`monitoring.traces`", "TracesSpec", ""),
    ("`monitoring.remote_write[]`", "RemoteWriteSpec", ""),
    ("`monitoring.otlp[]`", "OtlpSpec", ""),
    ("`alerts.NAME`", "Alert", "The mapping is of one of the four kinds below."),
    ("A condition", "ConditionAlert", ""),
    ("A burn rate", "BurnRateAlert", "It has `of`, or both `errors` and `total`."),
    ("`windows[]` of a burn rate", "Window", ""),
    ("A baseline", "BaselineAlert", ""),
    ("A dead man's switch", "DeadManAlert", ""),
    ("`receivers.NAME`", "ReceiverSpec", "`log` cannot be declared: it is always there."),
)
_SHAPES = {
    "Span": "a duration, also in days (`3d`) and weeks",
    **dict.fromkeys(("Gateway", "Limits", "MonitoringSpec", "TracesSpec"), "a mapping"),
    **dict.fromkeys(("WorkloadSpec", "DatabaseSpec", "Alert", "ReceiverSpec"), "a mapping by name"),
    **dict.fromkeys(("RemoteWriteSpec", "OtlpSpec", "Window"), "a list of mappings"),
    "Route": "a list of routes",
}
"""What a key accepts, by the definition that it or its items refer to."""


def manifest() -> Iterator[str]:
    """Every key, from the JSON Schema that `bedstone schema` prints."""
    from bedstone.model.schema import json_schema
    from bedstone.model.spec import UNBUILT

    schema = json_schema()
    for title, name, more in _OBJECTS:
        node = schema["$defs"][name] if name else schema
        yield f"### {title}\n"
        text = " ".join(part for part in (_sentence(node.get("description", "")), more) if part)
        yield f"{text}\n"
        if "properties" in node:
            yield "| key | what it accepts | default | meaning |\n|---|---|---|---|"
            required = node.get("required", ())
            for key, value in node["properties"].items():
                yield _row(key, value, key in required)
            yield ""
    yield "### Keys that are refused\n"
    yield "The design knows them; this version has not built them.\n"
    yield "| key | answer |\n|---|---|"
    for location, reason in UNBUILT.items():
        yield f"| `{'.'.join('NAME' if part == '*' else part for part in location)}` | {reason} |"
    yield "| `workloads.NAME.isolation: enclave` | enclaves are not built yet |"


def _row(key: str, value: dict[str, Any], required: bool) -> str:  # noqa: FBT001 - a column
    default = "required" if required else ""
    if "default" in value and value["default"] not in ("", (), [], {}):
        default = f"`{_literal(value['default'])}`"
    return f"| `{key}` | {_accepts(value)} | {default} | {value.get('description', '')} |"


def _literal(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float() if value == int(value):
            return str(int(value))
        case list():
            return f"[{', '.join(map(_literal, value))}]"
        case _:
            return str(value)


def _accepts(value: dict[str, Any]) -> str:
    from bedstone.model.schema import describe

    target = str(value.get("$ref", "")).rpartition("/")[2]
    item = value.get("additionalProperties", value.get("items"))
    reference = str(item.get("$ref", "")).rpartition("/")[2] if isinstance(item, dict) else ""
    if target in ("Probe", "Duration", "Size"):
        return f"a {target.lower()}"
    if "pattern" in value and "a name of" in describe(value):
        return "a name"
    return _SHAPES.get(target) or _SHAPES.get(reference) or describe(value)


def _sentence(text: str) -> str:
    return " ".join(text.split())


def commands() -> Iterator[str]:
    """What `--help` says, of every command."""
    from bedstone.cli.main import cli

    yield from _help(cli, "bedstone", None)


def _help(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    settings = {**command.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    level = 2 if parent is None else 3
    yield f"{'#' * level} `{context.command_path}`\n"
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield f"```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None  # noqa: S101 - it was just listed
            yield from _help(found, child, context)


def routes() -> Iterator[str]:
    """Every route of the API, with the role that it takes."""
    from fastapi.routing import APIRoute

    from bedstone.server.actions import Actions
    from bedstone.server.alert_routes import alert_routes
    from bedstone.server.api import build_api
    from bedstone.server.console import ConsoleService
    from bedstone.server.console_views import ConsoleViews
    from bedstone.server.lines import Lines
    from bedstone.server.seconds import second_routes
    from bedstone.server.tapping import Tapping

    nothing = cast("Any", None)
    yield "| request | role | body | answer |\n|---|---|---|---|"
    console = ConsoleService(None, "", nothing, nothing)
    views = ConsoleViews(nothing, nothing, nothing, "")
    more = (
        second_routes(nothing, nothing),
        views.add_routes,
        console.add_routes,
        Actions(nothing).add_routes,
        alert_routes(nothing),
        Lines(nothing, nothing).add_routes,
        Tapping(nothing, nothing, nothing).add_routes,
    )
    for route in build_api(nothing, nothing, nothing, nothing, more).routes:
        if not isinstance(route, APIRoute):
            continue
        roles = {getattr(d.call, "__name__", "") for d in route.dependant.dependencies}
        role = next((r for r in ("operator", "reader") if f"_{r}" in roles), "none")
        model = route.body_field.field_info.annotation if route.body_field else None
        body = f"`{getattr(model, '__name__', model)}`" if model else ""
        method = next(iter(route.methods or ()))
        query = [p.alias for p in route.dependant.query_params]
        path = route.path.replace(":path", "") + (f"?{'&'.join(query)}" if query else "")
        yield f"| `{method} {path}` | {role} | {body} | {_answer(route)} |"


def _answer(route: Any) -> str:
    if route.response_model is None:
        return "JSON lines" if "Streaming" in str(route.response_class) else "JSON"
    name = str(getattr(route.response_model, "__name__", route.response_model))
    if name == "list":
        return f"a list of `{route.response_model.__args__[0].__name__}`"
    return "JSON" if name == "dict" else f"`{name}`"


def failures() -> Iterator[str]:
    """The one table of failures."""
    from bedstone import errors

    classes = {
        value.code: value
        for value in vars(errors).values()
        if inspect.isclass(value) and issubclass(value, errors.Error)
    }
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    yield "| code | exit status | HTTP | gRPC | class | meaning |\n|---|---|---|---|---|---|"
    for code, status in errors.EXIT_STATUS.items():
        kind = classes[code]
        meaning = (inspect.getdoc(kind) or "").splitlines()[0]
        if code == errors.INTERNAL:
            meaning = "A bug of ours."
        yield (
            f"| `{code}` | {status} | {errors.HTTP_STATUS[code]} |"
            f" {names[errors.GRPC_STATUS[code]]} | `{kind.__name__}` | {meaning} |"
        )


def transactions() -> Iterator[str]:
    """What can go wrong with a transaction."""
    from bedstone import errors as general
    from bedstone.transactions import errors

    yield "| class | is a | code | meaning |\n|---|---|---|---|"
    for kind in vars(errors).values():
        if not (inspect.isclass(kind) and issubclass(kind, general.Error)):
            continue
        if kind.__module__ == errors.__name__:
            meaning = (inspect.getdoc(kind) or "").splitlines()[0]
            base = kind.__mro__[1].__name__
            yield f"| `{kind.__name__}` | `{base}` | `{kind.code}` | {meaning} |"


def statements() -> Iterator[str]:
    """What automatic mode refuses by its first word."""
    from bedstone.transactions import statements

    by_reason: dict[str, list[str]] = {}
    for word, reason in statements.REASONS.items():
        by_reason.setdefault(reason, []).append(word)
    yield "| refused | why |\n|---|---|"
    for reason, words in by_reason.items():
        yield f"| {', '.join(f'`{word}`' for word in words)} | {reason} |"
    words = sorted(statements.SCHEMA_CHANGES)
    yield f"| {', '.join(f'`{word}`' for word in words)} | it changes the schema |"


def metrics() -> Iterator[str]:
    """Every metric of Bedstone's own."""
    from bedstone.telemetry.names import CATALOGUE

    yield "| metric | kind | labels | meaning |\n|---|---|---|---|"
    for metric in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        kind = f"{metric.kind}, {metric.unit}" if metric.unit else metric.kind
        yield f"| `{metric.name}` | {kind} | {labels} | {metric.help} |"


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "manifest": manifest,
    "commands": commands,
    "routes": routes,
    "failures": failures,
    "transactions": transactions,
    "statements": statements,
    "metrics": metrics,
}


def renewed(text: str) -> str:
    """A page with its generated parts made anew."""

    def part(found: re.Match[str]) -> str:
        made = "\n".join(PARTS[found[2]]()).strip("\n")
        return f"{found[1]}\n{made}\n\n{found[3]}"

    return _PART.sub(part, text)


def main(arguments: list[str]) -> int:
    """Renew or check; returns the exit status."""
    stale = []
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text()
        new = renewed(text)
        if new != text:
            stale.append(page.name)
            if "--check" not in arguments:
                page.write_text(new)
    for name in stale:
        done = "is not current: run docs/generate.py" if "--check" in arguments else "renewed"
        sys.stdout.write(f"reference/{name} {done}\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
