"""`bedstone trace`: requests through the app, hop by hop, and how many of them are recorded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from bedstone.cli.logs import Ago
from bedstone.cli.options import CONTEXT, app_option, output_option, targeted, teach
from bedstone.cli.target import Target, choose_app
from bedstone.cli.terminal import Terminal, brief, clean, columns, paint, seconds

if TYPE_CHECKING:
    from bedstone.model.traces import Span, TraceDetail, TraceList, TraceSummary

_BAR = 24
_DEEPEST = 40
_COLOURS = {"error": "failed", "slow": "warn", "sampled": "ok"}


@click.group(
    context_settings=CONTEXT,
    help=teach(
        "See requests through the app, hop by hop.",
        ("bedstone trace ls --errors", "those that failed"),
        ("bedstone trace show ID", "one, as a waterfall"),
        ("bedstone trace sampling 5%", "record a share of the others, instead of by their rate"),
    ),
)
def trace() -> None:
    """See `bedstone trace --help`."""


@trace.command(
    "ls",
    context_settings=CONTEXT,
    help=teach(
        "List the traces that are kept, the newest first.",
        ("bedstone trace ls", "the last ones"),
        ("bedstone trace ls --errors --since 1h", "what failed within an hour"),
        ("bedstone trace ls --slower 500ms --service accounts", "slow ones in which it took part"),
        ("bedstone trace ls --name 'POST /transfers' -o json", "of one kind, for programs"),
    ),
)
@click.option("--service", default="", metavar="WORKLOAD", help="Only those in which it took part.")
@click.option("--name", default="", metavar="TEXT", help="Only those whose name has this in it.")
@click.option("--errors", is_flag=True, help="Only those with an error.")
@click.option("--slower", metavar="DURATION", help="Only those that took at least so long.")
@click.option("--since", type=Ago(), metavar="DURATION", help="How far back: 30s, 5m, 2h, 1d.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True)
@app_option
@targeted
@output_option
def ls(
    *,
    service: str,
    name: str,
    errors: bool,
    slower: str | None,
    since: float | None,
    limit: int,
    app: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone trace ls --help`."""
    from bedstone.model.units import parse_duration

    shortest = None
    if slower is not None:
        try:
            shortest = parse_duration(slower)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--slower") from error
    start = None if since is None else time.time() - since

    async def ask() -> TraceList:
        async with target.connect() as client:
            return await client.traces(
                app=await choose_app(client, target, app),
                service=service,
                name=name,
                errors=errors,
                shortest=shortest,
                start=start,
                limit=limit,
            )

    found = asyncio.run(ask())
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(found.model_dump(mode="json"))
    elif found.items:
        header = ("TIME", "TRACE", "NAME", "TOOK", "STATUS", "SPANS", "KEPT", "SERVICES")
        terminal.table(header, (_row(item) for item in found.items))
    else:
        terminal.complain("no trace fits: send a request, or ask for less")


def _took(value: float) -> str:
    """A duration for people, to the hundredth of a millisecond where it is short."""
    if value < 0.1:
        return f"{value * 1000:.2f}ms"
    return f"{value * 1000:.0f}ms" if value < 10 else seconds(value)


def _row(item: TraceSummary) -> tuple[str, ...]:
    kept = f"{item.errors} errors" if item.errors > 1 else item.kept
    return (
        datetime.fromtimestamp(item.start).astimezone().strftime("%H:%M:%S"),
        item.trace,
        brief(item.name, 40),
        _took(item.seconds),
        str(item.status or "-"),
        str(item.spans),
        paint(kept, _COLOURS[item.kept]),
        brief(" ".join(item.services), 50),
    )


@trace.command(
    context_settings=CONTEXT,
    help=teach(
        "Show one trace: each span below the one that led to it, with when and how long.",
        ("bedstone trace show 4bf92f3577b34da6a3ce929d0e0e4736", "for people"),
        ("bedstone trace show 4bf92f3577b34da6a3ce929d0e0e4736 -o json", "for programs"),
    ),
)
@click.argument("trace_id", metavar="ID")
@targeted
@output_option
def show(*, trace_id: str, target: Target, as_json: bool) -> None:
    """See `bedstone trace show --help`."""

    async def ask() -> TraceDetail:
        async with target.connect() as client:
            return await client.trace(trace_id)

    found = asyncio.run(ask())
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(found.model_dump(mode="json"))
        return
    said = found.summary
    moment = datetime.fromtimestamp(said.start).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    terminal.answer(
        f"{clean(said.name)}  {said.status or '-'}  {_took(said.seconds)}  {moment}  "
        f"{said.app}  kept: {paint(said.kept, _COLOURS[said.kept])}"
    )
    for line in columns(waterfall(found.spans), indent="  "):
        terminal.answer(line)


def waterfall(spans: Sequence[Span]) -> Iterator[tuple[str, ...]]:
    """A row for each span, below its parent: bar, time, service, name."""
    if not spans:
        return
    begin = min(span.start for span in spans)
    whole = max(max(span.start + span.seconds for span in spans) - begin, 1e-9)
    for depth, span in _nested(spans):
        mark = "error" if span.error else "access-log" if span.origin == "access-log" else ""
        note = " ".join(part for part in (mark, span.message if span.error else "") if part)
        name = f"{'  ' * min(depth, _DEEPEST)}{brief(clean(span.name), 60)}"
        status = span.attributes.get("http.response.status_code", "")
        yield (
            _bar((span.start - begin) / whole, span.seconds / whole),
            _took(span.seconds),
            clean(span.service),
            paint(name, "failed") if span.error else name,
            str(status),
            brief(clean(note), 60),
        )


def _bar(start: float, length: float) -> str:
    first = min(round(start * _BAR), _BAR - 1)
    filled = max(1, min(round(length * _BAR), _BAR - first))
    return ("·" * first + "█" * filled).ljust(_BAR, "·")


def _nested(spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
    """Spans below their parents, by start; one in a circle counts as a root."""
    below: dict[str, list[Span]] = {}
    known = {span.span for span in spans}
    for span in sorted(spans, key=lambda span: span.start):
        below.setdefault(span.parent if span.parent in known else "", []).append(span)
    seen: set[str] = set()
    yield from _under("", 0, below, seen)
    for span in spans:
        if span.span not in seen:
            seen.add(span.span)
            yield 0, span
            yield from _under(span.span, 1, below, seen)


def _under(
    parent: str, depth: int, below: Mapping[str, Sequence[Span]], seen: set[str]
) -> Iterator[tuple[int, Span]]:
    # A stack of its own: a trace may be deeper than calls may be.
    todo = [(depth, span) for span in reversed(below.get(parent, ()))]
    while todo:
        level, span = todo.pop()
        if span.span in seen:
            continue
        seen.add(span.span)
        yield level, span
        todo += [(level + 1, child) for child in reversed(below.get(span.span, ()))]


class _Share(click.ParamType[float]):
    name = "share"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """A share as `0.05` or `5%`; `auto` is -1."""
        text = str(value).strip()
        if text == "auto":
            return -1.0
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            self.fail(f"got {text!r}, expected a share such as 5% or 0.05, or auto", param, ctx)
        return share


@trace.command(
    context_settings=CONTEXT,
    help=teach(
        "Say which share of requests is recorded, on all nodes until the server starts again. "
        "Failed and slow requests are kept whatever it is.",
        ("bedstone trace sampling 100%", "every request, to look for something"),
        ("bedstone trace sampling 0", "none but failed and slow ones"),
        ("bedstone trace sampling auto", "by their rate, as it is by itself"),
    ),
)
@click.argument("share", type=_Share())
@targeted
def sampling(*, share: float, target: Target) -> None:
    """See `bedstone trace sampling --help`."""

    async def ask() -> None:
        async with target.connect() as client:
            await client.sample(None if share < 0 else share)

    asyncio.run(ask())
    words = "as their rate allows" if share < 0 else f"{share * 100:.4g}% of them"
    Terminal().say(f"requests that are recorded: {words}, and all that fail or are slow")
