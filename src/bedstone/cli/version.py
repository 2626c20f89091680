"""`bedstone version`."""

from __future__ import annotations

import platform

import click

from bedstone import __version__
from bedstone.cli.options import CONTEXT, output_option, teach
from bedstone.cli.terminal import Terminal


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Print the version.",
        ("bedstone version", "of Bedstone"),
        ("bedstone version -o json", "and of what it runs on"),
    ),
)
@output_option
def version(*, as_json: bool) -> None:
    """See `bedstone version --help`."""
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(
            {
                "version": __version__,
                "python": platform.python_version(),
                "system": platform.platform(),
            }
        )
    else:
        terminal.answer(f"bedstone {__version__}")
