"""`bedstone tap`: requests as they happen."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import click

from bedstone.cli.options import CONTEXT, app_option, output_option, targeted, teach
from bedstone.cli.target import Target, choose_app
from bedstone.cli.terminal import Terminal, clean, paint
from bedstone.errors import UnavailableError

if TYPE_CHECKING:
    from bedstone.model.monitoring import TapRecord

_RETRY: Final = 0.2
_NAMES: Final = 24
"""Columns of `CALLER -> CALLEE`."""


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Show the app's requests as they happen, until Ctrl-C.\n\n"
        "Each request is shown once, as its caller's proxy saw it. No bodies, queries or headers "
        "are shown. What comes faster than it can be read is left out, and counted.",
        ("bedstone tap", "all requests of the app"),
        ("bedstone tap accounts --errors", "failed ones from or to accounts"),
        ("bedstone tap --share 0.1 -o json", "a tenth of them, one JSON object a line"),
    ),
)
@click.argument("workload", required=False, default="")
@click.option("--errors", is_flag=True, help="Failed requests only.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    metavar="SHARE",
    help="Of the requests, 0 to 1; failed and slow ones always come. Default: 1.",
)
@click.option("--hops", is_flag=True, help="Each request at every proxy that it passes.")
@app_option
@targeted
@output_option
def tap(
    *,
    workload: str,
    errors: bool,
    share: float,
    hops: bool,
    app: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone tap --help`."""
    show = Show(as_json=as_json, hops=hops)
    with contextlib.suppress(KeyboardInterrupt):  # that is how it ends
        asyncio.run(_tap(target, show, app, workload, errors=errors, share=share))


class Show:
    """How a record is written."""

    def __init__(self, *, as_json: bool, hops: bool) -> None:
        self._terminal = Terminal(answers=as_json)
        self._as_json = as_json
        self._hops = hops
        self.records = 0

    def record(self, record: TapRecord) -> None:
        """Write one, if it is wanted."""
        self.records += 1
        if record.left_out:
            self._terminal.complain(f"{record.left_out} requests came too fast and are left out")
        if not self._hops and record.side == "inbound":
            return  # its caller's proxy has told it
        text = record.model_dump_json() if self._as_json else line(record, hops=self._hops)
        self._terminal.answer(text)


def line(record: TapRecord, *, hops: bool) -> str:
    """A record as people read it."""
    at = time.strftime("%H:%M:%S", time.localtime(record.time))
    ends = f"{record.source or '?'} → {record.target or '?'}"
    state = "error" if record.kind else "warning" if record.status >= 400 else ""
    status = str(record.status) if record.status else "—"
    parts = [
        f"{at}.{int(record.time % 1 * 1000):03d}",
        *([record.side.ljust(8)] if hops else []),
        clean(ends).ljust(_NAMES),
        paint(status.rjust(3), state),
        f"{record.seconds * 1000:8.1f} ms",
        clean(f"{record.method} {record.path}"),
    ]
    if record.kind:
        parts.append(paint(record.kind, "error"))
    if record.trace:
        parts.append(f"trace={clean(record.trace)}")
    return "  ".join(parts)


async def _tap(
    target: Target, show: Show, app: str | None, workload: str, *, errors: bool, share: float
) -> None:
    """Show what comes; go on after the server's restart."""
    while True:
        try:
            async with target.connect("asking the server") as client:
                name = await choose_app(client, target, app)
                records = client.tap(name, workload=workload, errors=errors, share=share)
                async with aclosing(records):
                    async for record in records:
                        show.record(record)
        except UnavailableError:
            if not show.records or target.live() is None:
                raise
        await asyncio.sleep(_RETRY)
