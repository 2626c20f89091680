"""`bedstone box …`: the boxes that `bedstone run` made."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bedstone.cli.failures import Failed, report
from bedstone.cli.options import CONTEXT, AsProgram, output_option, teach
from bedstone.cli.terminal import Terminal, columns, paint, seconds
from bedstone.errors import ConflictError, Error, InvalidError, UnavailableError

if TYPE_CHECKING:
    from bedstone.boxes.standalone import Listed, Standalone


_SHOWN = 10


def _standalone() -> Standalone:
    from bedstone.boxes.home import boxes_directory
    from bedstone.boxes.standalone import Standalone

    return Standalone(boxes_directory())


@click.group(
    context_settings=CONTEXT,
    help=teach(
        "See and use the boxes that `bedstone run` made. They belong to no app: what an app runs "
        "is shown by `bedstone ps`.",
        ("bedstone box ps", "which there are"),
        ("bedstone box exec -it db sh", "a shell in one"),
        ("bedstone box rm -f db", "end it and delete all of it"),
    ),
)
def box() -> None:
    """See `bedstone box --help`."""


@box.command(
    context_settings=CONTEXT,
    help=teach(
        "Show all boxes, those that have ended included.",
        ("bedstone box ps", "name, state, isolation, root, ports, command"),
        ("bedstone box ps -o json", "for programs"),
    ),
)
@output_option
def ps(*, as_json: bool) -> None:
    """See `bedstone box ps --help`."""
    found = asyncio.run(_standalone().list())
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json([_described(listed) for listed in found])
        return
    rows = [
        (
            listed.id,
            _state(listed),
            listed.isolation,
            listed.spec.labels.get("image", "") if listed.spec else "",
            ", ".join(map(str, listed.ports)),
            " ".join(listed.spec.command)[:40] if listed.spec else "",
            seconds(time.time() - listed.spec.created_at) if listed.spec else "",
        )
        for listed in found
    ]
    heads = ("NAME", "STATE", "ISOLATION", "ROOT", "PORTS", "COMMAND", "AGE")
    for line in columns([heads, *rows]):
        terminal.answer(line)
    for listed in found:
        if listed.problem:
            terminal.complain(f"{listed.id}: {listed.problem}")


def _state(listed: Listed) -> str:
    if listed.code is not None:
        return paint(f"exited {listed.code}", "pending")
    return paint(listed.state, "warn" if listed.problem else "ok")


def _described(listed: Listed) -> dict[str, Any]:
    spec, info = listed.spec, listed.info
    return {
        "name": listed.id,
        "state": listed.state,
        "problem": listed.problem or None,
        "exit_code": listed.code,
        "isolation": listed.isolation,
        "root": spec.labels.get("image", "") if spec else None,
        "command": list(spec.command) if spec else None,
        "ports": [asdict(port) for port in listed.ports],
        "pid": info.pid if info else None,
        "created_at": spec.created_at if spec else None,
        "notes": list(info.notes) if info else [],
    }


@box.command(
    "exec",
    cls=AsProgram,
    context_settings={**CONTEXT, "allow_interspersed_args": False},
    help=teach(
        "Run a program in a box that runs. Ends as it does; where it could not be run, as "
        "`bedstone run` does.",
        ("bedstone box exec db ls /data", "its output here"),
        ("bedstone box exec -it db sh", "with a terminal"),
    ),
)
@click.argument("name")
@click.argument("command", nargs=-1, required=True)
@click.option("-i", "--interactive", is_flag=True, help="Pass input on to it.")
@click.option("-t", "--tty", is_flag=True, help="Give it a terminal.")
@click.option("-e", "--env", multiple=True, metavar="NAME[=VALUE]", help="A variable.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory; the box's by default.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Who runs it; as the box by default.")
def exec_(
    name: str,
    command: tuple[str, ...],
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    *,
    interactive: bool,
    tty: bool,
) -> None:
    """See `bedstone box exec --help`."""
    from bedstone.boxes.roots import find_user
    from bedstone.cli.box_terminal import demand_terminal, execute
    from bedstone.sandbox.box import Exec
    from bedstone.sandbox.policy import ANY

    if tty:
        demand_terminal()

    async def work() -> int:
        boxes = await _standalone().driver_of(name)
        spec = next((info.spec for info in await boxes.list() if info.spec.id == name), None)
        if spec is None:
            raise ConflictError(f"box {name} does not run")
        uid, gid = (None, None) if user is None else find_user(Path(spec.root), user)
        variables = dict(spec.env)
        allowed = () if spec.policy is None else spec.policy.env
        if tty and {ANY, "TERM"} & {*allowed}:
            variables.setdefault("TERM", os.environ.get("TERM") or "xterm")
        for text in env:
            key, equals, value = text.partition("=")
            variables[key] = value if equals else os.environ.get(key, "")
        program = Exec(command, variables, workdir or spec.cwd, uid, gid, tty, spec.capabilities)
        return await execute(boxes, name, program, stdin=interactive)

    status = asyncio.run(work())
    if status:
        raise Failed(status)


@box.command(
    context_settings=CONTEXT,
    help=teach(
        "Show what a box wrote.",
        ("bedstone box logs db", "from its start"),
        ("bedstone box logs -f db", "and on, until it ends"),
    ),
)
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="And what it writes, until it ends.")
def logs(name: str, *, follow: bool) -> None:
    """See `bedstone box logs --help`."""

    async def work() -> None:
        async for block in _standalone().logs(name, follow=follow):
            os.write(1, block)

    asyncio.run(work())


@box.command(
    context_settings=CONTEXT,
    help=teach(
        "Show what boxes use: all that run, or those named.",
        ("bedstone box stats", "processor, memory, processes, disk"),
        ("bedstone box stats db -o json", "for programs"),
    ),
)
@click.argument("names", nargs=-1)
@output_option
def stats(names: tuple[str, ...], *, as_json: bool) -> None:
    """See `bedstone box stats --help`."""

    async def work() -> dict[str, dict[str, Any]]:
        standalone = _standalone()
        running = [
            listed.id
            for listed in await standalone.list()
            if listed.code is None and listed.info is not None
        ]
        return {
            name: asdict(await (await standalone.driver_of(name)).stats(name))
            for name in names or running
        }

    found = asyncio.run(work())
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(found)
        return
    rows = [
        (
            name,
            "-" if use["cpu_seconds"] is None else f"{use['cpu_seconds']:.2f}s",
            _mebibytes(use["memory"]),
            _mebibytes(use["memory_limit"]),
            "-" if use["pids"] is None else str(use["pids"]),
            _mebibytes(use["io_read"]),
            _mebibytes(use["io_written"]),
        )
        for name, use in found.items()
    ]
    heads = ("NAME", "CPU", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN")
    for line in columns([heads, *rows]):
        terminal.answer(line)


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / (1 << 20):.1f} MiB"


@box.command(
    context_settings=CONTEXT,
    help=teach(
        "Copy a file or folder into a box or out of it: into the target if that is a folder, else "
        "as the target. `PATH/.` is what is in a folder, and - a tar archive on standard input or "
        "output. No link in the box leads out of it.",
        ("bedstone box cp ./data db:/srv", "makes /srv/data, where /srv is a folder of the box"),
        ("bedstone box cp ./my.conf db:/etc/db.conf", "by another name"),
        ("bedstone box cp db:/var/log .", "makes ./log"),
        ("bedstone box cp db:/var/log - >log.tar", "as an archive"),
    ),
)
@click.argument("source")
@click.argument("target")
@click.option("-a", "--archive", is_flag=True, help="Keep owners, by number, in the box.")
def cp(source: str, target: str, *, archive: bool) -> None:
    """See `bedstone box cp --help`."""
    from bedstone.cli.box_copying import copy_in, copy_out

    from_box, to_box = _inside(source), _inside(target)
    if (from_box is None) == (to_box is None):
        raise InvalidError("one of the two is NAME:PATH, the other a path of this machine, or -")

    async def work() -> list[str]:
        name, path = from_box or to_box or ("", "")
        boxes = await _standalone().driver_of(name)
        if from_box is not None:
            return await copy_out(boxes, name, path, target)
        await copy_in(boxes, name, source, path, keep_owners=archive)
        return []

    try:
        left = asyncio.run(work())
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = f"{error.filename or target}: {error.strerror or error}"
        raise UnavailableError(f"cannot copy {source}: {reason}") from error
    for name in left[:_SHOWN]:
        Terminal(answers=True).say(f"left out: {name}: it leads out of {target}, or is no file")
    if len(left) > _SHOWN:
        Terminal(answers=True).say(f"left out: {len(left) - _SHOWN} more")


def _inside(text: str) -> tuple[str, str] | None:
    name, colon, path = text.partition(":")
    if not colon or "/" in name or name == "":
        return None
    return name, path or "/"


@box.command(
    context_settings=CONTEXT,
    help=teach(
        "Delete boxes with all that they wrote.",
        ("bedstone box rm db", "one that has ended"),
        ("bedstone box rm -f db web", "also those that run"),
    ),
)
@click.argument("names", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Those that run too; they are killed.")
def rm(names: tuple[str, ...], *, force: bool) -> None:
    """See `bedstone box rm --help`."""

    async def work(standalone: Standalone, name: str) -> None:
        if not force and await standalone.runs(name):
            raise ConflictError(f"box {name} runs", hint="stop it first, or use -f")
        await standalone.delete(name)

    _each(names, work)


@box.command(
    context_settings=CONTEXT,
    help=teach(
        "End boxes: SIGTERM, and SIGKILL when that is ignored.",
        ("bedstone box stop db", "within ten seconds"),
        ("bedstone box stop --grace 1 db", "within one"),
    ),
)
@click.argument("names", nargs=-1, required=True)
@click.option("--grace", type=float, default=10.0, show_default=True, help="Seconds in between.")
def stop(names: tuple[str, ...], grace: float) -> None:
    """See `bedstone box stop --help`."""

    async def work(standalone: Standalone, name: str) -> None:
        await standalone.stop(name, grace)

    _each(names, work)


@box.command(
    context_settings=CONTEXT,
    help=teach(
        "Let nothing in boxes run, until `resume`.",
        ("bedstone box pause db", "it keeps its memory"),
    ),
)
@click.argument("names", nargs=-1, required=True)
def pause(names: tuple[str, ...]) -> None:
    """See `bedstone box pause --help`."""

    async def work(standalone: Standalone, name: str) -> None:
        await (await standalone.driver_of(name)).pause(name)

    _each(names, work)


@box.command(
    context_settings=CONTEXT,
    help=teach(
        "Let boxes run again.",
        ("bedstone box resume db", "where it was"),
    ),
)
@click.argument("names", nargs=-1, required=True)
def resume(names: tuple[str, ...]) -> None:
    """See `bedstone box resume --help`."""

    async def work(standalone: Standalone, name: str) -> None:
        await (await standalone.driver_of(name)).resume(name)

    _each(names, work)


def _each(
    names: tuple[str, ...], work: Callable[[Standalone, str], Coroutine[Any, Any, None]]
) -> None:
    """Do something with each box, whatever becomes of the others."""
    terminal = Terminal()
    failures: list[int] = []

    async def all_of_them() -> None:
        standalone = _standalone()
        for name in names:
            try:
                await work(standalone, name)
            except Error as error:
                failures.append(report(error))
            else:
                terminal.answer(name)

    asyncio.run(all_of_them())
    if failures:
        raise Failed(failures[0])
