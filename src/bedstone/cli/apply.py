"""`bedstone apply` and `bedstone restart`: change what runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bedstone.cli.options import (
    CONTEXT,
    app_option,
    gateway_port_option,
    output_option,
    targeted,
    teach,
    timeout_option,
)
from bedstone.cli.progress import change_lines
from bedstone.cli.target import STATE_NAME, Target, choose_app
from bedstone.cli.terminal import Terminal, paint

if TYPE_CHECKING:
    from bedstone.cli.following import Feed
    from bedstone.client.api import Client
    from bedstone.model.api import ApplyResult
    from bedstone.model.manifest import Manifest


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Make a manifest the running app's, and show the difference it makes.",
        ("bedstone apply -f bedstone.yaml", "apply it; instances roll"),
        ("bedstone apply -f bedstone.yaml --dry-run", "only show the difference"),
        ("bedstone apply -f bedstone.yaml --wait", "return when all of it is ready"),
        ("bedstone apply -f bedstone.yaml --gateway-port 9000", "as `up` was started"),
    ),
)
@click.option(
    "-f",
    "--file",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The manifest.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing.")
@click.option("--wait", is_flag=True, help="Return when all of it is ready.")
@timeout_option
@gateway_port_option
@targeted
@output_option
def apply(
    *,
    file: Path,
    dry_run: bool,
    wait: bool,
    timeout: float,
    gateway_port: int | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone apply --help`."""
    from bedstone.cli.request import load

    manifest = load(file, gateway_port)
    if target.url is None and target.state_dir is None:
        target = Target(file, manifest.root / STATE_NAME)
    options = (dry_run, wait, timeout, as_json)
    asyncio.run(_apply(manifest, target, Terminal(answers=as_json), options))


async def _apply(
    manifest: Manifest, target: Target, terminal: Terminal, options: tuple[bool, bool, float, bool]
) -> None:
    from bedstone.cli.request import request_of

    dry_run, wait, timeout, as_json = options
    request = request_of(manifest)
    async with target.connect() as client:
        feed = await feed_of(client, terminal, manifest.spec.app) if wait else None
        result = await (client.plan(request) if dry_run else client.apply(request))
        if not as_json:
            show_result(terminal, result, dry_run=dry_run)
        if feed is not None and not dry_run:
            await settle(client, feed, result, timeout)
    if as_json:
        terminal.json(result.model_dump(mode="json"))


def show_result(terminal: Terminal, result: ApplyResult, *, dry_run: bool) -> None:
    """The difference, and whether it was made."""
    if not result.changes:
        terminal.say(f"{result.app}: nothing to change (generation {result.generation})")
        return
    for line in change_lines(result.changes):
        terminal.say(line)
    if dry_run:
        terminal.say("nothing was changed: this was a dry run")
    else:
        terminal.say(f"{result.app}: applied (generation {result.generation})")
    for note in result.notes:
        terminal.say(f"note: {note}")


async def settle(client: Client, feed: Feed, result: ApplyResult, timeout: float) -> None:
    """Show an app, or the feed's workload, becoming ready; fail if it does not."""
    from bedstone.cli.following import statuses, until_ready

    async with statuses(client, result.app, lambda: True) as following:
        await until_ready(client, following, feed, result.generation, timeout)
    feed.terminal.say(f"{feed.workload or result.app} is {paint('ready')}")


async def feed_of(
    client: Client, terminal: Terminal, app: str, workload: str | None = None
) -> Feed:
    """What shows an app's way on from what it is now, or one workload's."""
    from bedstone.cli.following import Feed, known

    feed = Feed(terminal, workload=workload)
    if current := await known(client, app):
        feed.prime(current)
    return feed


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Replace a workload's instances one by one, with no failed request.",
        ("bedstone restart accounts", "return at once"),
        ("bedstone restart accounts --wait", "return when the new ones are ready"),
    ),
)
@click.argument("workload")
@click.option("--wait", is_flag=True, help="Return when the new instances are ready.")
@timeout_option
@app_option
@targeted
@output_option
def restart(
    *,
    workload: str,
    wait: bool,
    timeout: float,
    app: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone restart --help`."""
    terminal = Terminal(answers=as_json)
    result = asyncio.run(_restart(target, terminal, (app, workload), timeout if wait else None))
    if as_json:
        terminal.json(result.model_dump(mode="json"))


async def _restart(
    target: Target, terminal: Terminal, what: tuple[str | None, str], timeout: float | None
) -> ApplyResult:
    named, workload = what
    async with target.connect() as client:
        app = await choose_app(client, target, named)
        feed = await feed_of(client, terminal, app, workload) if timeout is not None else None
        result = await client.restart(app, workload)
        terminal.say(f"{workload} is being restarted")
        if feed is not None and timeout is not None:
            await settle(client, feed, result, timeout)
    return result
