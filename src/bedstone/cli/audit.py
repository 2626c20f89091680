"""`bedstone audit`: who changed what, and when."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import click

from bedstone.cli.options import CONTEXT, output_option, targeted, teach
from bedstone.cli.target import Target
from bedstone.cli.terminal import Terminal

if TYPE_CHECKING:
    from bedstone.model.resources import AuditRecord


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Show the changes that were made through the API, the latest first.",
        ("bedstone audit", "the last 20"),
        ("bedstone audit --limit 500 -o json", "more, for programs"),
    ),
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, metavar="N")
@targeted
@output_option
def audit(*, limit: int, target: Target, as_json: bool) -> None:
    """See `bedstone audit --help`."""
    records = asyncio.run(_audit(target, limit))
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json([record.model_dump(mode="json") for record in records])
        return
    terminal.table(
        ("WHEN", "WHO", "ACTION", "TARGET", "DETAIL"),
        (
            (
                time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.at)),
                record.who,
                record.action,
                record.target,
                record.detail,
            )
            for record in records
        ),
    )


async def _audit(target: Target, limit: int) -> list[AuditRecord]:
    async with target.connect() as client:
        return await client.audit(limit)
