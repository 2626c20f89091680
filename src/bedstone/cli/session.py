"""One `bedstone up`: start a run or adopt the one that lives, apply the manifest, wait or stay.

Invariant: what this command started and could not bring up is stopped again, and a state directory
that it made for that is removed; a run that was there before is never stopped by it.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bedstone.cli import embedded
from bedstone.cli.following import Feed, Statuses, known, statuses, until_ready
from bedstone.cli.ports import check_gateway
from bedstone.cli.progress import change_lines
from bedstone.cli.request import request_of
from bedstone.cli.target import STATE_NAME, Target, at, named, shown
from bedstone.cli.terminal import Terminal, paint
from bedstone.cli.welcome import welcome
from bedstone.engines import programs
from bedstone.errors import ConflictError, Error
from bedstone.model.sources import SourceCache
from bedstone.processes.client import cleanup_stale

if TYPE_CHECKING:
    from bedstone.cli.up import Options
    from bedstone.client.api import Client
    from bedstone.model.api import ApplyRequest, AppStatus
    from bedstone.model.manifest import Manifest
    from bedstone.processes.client import RunInfo


_HEARING = 5.0


class Session:
    """One `bedstone up`.

    Attributes:
        path: the manifest's file.
        manifest: as it was last read without mistakes.
        options: what was asked for.
        terminal: where it is shown.
        feed: what is shown of the app.
        generation: the app's, as last applied.
        started: whether this command started the run.
        ailing: whether the run turned out to be one that can never work.
    """

    def __init__(
        self, path: Path, manifest: Manifest, options: Options, terminal: Terminal, began: float
    ) -> None:
        if options.console_port is not None:
            embedded.check_console(options.console_port)
        self.path = path
        self.manifest = manifest
        self.options = options
        self.terminal = terminal
        self.feed = Feed(terminal, began)
        self.generation = 0
        self.started = False
        self.ailing = False
        self._state_dir = manifest.root / STATE_NAME
        self._sources = SourceCache()
        self._welcomed = False
        self._ended = False

    @property
    def app(self) -> str:
        """Its name."""
        return self.manifest.spec.app

    async def run(self) -> None:
        """Start or adopt the run, apply, then wait or stay."""

        def busy() -> None:
            self.terminal.say("waiting for another command that starts or stops it")

        fresh = not self._state_dir.exists()
        async with embedded.exclusive(self._state_dir, busy):
            run = await asyncio.to_thread(cleanup_stale, self._state_dir)
            self.started = run is None
            if run is None:
                run = await self._start(fresh=fresh)
            else:
                self._adopt()
                self.terminal.say(
                    f"{self.app} runs already (supervisor {run.pid}): applying the manifest to it"
                )
                await embedded.returns(run)
        target = Target(self.path, self._state_dir)
        try:
            async with target.connect() as client:
                await self._apply_first(client)
                await self._stay(client, run)
        except BaseException:
            if self.started and not self.options.detach:
                await self.end(run)
            elif self.started and (self.generation == 0 or self.ailing):
                await embedded.abandon(run)
            raise

    async def _start(self, *, fresh: bool) -> RunInfo:
        """Check what can be checked beforehand, then start; nothing new is left if it fails."""
        try:
            embedded.check_room(self._state_dir)
            self._check_port(None)
            self._check_engines()
            return await self._start_run()
        except BaseException:
            if fresh and not (self._state_dir / "logs" / "server.log").exists():
                shutil.rmtree(self._state_dir, ignore_errors=True)
            raise

    async def _start_run(self) -> RunInfo:
        self.terminal.say(f"starting {self.app} from {named(self.manifest.root)}")
        gateway = self.manifest.spec.gateway
        console, moved = embedded.console_port(
            self._state_dir, self.options.console_port, gateway.port if gateway else None
        )
        if moved:
            self.terminal.complain(moved)
        self.options = replace(self.options, console_port=console)
        options = embedded.Options(
            detached=self.options.detach,
            console=console,
            api_listen=embedded.check_listen(self.options.api_listen)
            if self.options.api_listen
            else None,
            isolate=self.options.isolate or "auto",
            certificate_seconds=self.options.certificate_seconds,
        )
        with self.terminal.waiting("starting the server"):
            run = await embedded.start(self._state_dir, options)
        self.feed.step("server", "control plane", "ready")
        return run

    def _adopt(self) -> None:
        """Refuse what only the start of a run can change; take the rest from the one there is."""
        held = embedded.started_with(self._state_dir)
        for option, asked, has in (
            ("--api-listen", self.options.api_listen, held.api_listen),
            ("--console-port", self.options.console_port, held.console),
            ("--isolate", self.options.isolate, held.isolate),
            (
                "--certificate-lifetime",
                self.options.certificate_seconds,
                held.certificate_seconds,
            ),
        ):
            if asked is not None and asked != has:
                where = at(self.manifest.root)
                raise ConflictError(
                    f"{self.app} runs already, and {option} takes effect only when it is started",
                    hint=f"`bedstone down{where}`, then `bedstone up{where}` with {option} again",
                )
        self.options = replace(
            self.options,
            api_listen=held.api_listen,
            console_port=held.console,
            isolate=held.isolate,
        )

    def _check_port(self, current: str | None) -> None:
        """Refuse at once what the proxy could only fail at later."""
        gateway = self.manifest.spec.gateway
        if gateway is not None and (current is None or not current.endswith(f":{gateway.port}")):
            check_gateway(gateway.address, gateway.port)

    def _check_engines(self) -> None:
        programs.envoy_program()
        if any(database.url is None for database in self.manifest.spec.databases.values()):
            programs.postgres_program()

    async def _apply_first(self, client: Client) -> None:
        request = await self.request()
        if not self.started:
            current = await known(client, self.app)
            self._check_port(current.gateway if current else None)
            if current:
                self.feed.prime(current)
        result = await client.apply(request)
        self.generation = result.generation
        if self.started:
            await self._complete(client)
            return
        if result.changes:
            for line in change_lines(result.changes):
                self.terminal.say(line)
        else:
            self.terminal.say("nothing has changed")

    async def _complete(self, client: Client) -> None:
        """Wait for the server to hear from the node: before, it tells of the last run."""
        deadline = time.monotonic() + _HEARING
        while time.monotonic() < deadline:
            status = await client.status()
            if status.complete and any(node.state != "stopped" for node in status.nodes):
                return
            await asyncio.sleep(0.05)

    async def _stay(self, client: Client, run: RunInfo) -> None:
        from bedstone.cli.foreground import foreground

        if self.options.detach and not self.options.wait:
            self.terminal.say(f"{self.app} goes on in the background: `bedstone ps`")
            if self.options.as_json:
                status = await client.app_status(self.app)
                self.terminal.json(status.model_dump(mode="json"))
            return
        async with statuses(client, self.app, run.alive) as following:
            if self.options.detach:
                await self._wait(client, following, run)
            else:
                await foreground(self, client, following, run)

    async def _wait(self, client: Client, following: Statuses, run: RunInfo) -> None:
        status = await self.ready(client, following, run)
        self.welcome(status)
        if self.options.as_json:
            self.terminal.json(status.model_dump(mode="json"))

    async def ready(self, client: Client, following: Statuses, run: RunInfo) -> AppStatus:
        """Wait until what was applied last is ready; see `until_ready`."""

        async def ailing() -> Error | None:
            error = await embedded.ailment(run)
            self.ailing = error is not None
            return error

        timeout = self.options.timeout
        return await until_ready(client, following, self.feed, self.generation, timeout, ailing)

    async def request(self) -> ApplyRequest:
        """What is asked of the server: the manifest, and its sources as they are now."""
        return await asyncio.to_thread(request_of, self.manifest, self._sources)

    def welcome(self, status: AppStatus) -> None:
        """What there is now, and what to try; in full the first time."""
        if self._welcomed:
            ready = f"{status.app} is {paint('ready')} (generation {status.generation})"
            self.terminal.say(f"{time.strftime('%H:%M:%S')}  {ready}")
            return
        self._welcomed = True
        elapsed = time.monotonic() - self.feed.started
        for line in welcome(status, self.manifest, self.options, elapsed, started=self.started):
            self.terminal.say(line)

    async def end(self, run: RunInfo) -> None:
        """Stop the run in good order, once."""
        if self._ended or not run.alive():
            return
        self._ended = True
        self.terminal.say("stopping (Ctrl-C again: at once)")
        await embedded.shut_down(run)
        self.terminal.say(f"stopped; data stays in {shown(self._state_dir)}")
