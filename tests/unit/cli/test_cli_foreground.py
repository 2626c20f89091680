"""`bedstone up` in the foreground, once its app has come up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from bedstone.cli import foreground
from bedstone.cli.terminal import Terminal
from bedstone.errors import Error, UnavailableError
from bedstone.model.api import AppStatus

FULL = "the disk is full"


class Ended(Exception):  # noqa: N818 - the end of a test
    """Every outcome was given."""


class Session:
    """A run each of whose generations becomes what a test says: ready, or in trouble."""

    def __init__(self, *outcomes: Error | None) -> None:
        self.outcomes = list(outcomes)
        self.generation = 0
        self.ailing = False
        self.terminal = Terminal(answers=True)
        self.welcomed: list[int] = []
        self.feed = SimpleNamespace(clock=False, update=lambda _: None)

    async def ready(self, *_: object) -> AppStatus:
        if not self.outcomes:
            raise Ended
        self.generation += 1
        error = self.outcomes.pop(0)
        self.ailing = error is not None and FULL in error.message
        if error is not None:
            raise error
        return AppStatus(app="bank", generation=self.generation, ready=True)

    def welcome(self, status: AppStatus) -> None:
        self.welcomed.append(status.generation)


def follow(session: Session) -> None:
    run: Any = SimpleNamespace(alive=lambda: True)

    async def next_status(_patience: float) -> None:
        session.generation += 1  # something was saved

    following: Any = SimpleNamespace(connected=True, next=next_status)
    asyncio.run(foreground._follow(session, None, following, run))  # type: ignore[arg-type]


def full() -> Error:
    return UnavailableError(FULL, hint="make room")


def test_a_disk_that_fills_up_later_ends_nothing_that_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    session = Session(None, full(), UnavailableError("it crashes"), None)
    with pytest.raises(Ended):
        follow(session)
    said = capsys.readouterr().err
    assert f"error: {FULL}\nhint: make room\n" in said
    assert "error: it crashes\nhint: correct it and save" in said
    assert len(session.welcomed) == 2


def test_on_a_disk_that_is_full_from_the_beginning_it_ends() -> None:
    with pytest.raises(UnavailableError, match=FULL):
        follow(Session(full()))
