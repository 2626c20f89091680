"""`bedstone tx`: the distributed transactions of an app, and what to do about stuck ones."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from bedstone.cli.options import CONTEXT, app_option, output_option, targeted, teach
from bedstone.cli.target import Target, choose_app
from bedstone.cli.terminal import Terminal, brief, clean, columns, paint, seconds

if TYPE_CHECKING:
    from bedstone.model.api import (
        BranchDetail,
        RepairResult,
        TransactionDetail,
        TransactionList,
        TransactionSummary,
    )

STATES = ("active", "committing", "aborting", "committed", "aborted")
_COLOURS = {"committed": "ok", "aborted": "warn", "stuck": "failed"}


@click.group(
    context_settings=CONTEXT,
    help=teach(
        "See distributed transactions, and go on with those that are stuck.",
        ("bedstone tx ls --stuck", "those that wait for a person"),
        ("bedstone tx show ID", "one, with its time line and what stands in its way"),
        ("bedstone tx retry ID", "try again now"),
        ("bedstone tx repair ID --branch 2 --why 'row set by hand'", "say that it is set right"),
    ),
)
def tx() -> None:
    """See `bedstone tx --help`."""


@tx.command(
    "ls",
    context_settings=CONTEXT,
    help=teach(
        "List transactions, by id; ids begin with the time, so that the oldest come first.",
        ("bedstone tx ls", "all that the log has"),
        ("bedstone tx ls --state aborting", "of one state"),
        ("bedstone tx ls --stuck -o json", "those that wait for a person, for programs"),
    ),
)
@click.option("--state", type=click.Choice(STATES), help="Only those of one state.")
@click.option("--stuck", is_flag=True, help="Only those that wait for a person.")
@click.option("--after", default="", metavar="ID", help="Go on after this one.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@app_option
@targeted
@output_option
def ls(
    *,
    state: str | None,
    stuck: bool,
    after: str,
    limit: int,
    app: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone tx ls --help`."""
    found = asyncio.run(_list(target, app, state or "", after, limit, stuck=stuck))
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(found.model_dump(mode="json"))
    elif found.items:
        now = time.time()
        header = ("ID", "NAME", "STATE", "AGE", "BRANCHES", "ATTEMPTS", "TROUBLE")
        terminal.table(header, (_row(item, now) for item in found.items))
        if found.next:
            terminal.say(f"there are more: bedstone tx ls --after {found.next}")
    else:
        what = " that is stuck" if stuck else f" that is {state}" if state else ""
        terminal.complain(f"there is no transaction{what}")


async def _list(
    target: Target, app: str | None, state: str, after: str, limit: int, *, stuck: bool
) -> TransactionList:
    async with target.connect() as client:
        name = await choose_app(client, target, app)
        return await client.transactions(name, state=state, stuck=stuck, after=after, limit=limit)


def _row(item: TransactionSummary, now: float) -> tuple[str, ...]:
    return (
        item.xid,
        clean(item.name) or "-",
        _state(item),
        seconds(now - item.created),
        str(item.branches),
        str(item.attempts),
        brief(item.trouble, 60) or "-",
    )


def _state(item: TransactionSummary) -> str:
    word = f"{item.state}, stuck" if item.stuck else item.state
    return paint(word, _COLOURS.get("stuck" if item.stuck else item.state, "starting"))


@tx.command(
    context_settings=CONTEXT,
    help=teach(
        "Show one transaction: its branches, its time line, and what a person must decide.",
        ("bedstone tx show 01jd3k7…", "for people"),
        ("bedstone tx show 01jd3k7… -o json", "for programs"),
    ),
)
@click.argument("xid", metavar="ID")
@app_option
@targeted
@output_option
def show(*, xid: str, app: str | None, target: Target, as_json: bool) -> None:
    """See `bedstone tx show --help`."""
    _answer(asyncio.run(_show(target, app, xid)), as_json=as_json)


async def _show(target: Target, app: str | None, xid: str) -> TransactionDetail:
    async with target.connect() as client:
        return await client.transaction(await choose_app(client, target, app), xid)


@tx.command(
    context_settings=CONTEXT,
    help=teach(
        "Have its coordinator try again at once, also what is stuck.",
        ("bedstone tx retry 01jd3k7… --why 'the row is as it was'", "kept in its history"),
    ),
)
@click.argument("xid", metavar="ID")
@click.option(
    "--why",
    default="asked to try again",
    metavar="TEXT",
    help="Kept in the transaction's history.",
)
@app_option
@targeted
@output_option
def retry(*, xid: str, why: str, app: str | None, target: Target, as_json: bool) -> None:
    """See `bedstone tx retry --help`."""
    detail = asyncio.run(_retry(target, app, xid, why))
    _answer(detail, as_json=as_json)


async def _retry(target: Target, app: str | None, xid: str, why: str) -> TransactionDetail:
    from bedstone.model.api import RetryRequest

    async with target.connect() as client:
        name = await choose_app(client, target, app)
        return await client.retry_transaction(name, xid, RetryRequest(why=why))


@tx.command(
    context_settings=CONTEXT,
    help=teach(
        "Say that you have brought a stuck branch to the decided end.\n\n"
        "`bedstone tx show` prints the statements that would do it. Nothing is run here: the "
        "branch counts as done from now on, and its locks go. Who, when and why is kept. With "
        "`transactions.second_person` a second person has to give the same command.",
        (
            "bedstone tx repair 01jd3k7… --branch 2 --why 'balance set back, case 4711'",
            "one branch",
        ),
    ),
)
@click.argument("xid", metavar="ID")
@click.option("--branch", type=click.IntRange(1), required=True, help="The number of the branch.")
@click.option("--why", required=True, metavar="TEXT", help="Kept in the transaction's history.")
@app_option
@targeted
@output_option
def repair(
    *, xid: str, branch: int, why: str, app: str | None, target: Target, as_json: bool
) -> None:
    """See `bedstone tx repair --help`."""
    result = asyncio.run(_repair(target, app, xid, branch, why))
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(result.model_dump(mode="json"))
    elif result.outcome == "proposed":
        terminal.say("proposed: a second person has to give the same command")
    else:
        terminal.say(f"transaction {xid}: branch {branch} is recorded as repaired")


async def _repair(target: Target, app: str | None, xid: str, branch: int, why: str) -> RepairResult:
    from bedstone.model.api import RepairRequest

    async with target.connect() as client:
        name = await choose_app(client, target, app)
        return await client.repair_transaction(name, xid, RepairRequest(branch=branch, why=why))


def _answer(detail: TransactionDetail, *, as_json: bool) -> None:
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(detail.model_dump(mode="json"))
        return
    for line in lines(detail, time.time()):
        terminal.answer(line)


def lines(detail: TransactionDetail, now: float) -> Iterator[str]:
    """One transaction for people.

    Args:
        detail: the transaction.
        now: seconds since the epoch.
    """
    item = detail.transaction
    yield f"transaction {item.xid} {clean(item.name)}".rstrip() + f": {_state(item)}"
    yield f"  begun {_time(item.created)}, {seconds(now - item.created)} ago"
    if item.state == "active":
        yield f"  is aborted unless decided by {_time(item.deadline)}"
    yield f"  owner {clean(item.owner)}, epoch {item.epoch}"
    waits = item.next_attempt - now
    if item.state in {"committing", "aborting"} and not item.stuck and waits > 0:
        yield f"  tries again in {seconds(waits)}"
    yield ""
    header = ("BRANCH", "MODE", "STATE", "ATTEMPTS", "PAYLOAD", "RESOURCE")
    yield from columns([header, *(_branch(branch) for branch in detail.branches)], indent="  ")
    for branch in detail.branches:
        if branch.error:
            yield f"  branch {branch.number} said: {brief(branch.error)}"
    yield ""
    yield from columns(
        (
            (_time(event.at), str(event.branch or ""), event.kind, _detail(event.detail))
            for event in detail.events
        ),
        indent="  ",
    )
    for branch in detail.branches:
        if branch.stuck is not None:
            yield ""
            yield from _stuck(item, branch, branch.stuck)


def _branch(branch: BranchDetail) -> tuple[str, ...]:
    state = paint("stuck", "failed") if branch.stuck is not None else branch.state
    return (
        str(branch.number),
        branch.mode,
        state,
        str(branch.attempts),
        branch.payload_digest[:12],
        clean(branch.resource),
    )


def _stuck(item: TransactionSummary, branch: BranchDetail, report: dict[str, Any]) -> Iterator[str]:
    """What a person must decide: where, the three images side by side, and the commands."""
    rows = report.get("rows")
    for row in rows if isinstance(rows, list) else [report]:
        where = [str(row[key]) for key in ("resource", "table", "key") if row.get(key)]
        yield f"  branch {branch.number} waits for a person" + (
            f": {clean(' '.join(where))}" if where else ""
        )
        yield from columns(_images(row), indent="    ")
        statements = row.get("repair") or ()
        if statements:
            yield "    what would set it back to BEFORE, over whatever others wrote since:"
            for statement in [statements] if isinstance(statements, str) else statements:
                yield f"      {clean(str(statement))}"
    yield "  then:"
    yield f"    bedstone tx retry {item.xid}"
    yield f"  or, when you have brought it to the end yourself ({_end(item)}):"
    yield f"    bedstone tx repair {item.xid} --branch {branch.number} --why TEXT"


def _end(item: TransactionSummary) -> str:
    return "it is decided: committed" if item.state == "committing" else "it is decided: aborted"


def _images(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    images = [row.get(name) for name in ("before", "after", "now")]
    names = list(dict.fromkeys(key for image in images if isinstance(image, dict) for key in image))
    if not names:
        return
    yield ("COLUMN", "BEFORE", "AFTER", "AT THE LAST TRY")
    for name in names:
        values = [_value(image, name) for image in images]
        mark = "" if values[2] in values[:2] else "  ← neither"
        yield (clean(name), values[0], values[1], values[2] + mark)


def _value(image: Any, name: str) -> str:
    if not isinstance(image, dict):
        return "(no row)"
    value = image.get(name)
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _detail(detail: dict[str, Any]) -> str:
    return ", ".join(_told(key, value) for key, value in detail.items() if value is not False)


def _told(key: str, value: Any) -> str:
    match key, value:
        case (("deadline" | "until"), float()):
            return f"{key} {_time(value)}"
        case _, True:
            return key
        case _:
            return f"{key} {brief(str(value), 80)}"


def _time(at: float) -> str:
    whole = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
    return f"{whole}.{int(at % 1 * 1000):03d}"
