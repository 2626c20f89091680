"""From an instance to the box that it runs in: root, environment, user, policy, limits.

Rules:
- The policy is made from the declaration and denies everything else: exactly these programs,
  variables, mounts and this user, the network given, `exec` for the probes' programs alone.
- What is read of this machine is read-only in the box; what the program writes goes to /tmp, and
  with an image to an overlay of its own, which goes with the box.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bedstone.errors import InvalidError
from bedstone.model.spec import ExecProbe
from bedstone.processes.spec import RUN_MARKER
from bedstone.sandbox.box import BoxLimits, BoxSpec, Exec, Mount
from bedstone.sandbox.commands import command_line
from bedstone.sandbox.environment import INHERITED, INHERITED_PATHS, environment
from bedstone.sandbox.installed import Needed, installed
from bedstone.sandbox.interpreter import closed, find_interpreter
from bedstone.sandbox.policy import AllowedMount, Policy
from bedstone.sandbox.protocol import Host, ImageRoot, Unit
from bedstone.sandbox.views import USER, check_inside, compose, find_program, program_inside

UID: Final = 64000
"""The user of a box whose source everybody may read; no distribution gives this number out."""
IDS: Final = 65536
IDENTITY: Final = "/run/bedstone"
"""Where a box finds the files of its identity."""
_HIDDEN: Final = (Path("/run"), Path("/var/run"))
"""Never shown: sockets of this machine's services, which obey some users."""
PIDS: Final = 4096
DISK: Final = 1 << 30
"""Bytes that an instance of an image may write to its root."""
ANYWHERE: Final = "0.0.0.0"  # noqa: S104 - in a network that has the proxy and nobody else
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Plan:
    """A box, and what is to be said of it.

    Attributes:
        spec: the box.
        notes: what its owner should know.
    """

    spec: BoxSpec
    notes: tuple[str, ...] = ()


def listening(unit: Unit) -> str:
    """The address that its program is to listen on."""
    host = unit.plumbing.app.host
    return host if host.startswith("127.") else ANYWHERE


def user_of(source: Path) -> tuple[int, int, str]:
    """The box's user and group, and why it is not the usual one.

    Code that is not open to others is run by its owner, as the box sees it, who is nobody on this
    machine.

    Raises:
        InvalidError: its owner's number is none of a box.
    """
    blocked = closed(source)
    if blocked is None:
        return UID, UID, ""
    owner = source.stat()
    if owner.st_uid >= IDS or owner.st_gid >= IDS:
        raise InvalidError(
            f"{blocked} is not open to others, and no box has its owner, user {owner.st_uid}",
            hint=f"let others read it: chmod -R o+rX {source}",
        )
    who = "the box's root" if owner.st_uid == 0 else f"user {owner.st_uid} of the box"
    return owner.st_uid, owner.st_gid, f"{who}, since {blocked} is not open to others"


def plan(
    host: Host,
    unit: Unit,
    box: str,
    folder: Path,
    image: ImageRoot | None,
    command: Sequence[str] | None,
    labels: Mapping[str, str],
) -> Plan:
    """The box of an instance, or of a command beside it.

    Args:
        host: of the sandbox.
        unit: the instance.
        box: its id.
        folder: of the instance, with `identity/`; `root/` is made in it.
        image: the root that it declares, if it does.
        command: what runs instead of its own.
        labels: of the box.

    Raises:
        InvalidError: it can never run so.
        OSError: its root cannot be written.
    """
    made = (
        _of_machine(host, unit, folder, command)
        if image is None
        else _of_image(host, unit, folder, image, command)
    )
    declared = unit.revision.spec.limits
    programs = (made.command[0], *(probe[0] for probe in made.probes))
    spec = BoxSpec(
        id=box,
        root=made.root,
        command=made.command,
        policy=Policy(
            programs=tuple(dict.fromkeys(programs)),
            exec=bool(made.probes),
            env=tuple(sorted(made.env)),
            mounts=tuple(
                AllowedMount(m.source if m.kind == "bind" else "tmpfs", m.target, m.readonly)
                for m in made.mounts
            ),
            network="given",
            users=(made.user[0],),
            writable_root=image is not None,
        ),
        write="readonly" if image is None else "overlay",
        env=made.env,
        cwd=made.cwd,
        user=made.user[0],
        group=made.user[1],
        hostname=unit.instance.workload,
        mounts=made.mounts,
        limits=BoxLimits(
            memory=declared.memory if declared else None,
            cpus=declared.cpu if declared else None,
            pids=(declared.processes if declared else None) or PIDS,
            disk=None if image is None else DISK,
            files=declared.files if declared else None,
        ),
        netns=unit.plumbing.app.netns,
        init=made.command[0].startswith("/"),
        labels=labels,
    )
    return Plan(spec, made.notes)


def probe_program(host: Host, unit: Unit, spec: BoxSpec, command: Sequence[str]) -> Exec:
    """A command as it is run in the box of an instance that runs."""
    if unit.revision.spec.image is not None:
        argv = tuple(command)
    else:
        argv = _resolved(host, unit, command, spec.env["PATH"], spec.mounts)
    return Exec(argv, spec.env, spec.cwd, spec.user, spec.group)


@dataclass(frozen=True, slots=True)
class _Made:
    """What a box without an image and one of an image have in common; fields as in `BoxSpec`.

    Attributes:
        user: and group.
        probes: the commands that are run in it beside its own.
        notes: as in `Plan`.
    """

    root: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    user: tuple[int, int]
    mounts: tuple[Mount, ...]
    probes: Sequence[tuple[str, ...]] = ()
    notes: tuple[str, ...] = ()


def _of_machine(host: Host, unit: Unit, folder: Path, command: Sequence[str] | None) -> _Made:
    declared = unit.revision.spec
    source = Path(os.path.normpath(Path(unit.revision.root, declared.path).absolute()))
    if not source.is_dir():
        raise InvalidError(
            f"its directory {source} does not exist", hint="correct `path:` of the workload"
        )
    interpreter = find_interpreter(source, declared.python)
    uid, gid, note = user_of(source)
    env = environment(unit)
    _without_inherited(unit, env)
    search = _PATH
    libraries = [Path(path) for path in host.libraries.split(os.pathsep) if path]
    needed = Needed()
    if "/" in interpreter:
        needed = installed(Path(interpreter), (source, Path(unit.revision.root), *libraries))
        search = f"{Path(interpreter).parent}{os.pathsep}{search}"
    shown = [source, *needed.shown]
    if declared.run is not None:
        shown += libraries
    shown += [
        Path(path)
        for path in declared.env.get("PYTHONPATH", "").split(os.pathsep)
        if path.startswith("/") and path.strip("/")
    ]
    env.setdefault("PATH", search)
    for name, value in (("HOME", "/tmp"), ("TMPDIR", "/tmp"), ("USER", USER), ("LOGNAME", USER)):  # noqa: S108 - its own
        env.setdefault(name, value)
    extra = _identity(unit, folder, env)
    hidden = (*host.private, host.boxes, host.run_dir, *_HIDDEN)
    mounts = compose(folder / "root", shown, hidden, (uid, gid), extra, needed.links)
    own = _resolved(host, unit, command, env["PATH"], mounts)
    probes = [_resolved(host, unit, probe, env["PATH"], mounts) for probe in _probes(unit, command)]
    said = f"user: {note}" if note else f"user: {uid} of the box"
    notes = (said, *needed.notes)
    return _Made(str(folder / "root"), own, env, str(source), (uid, gid), mounts, probes, notes)


def _of_image(
    host: Host,
    unit: Unit,
    folder: Path,
    image: ImageRoot,
    command: Sequence[str] | None,
) -> _Made:
    env = environment(unit)
    _without_inherited(unit, env)
    env = {"PATH": _PATH, **image.env, **env}
    declared = unit.revision.spec.command
    argv = (*image.entrypoint, *(command or declared or image.command))
    if not argv:
        raise InvalidError(
            f"the image {image.image} names no command", hint="declare one with `command:`"
        )
    if host.images is None:
        raise AssertionError("an image was found by something")
    argv = (program_inside(image.path, argv[0], env["PATH"]), *argv[1:])
    cwd = posixpath.normpath(image.cwd or "/")
    check_inside(image.path, argv[0], cwd)
    user = host.images.user(image)
    mounts = _identity(unit, folder, env)
    probes = [tuple(probe) for probe in _probes(unit, command)]
    return _Made(str(image.path), argv, env, cwd, user, mounts, probes)


def _without_inherited(unit: Unit, env: dict[str, str]) -> None:
    """Take away what is of this machine; what the manifest declares stays."""
    for name in (*INHERITED, *INHERITED_PATHS):
        if name not in unit.revision.spec.env and name not in ("LANG", "LC_ALL", "LC_CTYPE", "TZ"):
            env.pop(name, None)
    if marker := os.environ.get(RUN_MARKER):
        # By which whoever ends the run finds what outlived its parents.
        env[RUN_MARKER] = marker


def _identity(unit: Unit, folder: Path, env: dict[str, str]) -> tuple[Mount, ...]:
    if unit.identity is None or "GRPC_XDS_BOOTSTRAP" in unit.revision.spec.env:
        return ()
    env["GRPC_XDS_BOOTSTRAP"] = f"{IDENTITY}/grpc-xds.json"
    return (Mount(str(folder / "identity"), IDENTITY),)


def _probes(unit: Unit, command: Sequence[str] | None) -> list[tuple[str, ...]]:
    """The commands of its probes; a command beside it has none."""
    declared = unit.revision.spec
    if command is not None:
        return []
    return [
        probe.command for probe in (declared.ready, declared.live) if isinstance(probe, ExecProbe)
    ]


def _resolved(
    host: Host,
    unit: Unit,
    command: Sequence[str] | None,
    path: str,
    mounts: Sequence[Mount],
) -> tuple[str, ...]:
    """A command line whose program is a path in the box."""
    declared = unit.revision.spec
    source = Path(os.path.normpath(Path(unit.revision.root, declared.path).absolute()))
    interpreter = find_interpreter(source, declared.python)
    argv = command_line(host, unit, interpreter, command, listening(unit))
    return (find_program(argv[0], path, source, mounts), *argv[1:])
