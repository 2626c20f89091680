"""`bedstone down`: stop a run, whatever state it is in; delete its data only when asked to."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from bedstone.cli.options import CONTEXT, teach
from bedstone.cli.target import MANIFEST_NAME, STATE_NAME, Target, named, shown
from bedstone.cli.terminal import Terminal
from bedstone.errors import InvalidError, NotFoundError, UnavailableError


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Stop the app and all that runs for it; its data stays.",
        ("bedstone down", "stop the app of this directory"),
        ("bedstone down examples/bank", "of another one"),
        ("bedstone down --purge", "stop it and delete its data, after asking"),
    ),
)
@click.argument("directory", required=False, type=click.Path(path_type=Path), metavar="[DIR]")
@click.option(
    "-C",
    "named_directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The same, as other commands take it.",
)
@click.option("--purge", is_flag=True, help="Also delete .bedstone: databases, keys, logs.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def down(*, directory: Path | None, named_directory: Path | None, purge: bool, yes: bool) -> None:
    """See `bedstone down --help`."""
    if directory and named_directory:
        raise click.UsageError("give DIR or -C DIR, not both")
    state_dir = _state(directory or named_directory)
    terminal = Terminal()
    if purge and state_dir.exists():
        _confirm(state_dir, yes=yes)
    asyncio.run(_down(state_dir, terminal))
    if purge:
        _purge(state_dir, terminal)


def _state(directory: Path | None) -> Path:
    """The state that is meant; a directory that is named is never taken for one above it."""
    if directory is None:
        return Target.choose(Path.cwd()).state()
    root = directory.resolve()
    if not (root / STATE_NAME).is_dir() and not (root / MANIFEST_NAME).is_file():
        raise NotFoundError(
            f"there is no app in {directory}", hint="name the directory of its bedstone.yaml"
        )
    return root / STATE_NAME


def _confirm(state_dir: Path, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidError("--purge deletes data and nobody is there to ask", hint="add --yes")
    click.confirm(f"delete {shown(state_dir)} with all databases, keys and logs?", abort=True)


async def _down(state_dir: Path, terminal: Terminal) -> None:
    from bedstone.cli.embedded import clear_boxes, exclusive, shut_down
    from bedstone.processes.client import cleanup_stale
    from bedstone.processes.state import read_run

    name = named(state_dir.parent)
    if not state_dir.exists():
        terminal.say(f"nothing runs for {name}")
        return

    def busy() -> None:
        terminal.say("waiting for another command that starts or stops it")

    async with exclusive(state_dir, busy):
        dead = read_run(state_dir)
        run = await asyncio.to_thread(cleanup_stale, state_dir)
        if run is None:
            if dead:
                await clear_boxes(state_dir)
            what = "cleared away what a dead run had left of" if dead else "nothing runs for"
            terminal.say(f"{what} {name}")
            return
        with terminal.waiting(f"stopping {name}"):
            stopped = await shut_down(run)
        for failure in await clear_boxes(state_dir):
            terminal.complain(f"{failure}; `bedstone down` tries again")
    names = ", ".join(process.rpartition("/")[2] for process in stopped)
    terminal.say(f"stopped {name}: {names or 'its supervisor'}")
    terminal.say(f"data stays in {shown(state_dir)}")


def _purge(state_dir: Path, terminal: Terminal) -> None:
    import shutil

    from bedstone.processes.state import locked

    if not state_dir.exists():
        terminal.say("there is no data")
        return
    try:
        # Held, so that no other `up` starts on what is being deleted.
        with locked(state_dir):
            shutil.rmtree(state_dir)
    except OSError as error:
        raise UnavailableError(
            f"cannot delete {error.filename}: {error.strerror}",
            hint="delete it as the user who ran it",
        ) from error
    terminal.say(f"deleted {shown(state_dir)}")
