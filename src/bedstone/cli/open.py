"""`bedstone open`: a one-time link to the web console, and who is signed in."""

from __future__ import annotations

import asyncio
import html
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import click

from bedstone.cli.options import CONTEXT, output_option, targeted, teach
from bedstone.cli.target import Target
from bedstone.cli.terminal import Terminal, clean

if TYPE_CHECKING:
    from bedstone.model.monitoring import ConsoleLink, ConsoleSignIn

PAGE = "open.html"
"""The page in the state directory that leads a browser to a link; the link works once."""
_LEADS = """\
<!doctype html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}">
<title>Bedstone</title>
<a href="{url}">Open the console</a>
"""


@click.command(
    "open",
    context_settings=CONTEXT,
    help=teach(
        "Open the web console in the browser, signed in.\n\n"
        "It prints a link that signs in once, within two minutes, and opens it where there is a "
        "browser. The console listens on this machine only; from another one, use a tunnel.",
        ("bedstone open", "see and change"),
        ("bedstone open --role reader", "a link for somebody who may only look"),
        ("bedstone open --no-browser", "only print the link"),
        ("bedstone open --list", "who is signed in"),
        ("bedstone open --revoke 3fa9c2d1e0b4", "sign that one out"),
    ),
)
@click.option(
    "--role",
    type=click.Choice(["reader", "operator"]),
    default="operator",
    show_default=True,
    help="A reader sees, an operator also changes.",
)
@click.option("--no-browser", is_flag=True, help="Only print the link.")
@click.option("--list", "listing", is_flag=True, help="Show who is signed in.")
@click.option("--revoke", metavar="ID", help="Sign somebody out.")
@targeted
@output_option
def open_(
    *,
    role: str,
    no_browser: bool,
    listing: bool,
    revoke: str | None,
    target: Target,
    as_json: bool,
) -> None:
    """See `bedstone open --help`."""
    if listing and revoke:
        raise click.UsageError("give --list or --revoke, not both")
    terminal = Terminal(answers=True)
    if listing:
        _show(terminal, asyncio.run(_sessions(target)), as_json=as_json)
    elif revoke:
        asyncio.run(_revoke(target, revoke))
        terminal.say(f"session {revoke}: signed out")
    else:
        link = asyncio.run(_link(target, role))
        if as_json:
            terminal.json(link.model_dump(mode="json"))
            return
        terminal.answer(link.url)
        opened = not no_browser and target.url is None and browser()
        if opened and _launch(link.url, target.state()):
            terminal.say("opened in the browser")
        else:
            terminal.say(f"open it within two minutes; it signs in once, as {link.role}")
        if target.url is not None:
            port = link.url.split("/")[2].rpartition(":")[2]
            terminal.say(
                f"it leads to the server's own machine: ssh -L {port}:127.0.0.1:{port} HOST"
            )


async def _link(target: Target, role: str) -> ConsoleLink:
    from bedstone.model.monitoring import ConsoleLinkRequest

    request = ConsoleLinkRequest(role=cast("Literal['reader', 'operator']", role))
    async with target.connect() as client:
        return await client.console_link(request)


async def _sessions(target: Target) -> list[ConsoleSignIn]:
    async with target.connect() as client:
        return await client.console_sessions()


async def _revoke(target: Target, session: str) -> None:
    async with target.connect() as client:
        await client.end_console_session(session)


def _show(terminal: Terminal, sessions: list[ConsoleSignIn], *, as_json: bool) -> None:
    if as_json:
        terminal.json([session.model_dump(mode="json") for session in sessions])
    elif sessions:
        terminal.table(
            ("ID", "WHO", "ROLE", "SINCE", "LAST SEEN", "BROWSER"),
            (
                (s.id, s.who, s.role, _when(s.created_at), _when(s.seen_at), clean(s.agent)[:60])
                for s in sessions
            ),
        )
    else:
        terminal.complain("nobody is signed in")


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def browser() -> bool:
    """Whether a browser would have a screen to show itself on."""
    return (
        bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
        or sys.platform == "darwin"
    )


def _launch(url: str, state: Path) -> bool:
    """Have a browser show a page that leads to the link; whether there was one.

    The link itself may be in no command line: those every user of the machine can read, and whoever
    was faster than the browser would be signed in. So it stands in a file that only we may read.
    """
    import webbrowser

    page = state / PAGE
    try:
        page.unlink(missing_ok=True)
        descriptor = os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(_LEADS.format(url=html.escape(url)))
        return webbrowser.open(page.absolute().as_uri())
    except (OSError, webbrowser.Error):
        return False
