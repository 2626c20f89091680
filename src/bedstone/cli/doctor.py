"""`bedstone doctor`: whether this machine has what is needed, and the fix for what it has not."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bedstone.cli.failures import Failed
from bedstone.cli.options import CONTEXT, output_option, teach
from bedstone.cli.target import Target
from bedstone.cli.terminal import Terminal, brief, clean, columns, paint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bedstone.engines.doctor import Check


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Check that this machine has what is needed. The exit status is 1 if something fails; a "
        "warning only takes away what it names.",
        ("bedstone doctor", "a line for each check, with the fix"),
        ("bedstone doctor -o json", "for programs"),
    ),
)
@output_option
def doctor(*, as_json: bool) -> None:
    """See `bedstone doctor --help`."""
    from bedstone.engines.doctor import doctor as examine

    found = [_enforceable(check) for check in asyncio.run(examine(Target.choose().state_dir))]
    found += [*boxes(), _microvm()]
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json(
            [{"name": c.name, "result": result(c), "detail": c.detail, "fix": c.fix} for c in found]
        )
    else:
        for line in report(found):
            terminal.answer(line)
    if any(result(check) == "fail" for check in found):
        raise Failed(1)


def _enforceable(check: Check) -> Check:
    """With privileges alone identities are not enforced: other users must reach the interpreter."""
    from bedstone.engines.doctor import NO_USERS
    from bedstone.sandbox.interpreter import obstacle

    lost = {
        "privileges": "identities are not enforced",
        "warm starts": "instances that declare warm start cold",
    }
    if check.name not in lost or not check.ok or check.detail == NO_USERS:
        return check
    blocked = obstacle(Path(sys.executable))
    if blocked is None:
        return check
    return replace(
        check,
        ok=False,
        detail=f"root, but {blocked} is not open to others: {lost[check.name]}",
        fix=f"use a Python interpreter that is not below {blocked}",
    )


def _microvm() -> Check:
    """Whether boxes can be virtual machines; nothing is started."""
    from bedstone.boxes.home import boxes_directory
    from bedstone.engines.doctor import Check
    from bedstone.errors import UnavailableError
    from bedstone.sandbox.microvm.build import find_tools

    try:
        tools = find_tools(boxes_directory())
    except UnavailableError as error:
        detail = f"no workloads and boxes as virtual machines: {error.message}"
        return Check("isolation: microvm", ok=False, detail=detail, fix=error.hint, required=False)
    return Check("isolation: microvm", ok=True, detail=tools.kernel.image.name)


def boxes() -> list[Check]:
    """What boxes and workloads in them need. Whether a runtime works, only a box can tell."""
    from bedstone.engines.doctor import Check
    from bedstone.sandbox.oci.machine import which

    found = []
    for isolation, programs in (("container", ("runc", "crun")), ("gvisor", ("runsc",))):
        paths = [path for name in programs if (path := which(name)) is not None]
        name = f"isolation: {isolation}"
        if not paths:
            fix = f"install {programs[0]} (Debian: apt-get install {programs[0]})"
            detail = f"no {' or '.join(programs)}; workloads and boxes with it cannot run"
            found.append(Check(name, ok=False, detail=detail, fix=fix, required=False))
        elif os.geteuid() != 0 and isolation == "container":
            detail = f"{', '.join(paths)}; without root, with one user and no limits or networks"
            found.append(Check(name, ok=True, detail=detail))
        elif os.geteuid() != 0:
            found.append(
                Check(name, ok=False, detail="not root", fix="run it as root", required=False)
            )
        else:
            found.append(Check(name, ok=True, detail=", ".join(paths)))
    return found


def result(check: Check) -> str:
    """`ok`, `warn` for what can be done without, or `fail`."""
    if check.ok:
        return "ok"
    return "fail" if check.required else "warn"


def report(found: Sequence[Check]) -> list[str]:
    """A line for each check, then what to do."""
    rows = [(paint(result(check)), check.name, brief(check.detail)) for check in found]
    lines = columns([("RESULT", "CHECK", "FOUND"), *rows])
    fixes = [
        f"{paint(result(check))}: {check.name}: {clean(check.fix)}"
        for check in found
        if check.fix and not check.ok
    ]
    return [*lines, *([""] if fixes else []), *fixes]
