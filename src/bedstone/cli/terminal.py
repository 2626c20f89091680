"""What people see: the one module that writes to the terminal.

Rules:
- Answers go to standard output, everything else (errors, hints, progress of a command whose answer
  is JSON) to standard error.
- Colour marks state only, on a terminal only, and never with `NO_COLOR`.
- What is written to a pipe or a file is plain, complete and stable: nothing depends on its width.
- Text that comes from programs or from a server cannot control the terminal.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.status import Status

_COLOUR = {
    "ready": "green",
    "ok": "green",
    "+": "green",
    "failed": "red",
    "fail": "red",
    "error": "red",
    "critical": "red",
    "-": "red",
    "backoff": "yellow",
    "unready": "yellow",
    "warn": "yellow",
    "warning": "yellow",
    "~": "yellow",
    "pending": "cyan",
    "preparing": "cyan",
    "starting": "cyan",
    "draining": "cyan",
}
_PATIENCE = 5.0
"""Seconds of silence after which a wait is mentioned where there is no moving line; it doubles."""
_NOTICED = 0.1
"""Seconds after which a person notices that a command waits."""
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if code != 9}


def clean(text: str) -> str:
    """The text without control characters: it cannot move the cursor or change colours."""
    return text.translate(_CONTROL)


def brief(text: str, limit: int = 160) -> str:
    """One line for a text of several: what it begins with, and the error it ends with."""
    lines = [line for part in text.splitlines() if (line := clean(part).strip())]
    if len(lines) > 1:
        errors = [line for line in lines[1:] if line.startswith("error:")]
        lines = [f"{lines[0]}: {(errors or lines)[-1].removeprefix('error: ')}"]
    line = lines[0] if lines else ""
    return line if len(line) <= limit else line[: limit - 1] + "…"


def paint(text: str, state: str | None = None) -> str:
    """The text in the colour of a state (by default, of the state that it names)."""
    colour = _COLOUR.get(text if state is None else state)
    return click.style(text, fg=colour) if colour else text


def columns(rows: Iterable[Sequence[str]], *, indent: str = "", gap: int = 2) -> list[str]:
    """Rows as aligned lines without trailing blanks; colour codes count as no width."""
    table = [tuple(row) for row in rows]
    count = max((len(row) for row in table), default=0)
    widths = [
        max((len(click.unstyle(row[place])) for row in table if place < len(row)), default=0)
        for place in range(count)
    ]
    lines = []
    for row in table:
        cells = [
            cell + " " * (width - len(click.unstyle(cell)) + gap)
            for cell, width in zip(row, widths, strict=False)
        ]
        lines.append((indent + "".join(cells)).rstrip())
    return lines


def seconds(value: float) -> str:
    """A duration for people: `0.4s`, `12s`, `3m10s`, `2h05m`, `4d03h`."""
    if value < 10:
        return f"{max(value, 0):.1f}s"
    whole = int(value)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


class _Pending:
    """A line about what a command waits for, on a terminal only: comes late, and goes again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._shown = False

    def begin(self, text: str) -> None:
        """Show it if nothing else is written for a while."""
        self.end()
        if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return
        # A thread: the loop does not turn while a library is imported.
        self._timer = threading.Timer(_NOTICED, self._show, (text,))
        self._timer.daemon = True
        self._timer.start()

    def _show(self, text: str) -> None:
        with self._lock:
            if self._timer is not None:
                self._shown = True
                sys.stderr.write(f"{text} …")
                sys.stderr.flush()

    def end(self) -> None:
        """Take it away."""
        if self._timer is None:
            return
        with self._lock:
            self._timer.cancel()
            self._timer = None
            if self._shown:
                self._shown = False
                sys.stderr.write("\r\x1b[K")  # ECMA-48: erase the line
                sys.stderr.flush()


_pending = _Pending()


@contextmanager
def asking(text: str) -> Iterator[None]:
    """Tells a person what is waited for, from when it is noticed to the first line of output."""
    _pending.begin(text)
    try:
        yield
    finally:
        _pending.end()


class Terminal:
    """Standard output and standard error of one command.

    Args:
        answers: whether standard output is kept for the answer (JSON), so that progress goes to
            standard error.
    """

    def __init__(self, *, answers: bool = False) -> None:
        self._answers = answers
        self._status: Status | None = None

    @property
    def _progress(self) -> TextIO:
        return sys.stderr if self._answers else sys.stdout

    @property
    def live(self) -> bool:
        """Whether progress is shown to a person at a terminal."""
        return self._progress.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, text: str = "") -> None:
        """One line about what happens."""
        if self._status is not None:
            from rich.text import Text

            self._status.console.print(Text.from_ansi(text), soft_wrap=True)
        else:
            _write(text, self._progress)

    def complain(self, text: str) -> None:
        """One line about what is wrong, on standard error."""
        if self._status is not None:
            self.say(text)
        else:
            _write(text, sys.stderr)

    def answer(self, text: str) -> None:
        """One line of the answer."""
        _write(text, sys.stdout)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """The answer as a table."""
        for line in columns([header, *rows]):
            self.answer(line)

    def json(self, value: Any) -> None:
        """The answer for programs."""
        self.answer(json.dumps(value, indent=2, ensure_ascii=False))

    @contextmanager
    def waiting(self, text: str) -> Iterator[Waiting]:
        """Shows what is waited for: a moving line on a terminal, else a line when it takes long."""
        _pending.end()
        waiting = Waiting(self, text)
        if not self.live or self._status is not None:
            yield waiting
            return
        from rich.console import Console
        from rich.status import Status

        status = Status(text, console=Console(file=self._progress, highlight=False))
        self._status = waiting.status = status
        try:
            with status:
                yield waiting
        finally:
            self._status = None

    @contextmanager
    def bars(self, *columns: str | ProgressColumn) -> Iterator[Progress]:
        """Shows progress on a terminal (`live`), and takes it away when it is done."""
        _pending.end()
        from rich.console import Console
        from rich.progress import Progress

        console = Console(file=self._progress, highlight=False)
        with Progress(*columns, console=console, transient=True) as progress:
            yield progress


class Waiting:
    """The display of one wait."""

    def __init__(self, terminal: Terminal, text: str) -> None:
        self._terminal = terminal
        self._text = text
        self._told = time.monotonic()
        self._patience = _PATIENCE
        self.status: Status | None = None

    def update(self, text: str) -> None:
        """What is waited for now."""
        if text != self._text and self.status is not None:
            from rich.text import Text

            self.status.update(Text(clean(text)))
        self._text = text

    def tick(self) -> None:
        """Called now and then; mentions a long wait where nothing moves."""
        if self.status is None and time.monotonic() - self._told >= self._patience:
            self._told = time.monotonic()
            self._patience *= 2
            self._terminal.say(f"… {self._text}")

    def touched(self) -> None:
        """Something was written: the silence starts anew."""
        self._told = time.monotonic()
        self._patience = _PATIENCE


def _write(text: str, stream: TextIO) -> None:
    _pending.end()
    color = False if os.environ.get("NO_COLOR") else None
    click.echo(text, file=stream, color=color)
