"""Zygotes of a node: which interpreter an instance is forked from, and how long that is kept.

A zygote holds modules for whoever is forked from it. There are up to three, each forked from the
one before: what serving needs, libraries, and modules of the application. Their names are digests
of all that makes a difference (the interpreter's file, what it reads at its start, its user, the
modules, for the application its source), so that what is the same is shared, and nothing else is.

Rule: a zygote runs with no more rights than its children would have without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import bedstone.processes
from bedstone.errors import Error
from bedstone.processes.python_command import parse
from bedstone.processes.renewal import THREAD_VARIABLES
from bedstone.processes.spec import COLD_START, Confinement, ProcessSpec
from bedstone.sandbox.protocol import Processes, Unit

PREFIX: Final = "zygote/"
KEPT: Final = 300.0
"""Seconds that a zygote is kept which no instance needs any more, since one may soon again."""
_PYTHON: Final = ("python", "python3")
_PROGRAM: Final = Path(bedstone.processes.__file__).with_name("zygote.py")
_AT_START: Final = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LC_", "OTEL_PYTHON_")
"""Prefixes of variables that are read when an interpreter or a library starts, and never again."""
_AT_START_NAMES: Final = ("PATH", "LANG", "TZ", "OTEL_PROPAGATORS", *THREAD_VARIABLES)


@dataclass(frozen=True, slots=True)
class Policy:
    """As whom zygotes run. Part of their digest."""

    uid: int | None = None
    gid: int | None = None
    userns: str | None = None


class Zygotes:
    """Starts zygotes as they are needed, and ends those that no instance was forked from.

    Args:
        processes: the supervisor.
        folder: for their output.
        runtime: the modules that serving an application loads.
        libraries: the path list that is searched last.
        kept: seconds that those are kept which nothing needs.
    """

    def __init__(
        self,
        processes: Processes,
        folder: Path,
        runtime: Sequence[str],
        libraries: str,
        *,
        kept: float = KEPT,
    ) -> None:
        self._processes = processes
        self._folder = folder
        self._runtime = tuple(runtime)
        self._libraries = libraries
        self._kept = kept
        self._used: dict[str, tuple[str, ...]] = {}
        self._unused_since: dict[str, float] = {}
        self._later: asyncio.Task[None] | None = None

    async def prepare(
        self, unit: Unit, spec: ProcessSpec, policy: Policy
    ) -> tuple[ProcessSpec, str | None]:
        """The process of a unit that declares `warm`, to be forked, once its zygotes are asked for.

        They are still loading; the supervisor waits for them.

        Returns:
            the specification, and why it is started cold, if it is.
        """
        declared = unit.revision.spec
        python = declared.run is not None or (declared.command or ("",))[0] in _PYTHON
        if not python or parse(spec.argv) is None:
            reason = "its command gives Python an option, or is not Python's"
            return spec, f"{COLD_START}{reason}"
        parent: str | None = None
        chain: list[str] = []
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for modules, folder, source in self._levels(unit, spec):
            zygote = self._zygote(spec, policy, parent, modules, folder, source)
            self._unused_since.pop(zygote.name, None)
            info = await self._processes.spawn(zygote)
            if info.state == "failed":
                return spec, f"{COLD_START}its zygote cannot be started: {info.ending()}"
            parent = zygote.name
            chain.append(parent)
        self._used[unit.instance.path] = tuple(chain)
        return replace(spec, zygote=parent), None

    async def release(self, path: str) -> None:
        """The instance `path` is gone; in a while, end the zygotes that none came from since.

        An earlier agent's instances are not known; their zygotes are started again when needed.
        """
        if self._used.pop(path, None) is not None:
            await self._sweep()

    async def _sweep(self) -> None:
        """End what has been unused for long, and look again when the next will have been."""
        now = time.monotonic()
        names = {info.name for info in await self._processes.list()}
        used = {name for chain in self._used.values() for name in chain}
        unused = {name for name in names if name.startswith(PREFIX)} - used
        self._unused_since = {name: self._unused_since.get(name, now) for name in unused}
        for name in [n for n, since in self._unused_since.items() if now - since >= self._kept]:
            if self._unused_since.pop(name, None) is not None:  # not asked for meanwhile
                await self._processes.stop(name, 0.0)
                await self._processes.forget(name)
        if self._unused_since and self._later is None:
            seconds = min(self._unused_since.values()) + self._kept - now
            self._later = asyncio.create_task(self._sweep_later(seconds))

    async def _sweep_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._later = None
        with contextlib.suppress(Error):  # the next release looks again
            await self._sweep()

    def _levels(
        self, unit: Unit, spec: ProcessSpec
    ) -> list[tuple[tuple[str, ...], str | None, str]]:
        """Modules, the folder they are sought in first, and the digest of what is there."""
        declared = unit.revision.spec
        source = Path(spec.cwd)
        names = declared.warm or ()
        own = tuple(name for name in names if _lies_in(source, name))
        libraries = tuple(name for name in names if name not in own)
        levels: list[tuple[tuple[str, ...], str | None, str]] = []
        if declared.run is not None:
            levels.append((self._runtime, None, ""))
        if libraries or not (levels or own):
            levels.append((libraries, None, ""))
        if own:
            levels.append((own, str(source), unit.revision.source))
        return levels

    def _zygote(
        self,
        spec: ProcessSpec,
        policy: Policy,
        parent: str | None,
        modules: tuple[str, ...],
        folder: str | None,
        source: str,
    ) -> ProcessSpec:
        config = {"modules": modules, "folder": folder, "libraries": self._libraries}
        root = str(_PROGRAM.parents[2])
        zygote = ProcessSpec(
            name=PREFIX,
            argv=(spec.argv[0], str(_PROGRAM), root, json.dumps(config)),
            env=_environment(spec.env),
            cwd=folder or "/",
            uid=policy.uid,
            gid=policy.gid,
            userns=policy.userns,
            confinement=Confinement(),
            umask=spec.umask,
            stop_grace=1.0,
            zygote=parent,
            forks=True,
        )
        material = [zygote.digest(), source, _file(spec.argv[0], spec.env)]
        key = hashlib.sha256(json.dumps(material).encode()).hexdigest()[:16]
        return replace(zygote, name=f"{PREFIX}{key}", stdout=str(self._folder / f"{key}.log"))


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter and its libraries read when they start, and no secret besides."""
    found = {
        name: value
        for name, value in env.items()
        if name.startswith(_AT_START) or name in _AT_START_NAMES
    }
    return found | dict.fromkeys(THREAD_VARIABLES, "1")


def _file(program: str, env: Mapping[str, str]) -> list[object]:
    """What tells one interpreter's file from another that takes its place."""
    path = Path(os.path.realpath(shutil.which(program, path=env.get("PATH")) or program))
    try:
        found = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]


def _lies_in(source: Path, module: str) -> bool:
    """Whether a module is the application's own."""
    first = source / module.partition(".")[0]
    return first.is_dir() or first.with_suffix(".py").is_file()
