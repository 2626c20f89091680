"""`bedstone ps`: what runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from bedstone.cli.options import CONTEXT, output_option, targeted, teach
from bedstone.cli.target import Target
from bedstone.cli.terminal import Terminal, brief, clean, columns, paint, seconds
from bedstone.errors import UnavailableError

if TYPE_CHECKING:
    from bedstone.model.api import AppStatus, DomainStatus, Part
    from bedstone.processes.spec import ProcessInfo

_WORKLOADS = ("WORKLOAD", "INSTANCE", "STATE", "REVISION", "RESTARTS", "PID", "AGE", "DETAIL")
_REACTION = 3.0
"""Seconds that the supervisor has to answer; what the server says is shown without it too."""
_PARTS = ("PART", "NAME", "STATE", "RESTARTS", "PID", "AGE", "DETAIL")


@click.command(
    context_settings=CONTEXT,
    help=teach(
        "Show what runs, and in which state.",
        ("bedstone ps", "instances, engines, the proxy, the server and the node"),
        ("bedstone ps -C examples/bank", "of another directory's app"),
        ("bedstone ps -o json", "for programs"),
    ),
)
@targeted
@output_option
def ps(*, target: Target, as_json: bool) -> None:
    """See `bedstone ps --help`."""
    asyncio.run(_ps(target, Terminal(answers=as_json), as_json=as_json))


async def _ps(target: Target, terminal: Terminal, *, as_json: bool) -> None:
    processes: list[ProcessInfo] = []
    status: DomainStatus | None = None
    failure: UnavailableError | None = None
    async with target.connect() as client:
        if target.url is None:
            processes = await supervised(target)
        try:
            status = await client.status()
        except UnavailableError as error:
            failure = error
    if status is None and not processes and failure is not None:
        raise failure
    if as_json:
        terminal.json(
            {
                "status": status.model_dump(mode="json") if status else None,
                "processes": [info.to_json() for info in processes],
            }
        )
    elif status is None:
        terminal.complain("the server does not answer; this is what the supervisor knows")
        terminal.table(("PROCESS", *_PARTS[2:]), (process_row(info) for info in processes))
    else:
        own = [info for info in processes if info.name in ("server", "node")]
        for line in overview(status, own, time.time()):
            terminal.answer(line)


async def supervised(target: Target) -> list[ProcessInfo]:
    """What the supervisor of the embedded run parents; nothing if it is gone."""
    from bedstone.processes.client import SupervisorClient

    run = target.live()
    if run is None:
        return []
    try:
        async with asyncio.timeout(_REACTION), SupervisorClient(run.socket) as supervisor:
            return await supervisor.list()
    except (UnavailableError, TimeoutError):
        return []


def overview(status: DomainStatus, processes: Sequence[ProcessInfo], now: float) -> list[str]:
    """The whole of `ps`, as lines."""
    lines: list[str] = []
    for app in status.apps:
        lines += [headline(app), ""]
        instances = [instance_row(part, now) for part in app.parts if part.kind == "instance"]
        if instances:
            lines += [*columns([_WORKLOADS, *instances]), ""]
    rows = parts_table(status, processes, now)
    if rows:
        lines += columns([_PARTS, *rows])
    return lines + remarks(status)


def parts_table(
    status: DomainStatus, processes: Sequence[ProcessInfo], now: float
) -> list[tuple[str, ...]]:
    """Engines and proxies, each once, then Bedstone's own processes."""
    rows = dict.fromkeys(
        part_row(part, now)
        for app in status.apps
        for part in app.parts
        if part.kind in ("engine", "proxy")
    )
    if processes:
        return [*rows, *((info.name, "-", *process_row(info)[1:]) for info in processes)]
    return [*rows, *(part_row(part, now, kind="node") for part in status.nodes)]


def remarks(status: DomainStatus) -> list[str]:
    """What a user should know besides."""
    lines = []
    for app in status.apps:
        lines += ["", *shared_users(app)] if shared_users(app) else []
        lines += ["", *cold_starts(app)] if cold_starts(app) else []
        lines += ["", *isolations(app)] if isolations(app) else []
        for workload, number in app.scaled.items():
            lines += ["", f"{workload} is scaled to {number}, until its manifest says otherwise"]
        for condition in app.conditions:
            hint = f"; {condition.hint}" if condition.hint else ""
            text = clean(f"{condition.subject}: {condition.message}{hint}")
            lines += ["", f"{paint(condition.severity)}: {text}"]
    if not status.apps:
        lines += ["", "no app is applied"]
    if not status.complete:
        lines += ["", "incomplete: the server has not heard from every node since its start"]
    return lines


def shared_users(app: AppStatus) -> list[str]:
    """A warning for each reason why workloads have no user of their own."""
    found: dict[str, list[str]] = {}
    for part in app.parts:
        workloads = found.setdefault(part.shared_user, [])
        if part.workload not in workloads:
            workloads.append(part.workload)
    found.pop("", None)
    return [
        f"{paint('warning')}: {', '.join(names)} {'runs' if len(names) == 1 else 'run'} "
        f"{clean(reason)}; "
        f"{'its identity is' if len(names) == 1 else 'their identities are'} not enforced"
        for reason, names in found.items()
    ]


def cold_starts(app: AppStatus) -> list[str]:
    """A warning for each reason why instances are started cold that were to be warm."""
    found: dict[str, list[str]] = {}
    for part in app.parts:
        workloads = found.setdefault(part.cold_start, [])
        if part.workload not in workloads:
            workloads.append(part.workload)
    found.pop("", None)
    return [
        f"{paint('warning')}: {', '.join(names)} {'starts' if len(names) == 1 else 'start'} cold: "
        f"{clean(reason)}"
        for reason, names in found.items()
    ]


def isolations(app: AppStatus) -> list[str]:
    """What workloads are separated by that are no processes, and what is missing of any."""
    found: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    for part in app.parts:
        if part.isolation not in ("", "process"):
            _once(found.setdefault(part.isolation, []), part.workload)
        for note in part.unapplied:
            _once(missing.setdefault(note, []), part.workload)
    lines = [f"isolation {name}: {', '.join(names)}" for name, names in sorted(found.items())]
    return lines + [f"{', '.join(names)}: {clean(note)}" for note, names in missing.items()]


def _once(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def headline(app: AppStatus) -> str:
    """One line about an app."""
    state = paint("ready") if app.ready else paint("not ready", "starting")
    gateway = f"  {app.gateway}" if app.gateway else ""
    started = any(part.kind == "instance" and part.pid is not None for part in app.parts)
    if app.enforced:
        identity = "enforced"
    else:
        known = started or app.ready
        identity = partly(app) or ("cooperative, not enforced" if known else "not known yet")
    return f"{app.app}  {state}{gateway}  identities: {identity}"


def partly(app: AppStatus) -> str:
    """Whose identities are enforced and whose are not; empty if that holds for none or for all.

    Of an instance that has no process nothing is said.
    """
    instances = [part for part in app.parts if part.kind == "instance" and part.pid is not None]
    loose = dict.fromkeys(part.workload for part in instances if not part.enforced)
    firm = dict.fromkeys(part.workload for part in instances if part.workload not in loose)
    if app.enforced or not firm:
        return ""
    if not loose:
        return f"enforced for {', '.join(firm)}"
    return f"cooperative for {', '.join(loose)}, enforced for {', '.join(firm)}"


def instance_row(part: Part, now: float) -> tuple[str, ...]:
    """An instance."""
    return (
        part.workload,
        part.name,
        paint(part.state),
        part.revision,
        str(part.restarts),
        str(part.pid or "-"),
        age(part.since, now),
        brief(part.detail),
    )


def part_row(part: Part, now: float, *, kind: str | None = None) -> tuple[str, ...]:
    """An engine, a proxy or a node."""
    return (
        kind or part.kind,
        part.name,
        paint(part.state),
        str(part.restarts),
        str(part.pid or "-"),
        age(part.since, now),
        brief(part.detail),
    )


def process_row(info: ProcessInfo) -> tuple[str, ...]:
    """A process, as its supervisor sees it."""
    state = paint("running", "ready") if info.running else paint(info.state, "failed")
    pid = str(info.pid) if info.running else "-"
    since = info.started_at if info.running else None
    detail = f"ended before: {info.previous}" if info.previous else ""
    if not info.running:
        detail = info.ending()
    return (info.name, state, str(info.restarts), pid, age(since, time.time()), brief(detail))


def age(since: float | None, now: float) -> str:
    """How long ago, in whole seconds."""
    if since is None or since > now + 1:
        return "-"
    whole = int(max(now - since, 0))
    return f"{whole}s" if whole < 60 else seconds(whole)
