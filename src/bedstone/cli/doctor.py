"""`bedstone doctor`: whether this machine has what is needed, and the fix for what it has not."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import click

from bedstone.cli.failures import Failed
from bedstone.cli.options import CONTEXT, output_option, teach
from bedstone.cli.terminal import Terminal, clean, paint
from bedstone.errors import Error

_ROOM = 512 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `fix` is what to do about it."""

    name: str
    result: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Check that this machine has what is needed. The exit status is 1 if something fails.",
        ("bedstone doctor", "a line for each check, with the fix"),
        ("bedstone doctor -o json", "for programs"),
    ),
)
@output_option
def doctor(*, as_json: bool) -> None:
    """See `bedstone doctor --help`."""
    found = list(checks())
    terminal = Terminal(answers=as_json)
    if as_json:
        terminal.json([asdict(check) for check in found])
    else:
        rows = [(paint(check.result), check.name, clean(check.detail)) for check in found]
        terminal.table(("RESULT", "CHECK", "FOUND"), rows)
        for check in found:
            if check.fix and check.result != "ok":
                terminal.answer(f"{paint(check.result)}: {check.name}: {check.fix}")
    if any(check.result == "fail" for check in found):
        raise Failed(1)


def checks() -> Iterator[Check]:
    """Every check of this machine."""
    yield _python()
    yield from _engines()
    yield _namespaces()
    yield _groups()
    yield _files()
    yield _room(Path.cwd())


def _python() -> Check:
    found = sys.version.partition(" ")[0]
    if sys.version_info < (3, 11):  # noqa: UP036 - says so where pip's own check was bypassed
        return Check("python", "fail", f"{found}, expected 3.11 or later", "install Python 3.11")
    return Check("python", "ok", found)


def _engines() -> Iterator[Check]:
    from bedstone.engines import programs

    finders: dict[str, Callable[[], Path]] = {
        "envoy": programs.envoy_program,
        "postgres": programs.postgres_program,
    }
    for name, find in finders.items():
        try:
            yield Check(name, "ok", str(find()))
        except Error as error:
            yield Check(name, "fail", error.message, error.hint or "")


def _namespaces() -> Check:
    if os.geteuid() == 0:
        return Check("identities", "ok", "root: network namespaces are used where the kernel lets")
    return Check(
        "identities",
        "warn",
        "cooperative, not enforced: not root",
        "run as root to give each instance its own network namespace and user",
    )


def _groups() -> Check:
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists() and os.access(root, os.W_OK):
        return Check("limits", "ok", "control groups, version 2")
    return Check(
        "limits",
        "warn",
        "no writable control group: limits of cpu and processes have no effect",
        "mount cgroup2 on /sys/fs/cgroup, or run under a delegated systemd unit",
    )


def _files() -> Check:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        fix = "raise it: ulimit -Hn 65536, or nofile in /etc/security/limits.conf"
        return Check("open files", "warn", f"at most {hard}", fix)
    return Check("open files", "ok", f"{soft}, at most {hard}")


def _room(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    text = f"{free >> 20} MiB free"
    if free < _ROOM:
        return Check("disk", "fail", f"{text}, expected {_ROOM >> 20}", "make room on this disk")
    return Check("disk", "ok", text)
