"""`bedstone top`: what happens, each second.

Rules:
- A second is shown when the server says that it has ended, so nothing is shown twice or too early.
- The screen is replaced whole, by what differs from the one before; on leaving, the terminal is as
  it was. Where it is no terminal, one second is written and that is all.
- A server that is away is waited for; what is shown says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

import click

from bedstone.cli.options import CONTEXT, output_option, targeted, teach
from bedstone.cli.target import Target
from bedstone.cli.terminal import Terminal
from bedstone.cli.top_view import ORDERS, view
from bedstone.errors import UnavailableError

if TYPE_CHECKING:
    from bedstone.client.api import Client
    from bedstone.model.monitoring import Overview, WorkloadLine

_RETRY = 0.5
_KEYS = "q quit   s sort by {order}"
_SORTS = ("name", *ORDERS)


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Show what happens, each second: rates, errors, latencies, processor and memory.",
        ("bedstone top", "until q is pressed; s sorts by the next column"),
        ("bedstone top --once", "the last second, and end"),
        ("bedstone top -o json", "one JSON object a second, for programs"),
    ),
)
@targeted
@click.option("--once", is_flag=True, help="Show the last second and end.")
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="name",
    show_default=True,
    help="What comes first.",
)
@output_option
def top(*, target: Target, once: bool, sort: str, as_json: bool) -> None:
    """See `bedstone top --help`."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_top(target, once=once, sort=sort, as_json=as_json))


async def _top(target: Target, *, once: bool, sort: str, as_json: bool) -> None:
    terminal = Terminal(answers=as_json)
    live = sys.stdout.isatty() and sys.stdin.isatty()
    async with target.connect() as client:
        if as_json or once or not live:
            while True:
                overview, workloads = await _read(client)
                if as_json:
                    terminal.answer(_json(overview, workloads))
                else:
                    for line in view(overview, workloads, sort):
                        terminal.answer(line)
                if once or not as_json:
                    return
                await _next(client)
        else:
            await _Screen(client, sort).run()


def _json(overview: Overview, workloads: tuple[WorkloadLine, ...]) -> str:
    """One second on one line."""
    value = {
        "overview": overview.model_dump(mode="json"),
        "workloads": [line.model_dump(mode="json") for line in workloads],
    }
    return json.dumps(value, ensure_ascii=False)


async def _read(client: Client) -> tuple[Overview, tuple[WorkloadLine, ...]]:
    overview, workloads = await asyncio.gather(client.overview(), client.workloads())
    return overview, workloads.items


async def _next(client: Client) -> None:
    """Wait for the end of the second."""
    async with aclosing(client.ticks()) as ticks:
        await anext(ticks)


class _Screen:
    """The live view."""

    def __init__(self, client: Client, sort: str) -> None:
        self._client = client
        self._draw: Callable[[], None] = lambda: None
        self._sort = sort
        self._lines = ["waiting for the first second"]
        self._last: tuple[Overview, tuple[WorkloadLine, ...]] | None = None
        self._quit = asyncio.Event()

    async def run(self) -> None:
        """Show each second until q is pressed."""
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(highlight=False)
        with Live(console=console, screen=True, auto_refresh=False) as shown, _keys(self._pressed):

            def draw() -> None:
                height, width = console.height, console.width
                keys = _KEYS.format(order=self._sort)
                body = [Text.from_ansi(line) for line in self._lines[: height - 2]]
                body += [Text("")] * (height - 2 - len(body)) + [Text(""), Text(keys, "dim")]
                for line in body:
                    line.truncate(width, overflow="ellipsis")
                shown.update(Text("\n").join(body[:height]), refresh=True)

            self._draw = draw
            draw()
            reading = asyncio.ensure_future(self._follow())
            quitting = asyncio.ensure_future(self._quit.wait())
            try:
                await asyncio.wait((reading, quitting), return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
            finally:
                reading.cancel()
                quitting.cancel()
                await asyncio.gather(reading, quitting, return_exceptions=True)

    def _show(self) -> None:
        if self._last is not None:
            self._lines = view(*self._last, self._sort)
        self._draw()

    def _pressed(self, key: str) -> None:
        match key:
            case "q" | "Q" | "\x03":
                self._quit.set()
            case "s":
                self._sort = _SORTS[(_SORTS.index(self._sort) + 1) % len(_SORTS)]
                self._show()

    async def _look(self) -> None:
        self._last = await _read(self._client)
        self._show()

    async def _follow(self) -> None:
        while True:
            try:
                async with aclosing(self._client.ticks()) as ticks:
                    await self._look()
                    async for _ in ticks:
                        await self._look()
            except UnavailableError as error:
                self._last = None
                self._lines = [f"the server does not answer: {error.message}"]
                self._show()
            await asyncio.sleep(_RETRY)


@contextmanager
def _keys(pressed: Callable[[str], None]) -> Iterator[None]:
    """Call for each key, without an Enter; the terminal is as before afterwards."""
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()
    tty.setcbreak(descriptor)

    def read() -> None:
        for key in os.read(descriptor, 64).decode(errors="replace"):
            pressed(key)

    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
