"""`bedstone run`: one box from a root or an image, as users of container engines expect."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bedstone.cli.failures import Failed
from bedstone.cli.options import CONTEXT, AsProgram, teach
from bedstone.cli.terminal import Terminal
from bedstone.errors import Error, InvalidError, NotFoundError

if TYPE_CHECKING:
    from bedstone.boxes.standalone import Standalone
    from bedstone.sandbox.box import BoxSpec, Mount
    from bedstone.sandbox.policy import Policy

_SIZE = re.compile(r"(\d+)([kmgt]?)b?", re.IGNORECASE)


@click.command(
    cls=AsProgram,
    context_settings={**CONTEXT, "allow_interspersed_args": False},
    help=teach(
        "Run a program in a box: a root file system, limits, and nothing of this machine or of any "
        "network but what is named. ROOT is a directory (with a leading / or .) or an image, "
        "which is pulled if it is not here. Ends as the program does; with 127 if there is no such "
        "program, 126 if it cannot be executed, 125 for anything else that kept it from running.",
        ("bedstone run --rm -it python:3.12", "a shell of an image, gone afterwards"),
        ("bedstone run --rm ./rootfs /bin/sh -c 'id'", "a directory, which is not changed"),
        ("bedstone run -d --name db -m 1g -v /srv/db:/data postgres:17", "in the background"),
        ("bedstone run -d -p 8080:80 nginx:1.27", "reached at 127.0.0.1:8080"),
        ("bedstone run --isolation gvisor --rm alpine uname -a", "on a kernel in user space"),
    ),
)
@click.argument("root")
@click.argument("command", nargs=-1)
@click.option("--isolation", default="container", show_default=True, help="Which driver runs it.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running, print its name.")
@click.option("-i", "--interactive", is_flag=True, help="Pass input on to it.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("--init", is_flag=True, help="A first process that passes signals on and reaps.")
@click.option("--rm", "remove", is_flag=True, help="Delete it when it has ended.")
@click.option("--name", help="Its name; one is made up by default.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="A variable.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory in it.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Who runs the program.")
@click.option("-h", "--hostname", metavar="NAME", help="Its host name.")
@click.option("-v", "--volume", multiple=True, metavar="PATH:PATH[:ro]", help="A mount.")
@click.option("--entrypoint", metavar="PROGRAM", help="Instead of the image's.")
@click.option("-m", "--memory", default="512m", show_default=True, metavar="SIZE", help="Memory.")
@click.option("--cpus", type=float, help="Processors, as 0.5.")
@click.option("--pids-limit", type=int, default=512, show_default=True, help="Processes.")
@click.option("--disk", default="1g", show_default=True, metavar="SIZE", help="What it may write.")
@click.option("--read-only", is_flag=True, help="Only mounts and /tmp can be written to.")
@click.option("-p", "--publish", multiple=True, metavar="[[IP:]PORT:]PORT", help="A port.")
@click.option("--egress", multiple=True, metavar="HOST[:PORT]", help="What it may reach; * is any.")
@click.option(
    "--net", "--network", default="none", show_default=True, help="Only none: no network but these."
)
@click.option(
    "--no-lazy", is_flag=True, help="Fetch and unpack all of an image before the program starts."
)
@click.option("--cap-drop", multiple=True, metavar="NAME", help="A capability less; ALL: none.")
@click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A policy as JSON; what it does not name is refused.",
)
def run(
    root: str,
    command: tuple[str, ...],
    isolation: str,
    name: str | None,
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    hostname: str | None,
    volume: tuple[str, ...],
    entrypoint: str | None,
    memory: str,
    cpus: float | None,
    pids_limit: int,
    disk: str,
    publish: tuple[str, ...],
    egress: tuple[str, ...],
    net: str,
    cap_drop: tuple[str, ...],
    policy: Path | None,
    *,
    detach: bool,
    interactive: bool,
    tty: bool,
    init: bool,
    remove: bool,
    read_only: bool,
    no_lazy: bool,
) -> None:
    """See `bedstone run --help`."""
    from bedstone.boxes.api import new_id, specify
    from bedstone.boxes.home import boxes_directory
    from bedstone.boxes.network import parse_egress, parse_port
    from bedstone.boxes.roots import find_root
    from bedstone.boxes.standalone import Standalone
    from bedstone.cli.box_terminal import demand_terminal, follow, terminal_size
    from bedstone.sandbox.box import BoxLimits

    demand_no_network(net)
    capabilities = _capabilities(cap_drop)
    ports = [parse_port(text) for text in publish]
    rules = [parse_egress(text) for text in egress]
    if tty and not detach:
        demand_terminal()
    terminal = Terminal(answers=True)
    box = name or new_id()
    standalone = Standalone(boxes_directory())

    async def prepared() -> BoxSpec:
        # A microVM's root is made of all of its files at once.
        lazy = not no_lazy and isolation != "microvm"
        found = await find_root(root, box, lazy=lazy, tell=terminal.say)
        _say_notes(terminal, found.notes)
        start = (entrypoint,) if entrypoint else found.entrypoint
        whole = (*start, *(command or (() if entrypoint else found.command)))
        if not whole:
            raise InvalidError(f"{root} names no command", hint="say what to run, such as /bin/sh")
        return specify(
            box,
            found,
            whole,
            env=_variables(env, tty=tty and policy is None),
            cwd=workdir,
            user=user,
            hostname=hostname,
            mounts=[_volume(text) for text in volume],
            limits=BoxLimits(parse_size(memory), cpus, pids_limit, parse_size(disk)),
            readonly=read_only,
            tty=tty,
            capabilities=capabilities,
            policy=read_policy(policy) if policy is not None else None,
            network="given" if ports or rules else "none",
            init=init,
        )

    async def work() -> int:
        async with standalone.making(box, isolation):
            started = await standalone.start(
                await prepared(),
                isolation,
                stdin=interactive,
                size=terminal_size(),
                attached=not detach,
                remove=remove,
                ports=ports,
                egress=rules,
            )
        _say_notes(terminal, started.notes)
        if detach:
            return await _left_running(standalone, box, terminal)
        status = await follow(standalone, box, stdin=interactive, terminal=tty)
        if remove:
            await standalone.gone(box)
        return status

    status = asyncio.run(work())
    if status:
        raise Failed(status)


def _capabilities(dropped: tuple[str, ...]) -> tuple[str, ...]:
    """What is left of those that a box has by default. Raises UsageError."""
    from bedstone.boxes.api import CAPABILITIES
    from bedstone.sandbox.capabilities import capability

    if "ALL" in (text.upper() for text in dropped):
        return ()
    try:
        gone = {capability(text) for text in dropped}
    except ValueError as error:
        raise click.UsageError(f"--cap-drop: {error}, expected such as CHOWN, or ALL") from error
    return tuple(name for name in CAPABILITIES if name not in gone)


def _variables(given: tuple[str, ...], *, tty: bool) -> dict[str, str]:
    """The variables of the arguments, and with a terminal what it is."""
    terminal = {"TERM": os.environ.get("TERM") or "xterm"} if tty else {}
    return terminal | dict(_variable(text) for text in given)


def _say_notes(terminal: Terminal, notes: Sequence[str]) -> None:
    for note in notes:
        terminal.say(f"note: {note}")


async def _left_running(standalone: Standalone, box: str, terminal: Terminal) -> int:
    """See a box start; the exit status."""
    if await standalone.started(box):
        terminal.answer(box)
        return 0
    async for block in standalone.logs(box):
        os.write(2, block)
    return await standalone.wait(box)


def demand_no_network(name: str) -> None:
    """Raises InvalidError for the networks that container engines have beside `none`."""
    if name != "none":
        raise InvalidError(
            f"no network {name!r}: a box reaches nothing, and nothing reaches it, by itself",
            hint="publish its ports with -p, and name what it may reach with --egress ('*': any)",
        )


def parse_size(text: str) -> int:
    """Bytes of `512m`, `1g`, `1048576`. Raises InvalidError."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InvalidError(f"got size {text!r}, expected such as 512m or 2g")
    return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[found[2].lower()]


def read_policy(path: Path) -> Policy:
    """A policy from a JSON file. Raises InvalidError, NotFoundError."""
    from bedstone.sandbox.policy import Policy

    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise NotFoundError(f"cannot read the policy {path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidError(f"{path} is not a policy: expected an object")
    try:
        return Policy.from_json(value)
    except Error as error:
        raise InvalidError(f"{path}: {error.message}") from error


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return (name, value) if equals else (name, os.environ.get(name, ""))


def _volume(text: str) -> Mount:
    from bedstone.sandbox.box import Mount

    parts = text.split(":")
    if len(parts) not in (2, 3) or (len(parts) == 3 and parts[2] not in ("ro", "rw")):
        raise InvalidError(f"got volume {text!r}, expected PATH:PATH or PATH:PATH:ro")
    source = os.path.realpath(parts[0])
    if not os.path.exists(source):  # noqa: PTH110
        raise NotFoundError(f"nothing is at {source}", hint="make it first")
    return Mount(source, parts[1], readonly=parts[2:] == ["ro"])
