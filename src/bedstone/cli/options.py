"""What the commands share: help with examples, and the options that say which run is meant.

A run is that of the nearest `bedstone.yaml` upwards from the current directory, or from `-C DIR`,
or a server by URL (`--server`, `BEDSTONE_URL`) with a token (`--token-file`, `BEDSTONE_TOKEN`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bedstone.cli.failures import Failed, report
from bedstone.cli.target import Target
from bedstone.sandbox.failing import FAILED

Function = TypeVar("Function", bound=Callable[..., Any])

CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
}


class _Misused(click.UsageError):
    exit_code = FAILED


class AsProgram(click.Command):
    """A command that ends as the program that it runs does, and with 125 for its own failures."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise _Misused(error.format_message(), error.ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except (Failed, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            report(error)
            raise Failed(FAILED) from error


def teach(text: str, *examples: tuple[str, str]) -> str:
    """A command's help: what it does, then examples, each a command line and what it is for."""
    width = max(len(line) for line, _ in examples)
    block = "\n".join(f"  {line.ljust(width)}   {purpose}" for line, purpose in examples)
    return f"{text}\n\n\b\nExamples:\n{block}"


def targeted(function: Function) -> Function:
    """Adds `-C`, `--server`, `--token-file` and `--ca-file`; passes a `Target` as `target`."""

    @click.option(
        "-C",
        "directory",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="The app's directory, instead of the nearest upwards from here.",
    )
    @click.option("--server", metavar="URL", help="A server elsewhere; default: BEDSTONE_URL.")
    @click.option(
        "--token-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="The server's token; default: BEDSTONE_TOKEN.",
    )
    @click.option(
        "--ca-file",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="The CA certificate to trust; default: BEDSTONE_CA.",
    )
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        directory: Path | None,
        server: str | None,
        token_file: Path | None,
        ca_file: Path | None,
        **kwargs: Any,
    ) -> Any:
        target = Target.choose(directory, server, token_file, ca_file)
        return function(*args, target=target, **kwargs)

    return wrapped  # type: ignore[return-value] # it takes the options that click passes


def app_option(function: Function) -> Function:
    """Adds `--app`, for a server that runs several."""
    return click.option("--app", metavar="APP", help="The app, where the server runs several.")(
        function
    )


def timeout_option(function: Function) -> Function:
    """Adds `--timeout`, for commands that can wait."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0.1),
        default=120.0,
        show_default=True,
        metavar="SECONDS",
        help="How long --wait waits.",
    )(function)


def gateway_port_option(function: Function) -> Function:
    """Adds `--gateway-port`, for commands that read a manifest."""
    return click.option(
        "--gateway-port",
        type=click.IntRange(1, 65535),
        metavar="N",
        help="Instead of the manifest's.",
    )(function)


def output_option(function: Function) -> Function:
    """Adds `-o json`; passes `as_json`."""

    @click.option(
        "-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Format."
    )
    @functools.wraps(function)
    def wrapped(*args: Any, output: str, **kwargs: Any) -> Any:
        return function(*args, as_json=output == "json", **kwargs)

    return wrapped  # type: ignore[return-value] # it takes the option that click passes
