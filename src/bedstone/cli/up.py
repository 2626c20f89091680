"""`bedstone up`: start a run or change the one there is, show it becoming ready, stay."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import click

from bedstone.cli.options import CONTEXT, gateway_port_option, output_option, teach, timeout_option
from bedstone.cli.target import MANIFEST_NAME, nearest
from bedstone.cli.terminal import Terminal
from bedstone.errors import NotFoundError

_SHORTEST_CERTIFICATE = 2.0


@dataclass(frozen=True, slots=True)
class Options:
    """What `up` was asked for."""

    detach: bool
    wait: bool
    timeout: float
    watch: bool
    gateway_port: int | None
    api_listen: str | None
    console_port: str | None
    isolate: str | None
    certificate_seconds: float | None
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
@timeout_option
@click.option("--no-watch", is_flag=True, help="Do not roll out what is saved.")
@gateway_port_option
@click.option(
    "--api-listen",
    metavar="HOST:PORT",
    help="Also serve the API over TLS, to those with a token.",
)
@click.option(
    "--console-port",
    metavar="N|off",
    help="Of the web console, on this machine; default: any free one, and then always that.",
)
@click.option(
    "--isolate",
    type=click.Choice(["auto", "never"]),
    help="Whether instances get network namespaces, where the machine lets them; default: auto.",
)
@click.option(
    "--certificate-lifetime",
    metavar="DURATION",
    help="How long a workload's certificate is valid, such as 10m; 1h if not given.",
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
    console_port: str | None,
    isolate: str | None,
    certificate_lifetime: str | None,
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
        detach,
        wait,
        timeout,
        not no_watch,
        gateway_port,
        api_listen,
        console_port,
        isolate,
        _seconds(certificate_lifetime) if certificate_lifetime else None,
        as_json,
    )
    asyncio.run(_up(_manifest(directory, file), options))


def _seconds(duration: str) -> float:
    """A certificate's lifetime, written as durations are in a manifest."""
    from bedstone.model.units import parse_duration

    try:
        seconds = float(parse_duration(duration))
    except ValueError:
        seconds = 0.0
    if seconds < _SHORTEST_CERTIFICATE:
        raise click.UsageError(f"got the lifetime {duration!r}, expected 2s or more, such as 1h")
    return seconds


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
    from bedstone.cli.session import Session

    terminal = Terminal(answers=options.as_json)
    began = time.monotonic()
    manifest = load(path, options.gateway_port)
    await Session(path, manifest, options, terminal, began).run()
