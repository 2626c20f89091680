"""`bedstone up` in the foreground: shows what happens, rolls out what is saved, until Ctrl-C.

Rule: mistakes and failures of the app are shown, and what ran before goes on; only the end of the
run itself ends the command.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bedstone.cli.changing import saves
from bedstone.cli.failures import Failed, show
from bedstone.cli.progress import change_lines
from bedstone.cli.request import load
from bedstone.cli.target import at
from bedstone.errors import Error, InvalidError, UnavailableError
from bedstone.processes.state import read_run

if TYPE_CHECKING:
    from bedstone.cli.following import Statuses
    from bedstone.cli.session import Session
    from bedstone.client.api import Client
    from bedstone.processes.client import RunInfo


class _Stopped(Exception):  # noqa: N818 - not an error: another command stopped the run
    """The run ended in good order."""


async def foreground(session: Session, client: Client, following: Statuses, run: RunInfo) -> None:
    """Stay until Ctrl-C, SIGTERM, the terminal's end or the run's; then stop what was started.

    Raises:
        UnavailableError: the run broke.
        Failed: with the exit status, after it was stopped.
    """
    stop = asyncio.Event()
    presses = 0

    def interrupt() -> None:
        nonlocal presses
        presses += 1
        stop.set()
        if presses > 1 and session.started:
            # A supervisor that is asked twice kills.
            run.identity.send_signal(signal.SIGTERM)
            run.identity.send_signal(signal.SIGTERM)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    tasks = [
        loop.create_task(stop.wait()),
        loop.create_task(_follow(session, client, following, run)),
    ]
    if session.options.watch:
        tasks.append(loop.create_task(_watch(session, client)))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    try:
        for task in done:
            task.result()
    except _Stopped:
        session.terminal.say("stopped by another command")
        return
    if not session.started:
        where = at(session.manifest.root)
        session.terminal.say(f"left running; `bedstone down{where}` stops it")
        return
    await session.end(run)
    raise Failed(0 if presses <= 1 else 130)


async def _follow(session: Session, client: Client, following: Statuses, run: RunInfo) -> None:
    """Show the way to readiness, each time there is one, and what happens between."""
    while True:
        asked = session.generation
        try:
            status = await session.ready(client, following, run)
        except Error as error:
            if session.ailing and not session.feed.clock:
                raise  # nothing has come up yet, and nothing can
            _check(run)
            if not isinstance(error, UnavailableError):
                raise
            if not session.ailing:
                error.hint = "correct it and save: it is applied at once"
            show(error, session.terminal)
        else:
            session.welcome(status)
            asked = status.generation
        session.feed.clock = True
        await _between(session, following, run, asked)


async def _between(session: Session, following: Statuses, run: RunInfo, asked: int) -> None:
    """Show what happens until a later generation is applied."""
    was_connected = following.connected
    while session.generation <= asked:
        try:
            fresh = await following.next(0.5)
        except UnavailableError:
            _check(run)
            raise
        if fresh is not None:
            session.feed.update(fresh)
        _check(run)
        if following.connected != was_connected:
            was_connected = following.connected
            state = "ready" if was_connected else "unready"
            detail = "" if was_connected else "it is being restarted; traffic goes on"
            session.feed.step("server", "control plane", state, detail)


def _check(run: RunInfo) -> None:
    """Whether the run has ended, and how: in good order it takes its own record along."""
    if run.alive():
        return
    if read_run(Path(run.state_dir)) is None:
        raise _Stopped
    raise UnavailableError(
        "the supervisor has died, and all of the run with it",
        hint=f"see {run.state_dir}/logs/supervisor.log; start it again with `bedstone up`",
    )


async def _watch(session: Session, client: Client) -> None:
    """Roll out what is saved; where nothing can be watched, only say so."""
    try:
        refused = False
        async for _ in saves(session.path):
            try:
                changed = await _apply(session, client)
                if refused and not changed:
                    session.terminal.say("the manifest is right again: it is what runs")
                refused = False
            except Error as error:
                refused = True
                show(error, session.terminal)
                session.terminal.complain("what ran before goes on: nothing was applied")
    except UnavailableError as error:
        show(error, session.terminal)
        await asyncio.Event().wait()


async def _apply(session: Session, client: Client) -> bool:
    """Apply what was saved; whether it changes anything."""
    manifest = load(session.path, session.options.gateway_port)
    if manifest.spec.app != session.app:
        raise InvalidError(
            f"the manifest now declares app {manifest.spec.app}, this run is of {session.app}",
            hint="stop this one first, or change the name back",
        )
    session.manifest = manifest
    request = await session.request()
    plan = await client.plan(request)
    if not plan.changes:
        return False
    session.terminal.say(f"{time.strftime('%H:%M:%S')}  saved; it will change:")
    for line in change_lines(plan.changes):
        session.terminal.say(line)
    session.generation = (await client.apply(request)).generation
    return True
