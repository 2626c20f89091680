"""`bedstone logs`: what a workload or an engine wrote."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import dropwhile
from typing import TYPE_CHECKING

import click

from bedstone.cli.log_lines import readable
from bedstone.cli.options import CONTEXT, app_option, output_option, targeted, teach
from bedstone.cli.target import Target, choose_app
from bedstone.cli.terminal import Terminal, clean
from bedstone.errors import NotFoundError, UnavailableError
from bedstone.telemetry.lines import LEVELS, Filter

if TYPE_CHECKING:
    from bedstone.client.api import Client
    from bedstone.model.messages import LogLine

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RETRY = 0.2
_MOST = 10_000
"""Lines that the server gives at once."""
_OWN = ("server", "node", "supervisor")


class Ago(click.ParamType[float]):
    """A duration: `90`, `90s`, `5m`, `2h`, `1d`, in seconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse it."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h|d)?", str(value))
        if found is None:
            self.fail(f"got {value!r}, expected a duration such as 30s, 5m or 2h", param, ctx)
        return float(found[1]) * _UNITS[found[2] or "s"]


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Show what a workload's instances wrote, or an engine (engine:NAME).\n\n"
        "On a terminal, lines that are JSON objects are shown as people read them; in a pipe all "
        "is as it was written. Bedstone's own are engine:server and engine:node.",
        ("bedstone logs accounts", "the last 200 lines"),
        ("bedstone logs accounts -f", "and what follows"),
        ("bedstone logs accounts --since 5m", "all of the last five minutes"),
        ("bedstone logs engine:envoy --tail 20", "of the proxy"),
        ("bedstone logs accounts --level warning", "what is at least a warning"),
        ("bedstone logs --trace 4bf92f3577b34da6a3ce929d0e0e4736", "of one request, in all"),
    ),
)
@click.argument("workload", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("--since", type=Ago(), metavar="DURATION", help="How far back: 30s, 5m, 2h, 1d.")
@click.option(
    "--tail",
    type=click.IntRange(min=0),
    metavar="N",
    help="At most so many of the last lines; default: 200, or all with --since.",
)
@click.option("--trace", default="", metavar="ID", help="Only lines that name this trace.")
@click.option(
    "--level",
    type=click.Choice(LEVELS, case_sensitive=False),
    metavar="LEVEL",
    help=f"Only lines of this level and above: {', '.join(LEVELS)}.",
)
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time (UTC).")
@app_option
@targeted
@output_option
def logs(
    *,
    workload: str | None,
    follow: bool,
    since: float | None,
    tail: int | None,
    trace: str,
    level: str | None,
    timestamps: bool,
    app: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone logs --help`."""
    if tail is None and since is None:
        tail = 200
    start = None if since is None else time.time() - since
    show = Show(timestamps=timestamps, as_json=as_json)
    window, wanted = Window(follow, start, tail), Filter(trace, level or "")
    engine = (workload or "").removeprefix("engine:") if _is_engine(workload) else None
    if engine is not None and wanted:
        raise click.UsageError("--trace and --level are for workloads, not for engines")
    if workload is None:
        if follow or not wanted:
            raise click.UsageError(
                "name a workload; without one, --trace or --level find lines of all"
            )
        asyncio.run(_of_all(target, show, app, window, wanted))
    elif engine in _OWN and target.url is None:
        own_log(target, show, engine, window)
    else:
        asyncio.run(_logs(target, show, Asked(engine, app, workload, window, wanted)))
    if not show.lines:
        show.nothing(wanted, since=since is not None)


def _is_engine(workload: str | None) -> bool:
    return workload is not None and workload.startswith("engine:")


@dataclass(frozen=True, slots=True)
class Window:
    """Which lines of a log are wanted; `since` is in seconds since the epoch."""

    follow: bool
    since: float | None
    tail: int | None


@dataclass(frozen=True, slots=True)
class Asked:
    """Whose lines are wanted: an engine's, or a workload's of an app."""

    engine: str | None
    app: str | None
    workload: str
    window: Window
    wanted: Filter


class Show:
    """How a line is written; `lines` counts them."""

    def __init__(self, *, timestamps: bool, as_json: bool) -> None:
        self._terminal = Terminal()
        self._timestamps = timestamps
        self._as_json = as_json
        self._readable = sys.stdout.isatty()
        self.lines = 0

    def nothing(self, wanted: Filter, *, since: bool) -> None:
        """Say that there was no line; what was not asked for may have been written."""
        if not wanted:
            words = "nothing written" + (" since then" if since else " yet")
        else:
            words = "no line" + (" since then" if since else "")
            words += f" of trace {wanted.trace}" if wanted.trace else ""
            words += f" of level {wanted.level} or above" if wanted.level else ""
        self._terminal.complain(words)

    def older(self) -> None:
        """Say that there were older lines."""
        self._terminal.complain("there are older lines: see them with a larger --tail, or --since")

    def line(self, at: float, source: str, text: str) -> None:
        """Write one."""
        self.lines += 1
        if self._as_json:
            self._record({"time": at, "source": source, "text": text})
            return
        whole = time.gmtime(at)
        stamp = ""
        if self._timestamps:
            stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', whole)}.{int(at % 1 * 1000):03d}Z "
        start = f"{stamp}{clean(source)} | "
        if self._readable:
            first, *more = readable(text)
            self._terminal.answer(start + first)
            for line in more:
                self._terminal.answer(line)
        else:
            self._terminal.answer(start + clean(text))

    def raw(self, source: str, line: str) -> None:
        """Write one that has its own form, time included."""
        self.lines += 1
        if self._as_json:
            self._record({"source": source, "text": line.rstrip("\n")})
        elif self._readable:
            for shown in readable(line.rstrip("\n")):
                self._terminal.answer(shown)
        else:
            self._terminal.answer(clean(line))

    def _record(self, record: dict[str, object]) -> None:
        self._terminal.answer(json.dumps(record, ensure_ascii=False))


async def _logs(target: Target, show: Show, asked: Asked) -> None:
    """Show the lines; go on after the server's restart where they are followed."""
    last: float | None = None
    waiting = "waiting for output" if asked.window.follow else "asking the server"
    while True:
        try:
            async with (
                target.connect(waiting) as client,
                aclosing(await _open(client, target, asked)) as lines,
            ):
                async for line in lines:
                    last = line.time
                    show.line(line.time, line.source, line.text)
            return
        except UnavailableError:
            if not asked.window.follow or last is None or target.live() is None:
                raise
        # Just after the last line that was seen.
        asked = replace(asked, window=Window(follow=True, since=last + 1e-3, tail=None))
        await asyncio.sleep(_RETRY)


async def _of_all(
    target: Target, show: Show, app: str | None, window: Window, wanted: Filter
) -> None:
    """Show the newest lines of all workloads that are wanted."""
    async with target.connect("asking the server") as client:
        found = await client.lines(
            await choose_app(client, target, app),
            trace=wanted.trace,
            level=wanted.level,
            since=window.since,
            limit=_MOST if window.tail is None else min(max(window.tail, 1), _MOST),
        )
    for line in found.items:
        source = line.instance or line.workload
        show.line(line.time, source, json.dumps(line.fields) if line.fields else line.text)
    if found.truncated:
        show.older()


async def _open(client: Client, target: Target, asked: Asked) -> AsyncGenerator[LogLine, None]:
    window = asdict(asked.window)
    if asked.engine is not None:
        return client.engine_logs(asked.engine, **window)
    name = await choose_app(client, target, asked.app)
    wanted = asked.wanted
    return client.logs(name, asked.workload, trace=wanted.trace, level=wanted.level, **window)


def recent(lines: Iterable[str], since: float) -> Iterator[str]:
    """The lines from the first on that was written since then; one without a time follows it."""
    return dropwhile(lambda line: (written_at(line) or 0.0) < since, lines)


def written_at(line: str) -> float | None:
    """When a line of our own says that it was written: JSON with a `time`, or a local time."""
    try:
        if line.startswith("{"):
            return float(json.loads(line)["time"])
        return datetime.fromisoformat(line[:23].replace(",", ".")).timestamp()
    except (ValueError, KeyError, TypeError):
        return None


def own_log(target: Target, show: Show, name: str, window: Window) -> None:
    """A log of Bedstone's own, from its file: it must be readable when the server is dead."""
    path = target.state() / "logs" / f"{name}.log"
    try:
        with path.open(errors="replace") as file:
            lines = file if window.since is None else recent(file, window.since)
            for line in lines if window.tail is None else deque(lines, maxlen=window.tail):
                show.raw(name, line)
            while window.follow:
                if text := file.readline():
                    show.raw(name, text)
                else:
                    time.sleep(_RETRY)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no log of {name} yet", hint="it is written once `bedstone up` runs"
        ) from error
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UnavailableError(
            f"cannot read {path}: {error.strerror}", hint="read it as the user who runs it"
        ) from error
