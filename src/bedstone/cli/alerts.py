"""`bedstone alerts`: what fires, what fired, who is told, and for how long nobody is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import click

from bedstone.cli.options import CONTEXT, app_option, output_option, targeted, teach
from bedstone.cli.target import Target
from bedstone.cli.terminal import Terminal, brief, clean, paint, seconds
from bedstone.errors import InvalidError

if TYPE_CHECKING:
    from bedstone.model.alerts import AlertEvent, AlertLine, AlertTest, Silence

_COLOURS = {
    "firing": "failed",
    "failed": "failed",
    "pending": "pending",
    "unknown": "warn",
    "inactive": "ok",
    "resolved": "ok",
}
_LONGEST = 30 * 86400.0


class _Listing(click.Group):
    """A group whose command is `ls` where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert it."""
        own = {"-h", "--help"}
        if not args or (args[0].startswith("-") and args[0] not in own):
            args = ["ls", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Listing,
    context_settings=CONTEXT,
    help=teach(
        "See what fires, and silence it; without a command, `ls`.",
        ("bedstone alerts", "what fires now"),
        ("bedstone alerts history", "what fired, and who was told"),
        ("bedstone alerts silence workload=web --for 2h --why 'new disk'", "tell nobody"),
        ("bedstone alerts test slow", "evaluate a rule now"),
    ),
)
def alerts() -> None:
    """See `bedstone alerts --help`."""


@alerts.command(
    "ls",
    context_settings=CONTEXT,
    help=teach(
        "List alerts: what fires, what is pending, and rules that cannot be evaluated.",
        ("bedstone alerts", "what needs somebody"),
        ("bedstone alerts ls --all", "also the rules that say nothing"),
        ("bedstone alerts -o json", "all of them, for programs"),
    ),
)
@click.option("--all", "everything", is_flag=True, help="Also rules that are inactive.")
@app_option
@targeted
@output_option
def ls(*, everything: bool, app: str | None, target: Target, as_json: bool) -> None:
    """See `bedstone alerts ls --help`."""
    from bedstone.model.alerts import AlertList

    async def ask() -> AlertList:
        async with target.connect() as client:
            found = await client.alerts()
        items = tuple(item for item in found.items if app in (None, item.app))
        return AlertList(second=found.second, items=items)

    found = asyncio.run(ask())
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(found.model_dump(mode="json"))
        return
    shown = [item for item in found.items if everything or item.state != "inactive"]
    if shown:
        header = ("STATE", "SEVERITY", "APP", "RULE", "LABELS", "VALUE", "FOR", "SAYS")
        now = time.time()
        terminal.table(header, (_row(item, now) for item in shown))
    quiet = len(found.items) - len(shown)
    if not shown:
        terminal.say(f"nothing fires; {_rules(len(found.items))} watched")
    elif quiet:
        terminal.say(f"{_rules(quiet)} inactive: bedstone alerts ls --all")


def _rules(count: int) -> str:
    return "1 rule is" if count == 1 else f"{count} rules are"


def _row(item: AlertLine, now: float) -> tuple[str, ...]:
    state = paint(item.state, _COLOURS[item.state])
    if item.silenced_until is not None:
        state += f", silenced for {seconds(item.silenced_until - now)}"
    return (
        state,
        item.severity,
        item.app or "-",
        item.rule,
        _labels(item.labels),
        _value(item.value),
        "-" if item.since is None else seconds(now - item.since),
        brief(item.error or item.summary or item.expression, 80) or "-",
    )


@alerts.command(
    context_settings=CONTEXT,
    help=teach(
        "Show what fired, what was over, and who was told.",
        ("bedstone alerts history", "of all rules"),
        ("bedstone alerts history --rule slow --limit 500", "of one"),
    ),
)
@click.option("--rule", default="", metavar="RULE", help="Only of one rule.")
@click.option("--limit", type=click.IntRange(1, 5_000), default=50, show_default=True)
@app_option
@targeted
@output_option
def history(*, rule: str, limit: int, app: str | None, target: Target, as_json: bool) -> None:
    """See `bedstone alerts history --help`."""
    from bedstone.model.alerts import AlertHistory

    async def ask() -> AlertHistory:
        async with target.connect() as client:
            return await client.alert_history(app or "", rule, limit)

    found = asyncio.run(ask())
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(found.model_dump(mode="json"))
    elif found.items:
        header = ("TIME", "WHAT", "APP", "RULE", "LABELS", "VALUE", "DETAIL")
        terminal.table(header, map(_event, found.items))
    else:
        terminal.complain("nothing has fired yet")


def _event(item: AlertEvent) -> tuple[str, ...]:
    return (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.at)),
        paint(item.what, _COLOURS.get(item.what, "")),
        item.app or "-",
        item.rule,
        _labels(item.labels),
        _value(item.value),
        brief(item.detail, 100) or "-",
    )


def _span(_: click.Context, __: click.Parameter, value: str) -> float:
    from bedstone.model.units import parse_span

    try:
        found = float(parse_span(value))
    except ValueError as error:
        raise click.BadParameter("expected a duration such as 30m, 2h or 1d") from error
    if found > _LONGEST:
        raise click.BadParameter("expected at most 30d")
    return found


@alerts.command(
    context_settings=CONTEXT,
    help=teach(
        "Tell nobody of alerts that have all these labels, for a time.\n\n"
        "`rule`, `app` and `severity` are labels, too. What still fires when the silence ends is "
        "told then. Who, when and why is kept.",
        ("bedstone alerts silence workload=web --for 2h --why 'new disk'", "all of a workload"),
        ("bedstone alerts silence rule=slow severity=info --for 1d --why noise", "both must hold"),
    ),
)
@click.argument("labels", nargs=-1, required=True, metavar="LABEL=VALUE…")
@click.option("--for", "span", required=True, callback=_span, metavar="TIME", help="As 30m or 2h.")
@click.option("--why", required=True, metavar="TEXT", help="Kept with it.")
@targeted
@output_option
def silence(
    *, labels: tuple[str, ...], span: float, why: str, target: Target, as_json: bool
) -> None:
    """See `bedstone alerts silence --help`."""
    from bedstone.model.alerts import SilenceRequest

    matchers: dict[str, str] = {}
    for text in labels:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InvalidError(
                f"got {text!r}, expected LABEL=VALUE", hint="for example workload=web"
            )
        matchers[name] = value
    request = SilenceRequest(labels=matchers, seconds=span, why=why)

    async def ask() -> Silence:
        async with target.connect() as client:
            return await client.silence(request)

    made = asyncio.run(ask())
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(made.model_dump(mode="json"))
    else:
        terminal.say(f"silenced {_labels(made.labels)} for {seconds(span)}")
        terminal.say(f"end it: bedstone alerts unsilence {made.id}")


@alerts.command(
    context_settings=CONTEXT,
    help=teach(
        "List the silences that have not ended.",
        ("bedstone alerts silences", "with the id that ends each"),
    ),
)
@targeted
@output_option
def silences(*, target: Target, as_json: bool) -> None:
    """See `bedstone alerts silences --help`."""
    from bedstone.model.alerts import SilenceList

    async def ask() -> SilenceList:
        async with target.connect() as client:
            return await client.silences()

    found = asyncio.run(ask())
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(found.model_dump(mode="json"))
    elif found.items:
        now = time.time()
        terminal.table(
            ("ID", "LABELS", "ENDS IN", "WHO", "WHY"),
            (
                (s.id, _labels(s.labels), seconds(s.until - now), clean(s.who), brief(s.why, 80))
                for s in found.items
            ),
        )
    else:
        terminal.say("nothing is silenced")


@alerts.command(
    context_settings=CONTEXT,
    help=teach(
        "End a silence.",
        ("bedstone alerts unsilence 1f2e3d4c", "its id, from bedstone alerts silences"),
    ),
)
@click.argument("silence_id", metavar="ID")
@targeted
def unsilence(*, silence_id: str, target: Target) -> None:
    """See `bedstone alerts unsilence --help`."""

    async def ask() -> None:
        async with target.connect() as client:
            await client.unsilence(silence_id)

    asyncio.run(ask())
    Terminal().say(f"silence {silence_id} is over")


@alerts.command(
    context_settings=CONTEXT,
    help=teach(
        "Evaluate a rule now.\n\nShows what it measures, tells nobody, and changes nothing.",
        ("bedstone alerts test slow", "one of the manifest's, or a built-in one"),
    ),
)
@click.argument("rule", metavar="RULE")
@app_option
@targeted
@output_option
def test(*, rule: str, app: str | None, target: Target, as_json: bool) -> None:
    """See `bedstone alerts test --help`."""

    async def ask() -> AlertTest:
        async with target.connect() as client:
            return await client.test_alert(rule, app or "")

    found = asyncio.run(ask())
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(found.model_dump(mode="json"))
        return
    for line in _tested(found):
        terminal.answer(line)


def _tested(found: AlertTest) -> Iterator[str]:
    at = time.strftime("%H:%M:%S", time.localtime(found.second))
    if found.error:
        word = paint("cannot be evaluated", "failed")
    else:
        word = paint("holds", "failed") if found.holds else paint("does not hold", "ok")
    yield f"{found.rule}: {word} at {at}"
    yield f"  {clean(found.expression)}"
    if found.error:
        yield f"  {clean(found.error)}"
    for sample in found.samples:
        yield f"  {_labels(sample.labels)}  {_value(sample.value)}"
    if not found.samples and found.value is not None:
        yield f"  value {_value(found.value)}"
    if not found.samples and found.value is None and not found.error:
        yield "  it has no value"
    if found.note:
        yield f"  {clean(found.note)}"


def _labels(labels: Mapping[str, str]) -> str:
    return clean(" ".join(f"{name}={value}" for name, value in sorted(labels.items()))) or "-"


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
