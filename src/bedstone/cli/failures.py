"""The one place where an exception becomes a message and an exit status.

Rules: an `Error` shows where it is, what happened and what to do next, on standard error, and
exits by its kind (`bedstone.errors.EXIT_STATUS`). Anything else is a bug of ours: it says so, and
where the traceback was written. An interrupt exits 130; a reader that has gone away ends the
command quietly.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import click

from bedstone.cli.terminal import Terminal, clean, paint
from bedstone.errors import EXIT_STATUS, INTERNAL, Error

INTERRUPTED = 130
_STATE = ".bedstone"


class Failed(Exception):  # noqa: N818 - not an error: a negative answer that has been shown
    """A negative answer that was already shown; carries the exit status."""

    def __init__(self, status: int = 1) -> None:
        super().__init__(status)
        self.status = status


def report(  # noqa: PLR0911 - one answer for each kind
    error: BaseException, terminal: Terminal | None = None
) -> int:
    """Show a failure; the exit status for it."""
    terminal = terminal or Terminal(answers=True)
    match error:
        case Failed():
            return error.status
        case Error():
            show(error, terminal)
            return EXIT_STATUS.get(error.code, EXIT_STATUS[INTERNAL])
        case click.exceptions.Exit():
            return error.exit_code
        case click.ClickException():
            return _misused(error, terminal)
        case click.Abort() if not isinstance(error.__cause__, KeyboardInterrupt):
            terminal.complain("aborted: nothing was changed")
            return 1
        case click.Abort() | KeyboardInterrupt():
            return INTERRUPTED
        case BrokenPipeError():
            _silence()
            return 0
        case BaseExceptionGroup() if (found := _first(error)) is not None:
            return report(found, terminal)
        case _:
            return _crash(error, terminal)


def show(error: Error, terminal: Terminal) -> None:
    """The lines of one error: each mistake with its position, then what to do next."""
    for part in getattr(error, "problems", None) or (error,):
        text = "\n".join(map(clean, str(part).split("\n")))
        terminal.complain(f"{paint('error:', 'error')} {text}")
    if error.hint:
        terminal.complain(f"hint: {clean(error.hint)}")


def _misused(error: click.ClickException, terminal: Terminal) -> int:
    """A command line that cannot be understood."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        terminal.complain(error.format_message())  # the whole help, as it is formatted
        return error.exit_code
    terminal.complain(f"{paint('error:', 'error')} {clean(error.format_message())}")
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        terminal.complain(f"hint: `{context.command_path} --help` shows how")
    return error.exit_code


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The exception that explains a group: an error of ours, else an interrupt."""
    leaves = list(_leaves(group))
    known = [leaf for leaf in leaves if isinstance(leaf, Error | Failed)]
    if known:
        return known[0]
    interrupts = [leaf for leaf in leaves if isinstance(leaf, KeyboardInterrupt)]
    return interrupts[0] if interrupts else None


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for part in group.exceptions:
        found.extend(_leaves(part) if isinstance(part, BaseExceptionGroup) else [part])
    return found


def _crash(error: BaseException, terminal: Terminal) -> int:
    text = "".join(traceback.format_exception(error))
    where = _keep(text)
    terminal.complain(
        f"{paint('error:', 'error')} a bug in bedstone: {type(error).__name__}: {error}"
    )
    if where is not None:
        terminal.complain(f"hint: report it, with the traceback in {where}")
    else:
        terminal.complain(text)
    return EXIT_STATUS[INTERNAL]


def _keep(text: str) -> Path | None:
    """Write a traceback beside the run's logs, or where temporary files go."""
    name = f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    logs = Path.cwd() / _STATE / "logs"
    for folder in (logs, Path(tempfile.gettempdir())):
        if not os.path.isdir(folder):  # noqa: PTH112 - False too where it may not be looked at
            continue
        path = folder / name
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(text)
        except OSError:
            continue
        return path
    return None


def _silence() -> None:
    """Keep the interpreter from complaining, at its end, of output that nobody reads."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
