"""`bedstone get` and `bedstone delete`: the resources behind an app, as the store has them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from bedstone.cli.options import CONTEXT, output_option, targeted, teach
from bedstone.cli.progress import change_lines
from bedstone.cli.target import Target
from bedstone.cli.terminal import Terminal, clean

if TYPE_CHECKING:
    from bedstone.model.api import ApplyResult, ResourceEntry, ResourceList

KINDS = ("app", "workload", "revision", "instance", "database", "node", "route", "condition")
_SHOWN = {
    "app": ("generation", "root", "deleting"),
    "workload": ("replicas", "isolation", "protocol", "uses"),
    "revision": ("generation", "source"),
    "instance": ("node", "revision", "desired", "status.phase"),
    "database": ("engine", "node", "users", "status.phase"),
    "node": ("address", "proxy", "enforced"),
    "route": ("path", "host", "to"),
    "condition": ("severity", "message", "hint"),
}
"""Which fields a table shows, by kind; `status.phase` is `phase` in `status`."""


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Show the resources behind an app.\n\n"
        f"KIND is one of {', '.join(KINDS)}; NAME is the resource's path. Without a name, all of "
        "the kind are listed; a name that ends in a slash lists what is below it.",
        ("bedstone get instance", "every instance"),
        ("bedstone get instance bank/", "those of app bank"),
        ("bedstone get workload bank/accounts", "one workload, whole"),
        ("bedstone get app bank -o json", "for programs"),
    ),
)
@click.argument("kind", type=click.Choice(KINDS), metavar="KIND")
@click.argument("name", required=False, metavar="[NAME]")
@targeted
@output_option
def get(*, kind: str, name: str | None, target: Target, as_json: bool) -> None:
    """See `bedstone get --help`."""
    terminal = Terminal(answers=as_json)
    if name and not name.endswith("/"):
        entry = asyncio.run(_one(target, kind, name))
        if as_json:
            terminal.json(entry.model_dump(mode="json"))
        else:
            for line in document(entry):
                terminal.answer(line)
        return
    found = asyncio.run(_list(target, kind, name or ""))
    if as_json:
        terminal.json(found.model_dump(mode="json"))
    elif found.items:
        fields = _SHOWN[kind]
        names = (field.rpartition(".")[2].upper() for field in fields)
        header = ("NAME", "VERSION", *names)
        terminal.table(header, (_row(entry, fields) for entry in found.items))
    else:
        terminal.complain(f"there is no {kind}{f' below {name}' if name else ''}")


async def _one(target: Target, kind: str, name: str) -> ResourceEntry:
    async with target.connect() as client:
        return await client.resource(kind, name)


async def _list(target: Target, kind: str, prefix: str) -> ResourceList:
    async with target.connect() as client:
        return await client.resources(kind, prefix)


def _row(entry: ResourceEntry, fields: tuple[str, ...]) -> tuple[str, ...]:
    values = (cell(_found(entry.value, field)) for field in fields)
    return (entry.name, str(entry.revision), *values)


def _found(value: Any, field: str) -> Any:
    """What a field holds; None where there is none on the way to it."""
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def cell(value: Any) -> str:
    """A value in a table."""
    match value:
        case None | "" | [] | {}:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list():
            return ",".join(map(str, value))
        case _:
            return clean(str(value))


def document(entry: ResourceEntry) -> list[str]:
    """One resource as YAML, which reads like the manifest that it comes from."""
    import yaml

    text = yaml.safe_dump(entry.value, sort_keys=False, allow_unicode=True)
    return [f"# {entry.kind} {entry.name}, version {entry.revision}", *text.splitlines()]


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Delete a resource.\n\n"
        "An app is drained and stopped, its databases' data stays; an instance is drained, and "
        "replaced if its workload still wants it.",
        ("bedstone delete instance bank/default/accounts/accounts-3fa9c-0", "replace one instance"),
        ("bedstone delete app bank", "end an app; the server goes on"),
    ),
)
@click.argument("kind", type=click.Choice(KINDS), metavar="KIND")
@click.argument("name")
@targeted
@output_option
def delete(*, kind: str, name: str, target: Target, as_json: bool) -> None:
    """See `bedstone delete --help`."""
    terminal = Terminal(answers=as_json)
    result = asyncio.run(_delete(target, kind, name))
    if as_json:
        terminal.json(result.model_dump(mode="json"))
        return
    for line in change_lines(result.changes):
        terminal.say(line)
    terminal.say(f"{kind} {name}: deleted")


async def _delete(target: Target, kind: str, name: str) -> ApplyResult:
    async with target.connect() as client:
        if kind == "app":
            return await client.delete_app(name)
        return await client.delete_resource(kind, name)
