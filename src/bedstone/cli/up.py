"""`bedstone up`: start a run or change the one there is, show it becoming ready, stay."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bedstone.cli.failures import Failed, show
from bedstone.cli.options import CONTEXT, output_option, teach
from bedstone.cli.progress import change_lines
from bedstone.cli.target import MANIFEST_NAME, STATE_NAME, Target, at, named, nearest, shown
from bedstone.cli.terminal import Terminal, paint, seconds
from bedstone.errors import Error, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from bedstone.cli.following import Feed, Statuses
    from bedstone.client.api import Client
    from bedstone.model.api import AppStatus
    from bedstone.model.manifest import Manifest
    from bedstone.processes.client import RunInfo


@dataclass(frozen=True, slots=True)
class Options:
    """What `up` was asked for."""

    detach: bool
    wait: bool
    timeout: float
    watch: bool
    gateway_port: int | None
    api_listen: str | None
    isolate: str
    as_json: bool


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Run the app that bedstone.yaml declares, and show each part becoming ready.\n\n"
        "It stays, shows what happens, and rolls out each change of the manifest or of the "
        "source when it is saved; Ctrl-C stops the app. Data stays in .bedstone beside the "
        "manifest. If the app runs already, the manifest is applied to it.",
        ("bedstone up", "the app of this directory"),
        ("bedstone up examples/bank", "of another one"),
        ("bedstone up --detach --wait", "in the background; return when it is ready"),
        ("bedstone up --gateway-port 9000", "when its port is taken"),
    ),
)
@click.argument("directory", required=False, type=click.Path(path_type=Path), metavar="[DIR]")
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A manifest of another name.",
)
@click.option("-d", "--detach", is_flag=True, help="Leave it running in the background.")
@click.option("--wait", is_flag=True, help="With --detach: return when all is ready.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long --wait waits.",
)
@click.option("--no-watch", is_flag=True, help="Do not roll out what is saved.")
@click.option(
    "--gateway-port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help="Instead of the manifest's.",
)
@click.option(
    "--api-listen",
    metavar="HOST:PORT",
    help="Also serve the API over TLS, to those with a token.",
)
@click.option(
    "--isolate",
    type=click.Choice(["auto", "never"]),
    default="auto",
    show_default=True,
    help="Whether instances get network namespaces, where the machine lets them.",
)
@output_option
def up(
    *,
    directory: Path | None,
    file: Path | None,
    detach: bool,
    wait: bool,
    timeout: float,
    no_watch: bool,
    gateway_port: int | None,
    api_listen: str | None,
    isolate: str,
    as_json: bool,
) -> None:
    """See `bedstone up --help`."""
    if directory and file:
        raise click.UsageError("give a directory or --file, not both")
    if wait and not detach:
        raise click.UsageError("--wait goes with --detach: in the foreground it shows all")
    if as_json and not detach:
        raise click.UsageError("-o json goes with --detach")
    options = Options(
        detach, wait, timeout, not no_watch, gateway_port, api_listen, isolate, as_json
    )
    asyncio.run(_up(_manifest(directory, file), options))


def _manifest(directory: Path | None, file: Path | None) -> Path:
    """The manifest that is meant."""
    if file is not None:
        return file
    if directory is not None and directory.is_file():
        return directory
    root = directory if directory is not None else nearest(Path.cwd())
    if root is None or not (root / MANIFEST_NAME).exists():
        where = f"in {directory}" if directory is not None else "here or above"
        begin = "bedstone init" + (f" {directory}" if directory is not None else "")
        raise NotFoundError(
            f"there is no {MANIFEST_NAME} {where}",
            hint=f"`{begin}` writes a commented one to start from",
        )
    return root / MANIFEST_NAME


async def _up(path: Path, options: Options) -> None:
    from bedstone.cli.request import load

    terminal = Terminal(answers=options.as_json)
    began = time.monotonic()
    manifest = load(path, options.gateway_port)
    session = _Session(path, manifest, manifest.root / STATE_NAME, options, terminal, began)
    await session.run()


class _Session:
    """One `bedstone up`."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        state_dir: Path,
        options: Options,
        terminal: Terminal,
        began: float,
    ) -> None:
        from bedstone.cli.following import Feed
        from bedstone.model.sources import SourceCache

        self._sources = SourceCache()
        self._path = path
        self._manifest = manifest
        self._state_dir = state_dir
        self._options = options
        self._terminal = terminal
        self._feed: Feed = Feed(terminal, began)
        self._generation = 0
        self._shown_ready = False
        self._started = False
        self._ailing = False
        self._ended = False

    @property
    def _app(self) -> str:
        return self._manifest.spec.app

    async def run(self) -> None:
        """Start or adopt the run, apply, then wait or stay."""
        from bedstone.cli.embedded import abandon, exclusive
        from bedstone.processes.client import cleanup_stale

        def busy() -> None:
            self._terminal.say("waiting for another command that starts or stops it")

        fresh = not self._state_dir.exists()
        async with exclusive(self._state_dir, busy):
            run = await asyncio.to_thread(cleanup_stale, self._state_dir)
            self._started = run is None
            if run is None:
                run = await self._start(fresh=fresh)
            else:
                self._terminal.say(
                    f"{self._app} runs already (supervisor {run.pid}): applying the manifest to it"
                )
        target = Target(self._path, self._state_dir)
        try:
            async with target.connect() as client:
                await self._apply_first(client)
                await self._stay(client, run)
        except BaseException:
            if self._started and not self._options.detach:
                await self._end(run)
            elif self._started and (self._generation == 0 or self._ailing):
                await abandon(run)
            raise

    async def _start(self, *, fresh: bool) -> RunInfo:
        """Check what can be checked beforehand, then start; nothing new is left if it fails."""
        try:
            self._check_port(None)
            self._check_engines()
            return await self._start_run()
        except BaseException:
            if fresh and not (self._state_dir / "logs" / "server.log").exists():
                shutil.rmtree(self._state_dir, ignore_errors=True)
            raise

    async def _start_run(self) -> RunInfo:
        from bedstone.cli import embedded

        self._terminal.say(f"starting {self._app} from {named(self._manifest.root)}")
        options = embedded.Options(
            detached=self._options.detach,
            api_listen=embedded.check_listen(self._options.api_listen)
            if self._options.api_listen
            else None,
            isolate=self._options.isolate,
        )
        with self._terminal.waiting("starting the server"):
            run = await embedded.start(self._state_dir, options)
        self._feed.step("server", "control plane", "ready")
        return run

    def _check_port(self, current: str | None) -> None:
        """Refuse at once what the proxy could only fail at later."""
        gateway = self._manifest.spec.gateway
        if gateway is not None and (current is None or not current.endswith(f":{gateway.port}")):
            from bedstone.cli.ports import check_gateway

            check_gateway(gateway.address, gateway.port)

    def _check_engines(self) -> None:
        from bedstone.engines.programs import envoy_program, postgres_program

        envoy_program()
        if any(database.url is None for database in self._manifest.spec.databases.values()):
            postgres_program()

    async def _apply_first(self, client: Client) -> None:
        from bedstone.cli.following import known
        from bedstone.cli.request import request_of

        request = await asyncio.to_thread(request_of, self._manifest, self._sources)
        if not self._started:
            current = await known(client, self._app)
            self._check_port(current.gateway if current else None)
            if current:
                self._feed.prime(current)
        result = await client.apply(request)
        self._generation = result.generation
        if self._started:
            return
        if result.changes:
            for line in change_lines(result.changes):
                self._terminal.say(line)
        else:
            self._terminal.say("nothing has changed")

    async def _stay(self, client: Client, run: RunInfo) -> None:
        from bedstone.cli.following import statuses

        if self._options.detach and not self._options.wait:
            self._terminal.say(f"{self._app} goes on in the background: `bedstone ps`")
            if self._options.as_json:
                status = await client.app_status(self._app)
                self._terminal.json(status.model_dump(mode="json"))
            return
        async with statuses(client, self._app, run.alive) as following:
            if self._options.detach:
                await self._wait(client, following, run)
            else:
                await self._foreground(client, following, run)

    async def _wait(self, client: Client, following: Statuses, run: RunInfo) -> None:
        status = await self._ready(client, following, run)
        self._welcome(status)
        if self._options.as_json:
            self._terminal.json(status.model_dump(mode="json"))

    async def _ready(self, client: Client, following: Statuses, run: RunInfo) -> AppStatus:
        from bedstone.cli.embedded import ailment
        from bedstone.cli.following import until_ready

        async def ailing() -> Error | None:
            error = await ailment(run)
            self._ailing = error is not None
            return error

        timeout = self._options.timeout
        return await until_ready(client, following, self._feed, self._generation, timeout, ailing)

    # The foreground.

    async def _foreground(self, client: Client, following: Statuses, run: RunInfo) -> None:
        stop = asyncio.Event()
        presses = 0

        def interrupt() -> None:
            nonlocal presses
            presses += 1
            stop.set()
            if presses > 1:
                run.identity.send_signal(signal.SIGTERM)
                run.identity.send_signal(signal.SIGTERM)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, interrupt)
        tasks = [loop.create_task(self._follow(client, following, run))]
        if self._options.watch:
            tasks.append(loop.create_task(self._watch(client)))
        stopping = loop.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
        for task in done:
            task.result()
        if not self._started:
            self._terminal.say(f"left running; `bedstone down{at(self._manifest.root)}` stops it")
            return
        await self._end(run)
        raise Failed(0 if presses <= 1 else 130)

    async def _end(self, run: RunInfo) -> None:
        from bedstone.cli.embedded import shut_down

        if self._ended or not run.alive():
            return
        self._ended = True
        self._terminal.say("stopping (Ctrl-C again: at once)")
        await shut_down(run)
        self._terminal.say(f"stopped; data stays in {shown(self._state_dir)}")

    async def _follow(self, client: Client, following: Statuses, run: RunInfo) -> None:
        """Show the way to readiness, each time there is one, and what happens between."""
        was_connected = True
        while True:
            asked = self._generation
            try:
                status = await self._ready(client, following, run)
            except UnavailableError as error:
                if self._ailing:
                    raise
                if not run.alive():
                    raise UnavailableError(
                        "the supervisor has ended", hint=f"see {self._state_dir}/logs"
                    ) from error
                show(
                    replace_hint(error, "correct it and save: it is applied at once"),
                    self._terminal,
                )
            else:
                self._welcome(status)
                asked = status.generation
            self._feed.clock = True
            while self._generation <= asked:
                fresh = await following.next(0.5)
                if fresh is not None:
                    self._feed.update(fresh)
                if following.connected != was_connected:
                    was_connected = following.connected
                    state = "ready" if was_connected else "unready"
                    detail = "" if was_connected else "it is being restarted; traffic goes on"
                    self._feed.step("server", "control plane", state, detail)
                if not run.alive():
                    raise UnavailableError(
                        "the supervisor has ended", hint=f"see {self._state_dir}/logs"
                    )

    async def _watch(self, client: Client) -> None:
        """Roll out what is saved."""
        from bedstone.cli.changing import saves

        async for _ in saves(self._path):
            try:
                await self._apply_again(client)
            except Error as error:
                show(error, self._terminal)
                self._terminal.complain("what ran before goes on: nothing was applied")

    async def _apply_again(self, client: Client) -> None:
        from bedstone.cli.request import load, request_of

        manifest = load(self._path, self._options.gateway_port)
        if manifest.spec.app != self._app:
            raise NotFoundError(
                f"the manifest now declares app {manifest.spec.app}, this run is of {self._app}",
                hint="stop this one first, or change the name back",
            )
        self._manifest = manifest
        request = await asyncio.to_thread(request_of, manifest, self._sources)
        plan = await client.plan(request)
        if not plan.changes:
            return
        self._terminal.say(f"{time.strftime('%H:%M:%S')}  saved; it will change:")
        for line in change_lines(plan.changes):
            self._terminal.say(line)
        result = await client.apply(request)
        self._generation = result.generation

    def _welcome(self, status: AppStatus) -> None:
        """What there is now, and what to try; in full the first time."""
        elapsed = seconds(time.monotonic() - self._feed.started)
        if self._shown_ready:
            ready = f"{status.app} is {paint('ready')} (generation {status.generation})"
            self._terminal.say(f"{time.strftime('%H:%M:%S')}  {ready}")
            return
        self._shown_ready = True
        say = self._terminal.say
        say(f"\n{status.app} is {paint('ready')} after {elapsed}\n")
        if status.gateway:
            say(f"  gateway     {status.gateway}")
        say(f"  identities  {identities(status, self._options.isolate)}")
        if self._options.api_listen:
            authority = shown(self._state_dir / "authority" / "root.pem")
            say(f"  api         https://{self._options.api_listen}, CA certificate {authority}")
        say()
        where = at(self._manifest.root, "-C")
        if status.gateway and self._manifest.spec.gateway:
            path = self._manifest.spec.gateway.routes[0].path
            say(f"  curl {status.gateway}{path}")
        workload = next(iter(self._manifest.spec.workloads))
        say(f"  bedstone ps{where}")
        say(f"  bedstone logs {workload} -f{where}")
        if self._options.detach:
            say(f"  bedstone down{where}")
        else:
            saved = "; what you save is rolled out" if self._options.watch else ""
            ends = "stops it" if self._started else "leaves it running"
            say(f"\nCtrl-C {ends}{saved}")


def replace_hint(error: Error, hint: str) -> Error:
    """The same error with another advice."""
    error.hint = hint
    return error


def identities(status: AppStatus, isolate: str) -> str:
    """Whether a workload could pretend to be another, and why."""
    if status.enforced:
        return "enforced by network namespaces"
    if isolate == "never":
        why = "--isolate never"
    elif os.geteuid() != 0:
        why = "network namespaces need root"
    else:
        why = "this machine does not allow network namespaces"
    return f"cooperative, not enforced: {why}"
