"""The command `bedstone`: the table of commands, loaded when they are used.

Rules: importing this module imports no command and no heavy library, and neither does
`bedstone --help`; every failure of every command passes `bedstone.cli.failures.report`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from bedstone.cli.failures import report

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("bedstone.cli.manifest:init", "Write a commented bedstone.yaml to start from."),
    "up": ("bedstone.cli.up:up", "Run the app that bedstone.yaml declares."),
    "down": ("bedstone.cli.down:down", "Stop the app; its data stays."),
    "open": ("bedstone.cli.open:open_", "Open the web console, signed in."),
    "ps": ("bedstone.cli.ps:ps", "Show what runs, and in which state."),
    "top": ("bedstone.cli.top:top", "Show what happens, each second."),
    "logs": ("bedstone.cli.logs:logs", "Show what a workload or an engine wrote."),
    "tap": ("bedstone.cli.tap:tap", "Show requests as they happen."),
    "call": ("bedstone.cli.call:call", "Send one HTTP request to a workload, through the mesh."),
    "apply": ("bedstone.cli.apply:apply", "Make a manifest the running app's."),
    "get": ("bedstone.cli.get:get", "Show the resources behind an app."),
    "delete": ("bedstone.cli.get:delete", "Delete a resource."),
    "restart": ("bedstone.cli.apply:restart", "Replace a workload's instances, one by one."),
    "scale": ("bedstone.cli.actions:scale", "Run another number of a workload's instances."),
    "rollback": (
        "bedstone.cli.actions:rollback",
        "Declare a workload again as it was declared before.",
    ),
    "undo": ("bedstone.cli.actions:undo", "Declare the app again as it was before a change."),
    "changes": ("bedstone.cli.actions:changes", "Show what changed, with the difference."),
    "tx": ("bedstone.cli.transactions:tx", "See distributed transactions, and repair stuck ones."),
    "trace": ("bedstone.cli.traces:trace", "See requests through the app, hop by hop."),
    "alerts": ("bedstone.cli.alerts:alerts", "See what fires, and silence it."),
    "image": ("bedstone.cli.images:image", "Fetch images, look at them, check and send them."),
    "token": ("bedstone.cli.token:token", "Make, list and revoke credentials for the API."),
    "audit": ("bedstone.cli.audit:audit", "Show who changed what, and when."),
    "run": ("bedstone.cli.run:run", "Run a program in a box, from an image or a directory."),
    "box": ("bedstone.cli.box:box", "See and use the boxes that `run` made."),
    "doctor": ("bedstone.cli.doctor:doctor", "Check that this machine has what is needed."),
    "schema": ("bedstone.cli.manifest:schema", "Print the manifest's JSON Schema."),
    "version": ("bedstone.cli.version:version", "Print the version."),
}
"""Each command's place and its one line of help, in the order in which people meet them."""


class Lazy(click.Group):
    """A group whose commands are imported when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's interface
        """The commands, in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        found = COMMANDS.get(cmd_name)
        if found is None:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = found[0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command for one that does not exist."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"no command named {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(
    cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
def cli() -> None:
    """Run services as one file declares them: meshed, on real engines.

    \b
    Examples:
      bedstone init          write a bedstone.yaml to start from
      bedstone up            run the app of the current directory
      bedstone ps            show what runs
      bedstone open          see it in the browser
      bedstone logs web -f   follow the output of workload web
      bedstone down          stop it; its data stays
    """  # noqa: D301 - \b is click's mark for text that is not re-wrapped


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    # Keeps the HTTP library, where it is loaded, from loading its own command line: 80 ms.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    options: dict[str, Any] = {"standalone_mode": False, "prog_name": "bedstone"}
    try:
        status = cli.main(list(arguments) if arguments is not None else None, **options)
        sys.stdout.flush()
    except SystemExit as error:  # click ends so when the reader of a pipe has gone
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - the one handler
        return report(error)
    return status if isinstance(status, int) else 0
