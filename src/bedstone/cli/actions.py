"""`bedstone scale`, `rollback`, `undo`, `changes`: what is done to a running app, and by whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from bedstone.cli.apply import feed_of, settle, show_result
from bedstone.cli.options import CONTEXT, app_option, output_option, targeted, teach, timeout_option
from bedstone.cli.progress import change_lines
from bedstone.cli.target import Target, choose_app
from bedstone.cli.terminal import Terminal, clean

if TYPE_CHECKING:
    from bedstone.client.api import Client
    from bedstone.model.api import ApplyResult
    from bedstone.model.monitoring import ChangeList, ChangeRecord

Act = Callable[["Client", str], Awaitable["ApplyResult"]]
_wait_option = click.option("--wait", is_flag=True, help="Return when all of it is ready.")


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Run another number of a workload's instances.\n\n"
        "It stands until a manifest is applied that says another number than the present one.",
        ("bedstone scale accounts 4", "run four"),
        ("bedstone scale accounts 0 --wait", "none; return when they have stopped"),
    ),
)
@click.argument("workload")
@click.argument("number", type=click.IntRange(0, 1000), metavar="N")
@_wait_option
@timeout_option
@app_option
@targeted
@output_option
def scale(
    *,
    workload: str,
    number: int,
    wait: bool,
    timeout: float,
    app: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone scale --help`."""

    async def act(client: Client, name: str) -> ApplyResult:
        from bedstone.model.monitoring import ScaleRequest

        return await client.scale(name, workload, ScaleRequest(replicas=number))

    _run(act, target, app, timeout if wait else None, as_json=as_json)


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Declare a workload again as an earlier generation of the app did.\n\n"
        "It restores the declaration (command, environment, uses, limits, probes …), not the "
        "number of instances, and no source file: revisions run what is in their directory.",
        ("bedstone rollback accounts", "as it was declared before"),
        ("bedstone rollback accounts --to 7", "as in generation 7; see bedstone changes"),
    ),
)
@click.argument("workload")
@click.option("--to", type=click.IntRange(1), metavar="GENERATION", help="Which one.")
@_wait_option
@timeout_option
@app_option
@targeted
@output_option
def rollback(
    *,
    workload: str,
    to: int | None,
    wait: bool,
    timeout: float,
    app: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone rollback --help`."""

    async def act(client: Client, name: str) -> ApplyResult:
        from bedstone.model.monitoring import RollbackRequest

        return await client.roll_back(name, workload, RollbackRequest(generation=to))

    _run(act, target, app, timeout if wait else None, as_json=as_json)


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Declare the app again as it was before a generation.\n\n"
        "Generations after it are undone too. Source files and data stay as they are.",
        ("bedstone changes", "which generations there are"),
        ("bedstone undo 12", "as it was at generation 11"),
    ),
)
@click.argument("generation", type=click.IntRange(1))
@_wait_option
@timeout_option
@app_option
@targeted
@output_option
def undo(
    *,
    generation: int,
    wait: bool,
    timeout: float,
    app: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone undo --help`."""

    async def act(client: Client, name: str) -> ApplyResult:
        from bedstone.model.monitoring import UndoRequest

        return await client.undo(name, UndoRequest(generation=generation))

    _run(act, target, app, timeout if wait else None, as_json=as_json)


def _run(
    act: Act, target: Target, named: str | None, timeout: float | None, *, as_json: bool
) -> None:
    terminal = Terminal(answers=as_json)
    result = asyncio.run(_act(act, target, terminal, named, timeout, as_json=as_json))
    if as_json:
        terminal.json(result.model_dump(mode="json"))


async def _act(
    act: Act,
    target: Target,
    terminal: Terminal,
    named: str | None,
    timeout: float | None,
    *,
    as_json: bool,
) -> ApplyResult:
    async with target.connect() as client:
        app = await choose_app(client, target, named)
        feed = await feed_of(client, terminal, app) if timeout is not None else None
        result = await act(client, app)
        if not as_json:
            show_result(terminal, result, dry_run=False)
        if feed is not None and timeout is not None:
            await settle(client, feed, result, timeout)
    return result


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Show who changed what of the apps, and the difference that it made, the latest first.",
        ("bedstone changes", "the last 20"),
        ("bedstone changes --app bank --limit 200", "more, of one app"),
        ("bedstone undo 12", "declare the app again as it was before generation 12"),
    ),
)
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, metavar="N")
@app_option
@targeted
@output_option
def changes(*, limit: int, app: str | None, target: Target, as_json: bool) -> None:
    """See `bedstone changes --help`."""
    found = asyncio.run(_changes(target, app or "", limit))
    terminal = Terminal(answers=True)
    if as_json:
        terminal.json(found.model_dump(mode="json"))
        return
    for record in found.items:
        terminal.answer(headline(record))
        for line in change_lines(record.changes):
            terminal.answer(f"  {line.lstrip()}")
    if not found.items:
        terminal.complain("nothing was changed yet")


async def _changes(target: Target, app: str, limit: int) -> ChangeList:
    async with target.connect() as client:
        return await client.changes(app, limit=limit)


def headline(record: ChangeRecord) -> str:
    """Who, when and what, in one line."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.at))
    line = f"{when}  {record.who}  {record.action} {record.target}"
    if record.generation is not None:
        line += f"  → generation {record.generation}"
    if record.detail and not record.changes:
        line += f"  {record.detail}"
    return clean(line)
