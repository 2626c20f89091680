"""The drivers `container` and `gvisor`: boxes by an OCI runtime.

Files, mounts and limits are made here, the same for every runtime (`roots`, `config`); namespaces
and processes are the runtime's. `open` finds out by running a program in a box which runtime works.

Nothing is kept in memory between calls: any process of this machine can go on with a box that
another one made, whose files are the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bedstone.errors import (
    ConflictError,
    Error,
    InvalidError,
    NotFoundError,
    UnavailableError,
    from_code,
)
from bedstone.sandbox.box import (
    BoxInfo,
    BoxSpec,
    Exec,
    Launch,
    Link,
    Mount,
    State,
    Stats,
    Stdio,
)
from bedstone.sandbox.folders import write
from bedstone.sandbox.links import inside, link_shared, link_stacks
from bedstone.sandbox.oci import first, rootless
from bedstone.sandbox.oci.config import Place, config, process, unapplied
from bedstone.sandbox.oci.copying import command as copying
from bedstone.sandbox.oci.entering import How, end_name, remove
from bedstone.sandbox.oci.entering import command as entering
from bedstone.sandbox.oci.folders import Folders
from bedstone.sandbox.oci.groups import Groups
from bedstone.sandbox.oci.machine import disk, end, installed, open_files, which
from bedstone.sandbox.oci.probing import probe
from bedstone.sandbox.oci.roots import build
from bedstone.sandbox.oci.running import OciRunning
from bedstone.sandbox.oci.runtime import Files, Runtime, environment, reason
from bedstone.sandbox.policy import check_copy, check_exec, check_start

_PROBE_LIMIT: Final = 5.0
_STATES: Final[dict[str, State]] = {"running": "running", "created": "stopped", "paused": "paused"}
_TMP: Final = Mount("tmpfs", "/tmp", readonly=False, kind="tmpfs")  # noqa: S108
_BLOCK: Final = 1 << 18


class OciBoxes:
    """What both drivers have in common; see the protocol `Boxes`.

    Args:
        home: the folder of all boxes.
        groups: the control groups of this machine.
    """

    _sentry = False
    _for_everybody = False
    _how: How = "shared"

    def __init__(self, home: Path, groups: Groups | None = None) -> None:
        self._folders = Folders(home.absolute(), self.isolation)
        self._groups = Groups() if groups is None else groups
        self._runtime: Runtime | None = None

    @property
    def isolation(self) -> str:
        """The driver's name."""
        raise NotImplementedError

    def _candidates(self) -> Sequence[Runtime]:
        """What may work here, the best first."""
        raise NotImplementedError

    @property
    def runtime(self) -> str:
        """The runtime that was found, in words."""
        return self._chosen.name

    async def open(self) -> None:
        """Choose a runtime by running a program in a box; see the protocol.

        What was found is kept, and asked again after a restart of the machine or another version.
        """
        if rootless.needed() and not self._for_everybody:
            raise UnavailableError(
                f"{self.isolation} boxes need root", hint="run it as root, or with sudo"
            )
        await asyncio.to_thread(self._folders.open)
        candidates = self._candidates()
        key = installed(candidates)
        kept = self._folders.home / ".state" / f"{self.isolation}.json"
        try:
            value = json.loads(kept.read_text())
        except (OSError, ValueError):
            value = {}
        if value.get("key") == key and "keeps" in value:
            self._runtime = replace(candidates[value["index"]], keeps=value["keeps"])
            return
        found = await asyncio.gather(*(self._probe(each) for each in candidates))
        for index, failure in enumerate(found):
            if failure is None:
                keeps = await candidates[index].can_keep()
                self._runtime = replace(candidates[index], keeps=keeps)
                write(kept, json.dumps({"key": key, "index": index, "keeps": keeps}))
                return
        raise UnavailableError(
            f"no OCI runtime can run {self.isolation} boxes here: "
            + "; ".join(
                f"{each.name}: {failure}" for each, failure in zip(candidates, found, strict=True)
            ),
        )

    async def link(self, netns: str) -> Link:
        """Make the network between a namespace and a box; see the protocol."""
        raise NotImplementedError

    async def prepare(self, spec: BoxSpec) -> Launch:
        """Check the policy and make the box; see the protocol."""
        check_start(spec.policy, spec.request())
        if spec.writes_here() and "CAP_SETFCAP" in spec.capabilities:
            raise InvalidError(
                f"box {spec.id}: with CAP_SETFCAP and a folder of this machine to write to, it "
                "could leave programs there that have rights here",
                hint="leave one of them out, or use isolation microvm",
            )
        if rootless.needed():
            rootless.check(f"box {spec.id}", spec)
        return await asyncio.to_thread(self._prepare, spec, self._chosen)

    async def exec(self, box: str, program: Exec, stdio: Stdio) -> OciRunning:
        """Run one more program; see the protocol."""
        spec = await self._running(box, paused=False)
        check_exec(spec.policy, program.request(spec))
        if rootless.needed():
            rootless.check(f"box {box}", program)
        extra = set(program.capabilities) - set(spec.capabilities)
        if extra:
            raise InvalidError(f"box {box} itself has no {', '.join(sorted(extra))}")
        return await OciRunning.start(
            self._chosen,
            box,
            process(program, spec, open_files()),
            self._folders.folder(box) / "bundle",
            stdio,
            netns=None if self._sentry else spec.netns,
            sentry=self._sentry,
        )

    async def signal(self, box: str, number: int) -> None:
        """Signal the box's command; see the protocol."""
        await self._running(box)
        await self._chosen.demand("kill", box, str(int(number)))

    async def pause(self, box: str) -> None:
        """Let nothing in it run; see the protocol."""
        await self._running(box)
        if (await self._chosen.status(box))[0] != "paused":
            await self._chosen.demand("pause", box)

    async def resume(self, box: str) -> None:
        """Let it run again; see the protocol."""
        await self._running(box)
        if (await self._chosen.status(box))[0] == "paused":
            await self._chosen.demand("resume", box)

    async def stats(self, box: str) -> Stats:
        """What it uses; see the protocol. Only of a box without processes is the runtime asked."""
        found = await self.spent(box)
        if not found.pids:
            await self._running(box)
        return found

    async def spent(self, box: str) -> Stats:
        """What it used until it ended; see the protocol `Endings`."""
        self._folders.spec(box)
        return await asyncio.to_thread(self._groups.stats, self._group(box))

    async def copy_in(self, box: str, folder: str, archive: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream; see the protocol. The box need not run."""
        child = await self._copy("copy_in", box, folder)
        assert child.stdin is not None  # noqa: S101 - it was made with pipes
        assert child.stderr is not None  # noqa: S101
        errors = asyncio.ensure_future(child.stderr.read())
        try:
            try:
                async for block in archive:
                    child.stdin.write(block)
                    await child.stdin.drain()
                child.stdin.close()
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has ended, and says why
            await _ended(child, await errors)
        finally:
            await end(child)

    async def copy_out(self, box: str, path: str) -> AsyncIterator[bytes]:
        """A tar stream of a file or folder; see the protocol. The box need not run."""
        child = await self._copy("copy_out", box, path)
        assert child.stdout is not None  # noqa: S101 - it was made with pipes
        assert child.stderr is not None  # noqa: S101
        errors = asyncio.ensure_future(child.stderr.read())
        try:
            while block := await child.stdout.read(_BLOCK):
                yield block
            await _ended(child, await errors)
        finally:
            await end(child)

    async def delete(self, box: str) -> None:
        """End it and give everything back; see the protocol."""
        owner = self._folders.owner(box)
        if owner is not None and owner != self.isolation:
            raise NotFoundError(f"no {self.isolation} box {box}, it is a {owner} box")
        if owner is None and not self._folders.folder(box).is_dir():
            return
        await asyncio.to_thread(self._delete, box, self._chosen)

    async def list(self) -> list[BoxInfo]:
        """Every box of this isolation; see the protocol."""
        boxes = await asyncio.to_thread(self._folders.boxes)
        found = await asyncio.gather(*(self._info(box) for box in boxes))
        return [info for info in found if info is not None]

    @property
    def _chosen(self) -> Runtime:
        if self._runtime is None:
            raise UnavailableError(f"the {self.isolation} driver is not open")
        return self._runtime

    def _group(self, box: str) -> str:
        return f"bedstone-box-{self._folders.home.stat().st_ino:x}-{box}"

    async def _info(self, box: str) -> BoxInfo | None:
        try:
            spec = self._folders.spec(box)
        except Error:
            return None  # deleted meanwhile
        state, pid = await self._chosen.status(box)
        notes = (self._folders.launch(box) or {}).get("notes", ())
        return BoxInfo(spec, self.isolation, _STATES.get(state, "stopped"), pid, tuple(notes))

    async def _running(self, box: str, *, paused: bool = True) -> BoxSpec:
        spec = self._folders.spec(box)
        state, _ = await self._chosen.status(box)
        if state not in _STATES or (state == "paused" and not paused):
            raise ConflictError(
                f"box {box} is paused" if state == "paused" else f"box {box} does not run"
            )
        return spec

    def _prepare(self, spec: BoxSpec, runtime: Runtime) -> Launch:
        with self._folders.locked(spec.id):
            owner = self._folders.owner(spec.id)
            if owner is not None and owner != self.isolation:
                raise ConflictError(f"box {spec.id} is there already, as a {owner} box")
            made = self._folders.launch(spec.id)
            if made is not None and made["digest"] != spec.digest():
                raise ConflictError(
                    f"box {spec.id} is there already, and is another one",
                    hint="delete it first, or choose another id",
                )
            if made is None:
                self._clear(spec.id, runtime)  # what an earlier attempt left
                try:
                    made = self._make(spec, runtime)
                except BaseException:
                    self._clear(spec.id, runtime)
                    self._folders.unlock_for_good(spec.id)
                    raise
            elif runtime.keeps and (runtime.state / spec.id).exists():
                _call(runtime.argv("delete", spec.id))  # refused of one that runs
            bundle = self._folders.folder(spec.id) / "bundle"
            files = Files(str(bundle / "run.pid"), str(bundle / "run.log"))
            argv = self._foreground(spec, runtime, str(bundle), files)
            if spec.netns is not None:
                argv = entering(self._how, spec.netns, spec.id, argv)
            notes = tuple(made["notes"])
            # runsc writes that file before it starts the command.
            started = "" if self._sentry else files.started
            return Launch(argv, environment(), notes, started, files.log)

    def _foreground(
        self, spec: BoxSpec, runtime: Runtime, bundle: str, files: Files
    ) -> tuple[str, ...]:
        """The command that runs a box and passes signals on to it."""
        keep = ("--keep",) if runtime.keeps else ()
        return runtime.starting("run", *keep, "--bundle", bundle, spec.id, files=files)

    def _make(self, spec: BoxSpec, runtime: Runtime) -> dict[str, Any]:
        folder = self._folders.begin(spec)
        targets = {mount.target for mount in spec.mounts}
        bare = spec.write == "readonly" and _TMP.target not in targets
        extra = (_TMP,) if bare else ()
        place, notes = (rootless.build if rootless.needed() else self._build)(spec, folder, extra)
        write(folder / "bundle" / "config.json", json.dumps(config(spec, place), indent=1))
        made = {
            "digest": spec.digest(),
            "notes": notes,
            "root": place.root,
            "binds": [[shown, target] for shown, target, _ in place.binds],
            "first_id": place.first_id,
            "readonly": spec.write == "readonly",
            "runtime": runtime.name,
        }
        write(folder / "launch.json", json.dumps(made))
        return made

    def _build(
        self, spec: BoxSpec, folder: Path, extra: tuple[Mount, ...]
    ) -> tuple[Place, tuple[str, ...]]:
        """Make what a box has of this machine, and say what could not be applied."""
        notes: list[str] = []
        first_id = None
        if self._sentry:
            notes.append("user ids are not mapped: the kernel in user space keeps its own")
        else:
            if (closed := self._folders.obstacle()) is not None:
                raise UnavailableError(
                    f"box {spec.id}: its users cannot be nobody on this machine, since {closed} is "
                    "not open for others to pass",
                    hint=f"chmod o+x {closed}, or set BEDSTONE_HOME to another folder",
                )
            first_id = self._folders.take_ids(spec.id)
        tree = build(spec, folder, first_id, extra)
        place = Place(
            root=str(tree.root),
            binds=tree.binds,
            first_id=first_id,
            cgroup=self._groups.path(self._group(spec.id)),
            controllers=self._groups.controllers(),
            device=disk(folder),
            sentry=self._sentry,
            open_files=open_files(),
            init=None if self._sentry or not spec.init else first.place(folder / "mnt"),
        )
        if spec.init and not self._sentry and place.init is None:
            notes.append("its command is its first process: none of ours is for this processor")
        return place, (*notes, *tree.notes, *unapplied(spec.limits, place))

    def _delete(self, box: str, runtime: Runtime) -> None:
        with self._folders.locked(box):
            # Whoever starts it now finds nothing to start.
            for name in ("bundle/config.json", "launch.json"):
                (self._folders.folder(box) / name).unlink(missing_ok=True)
            self._clear(box, runtime)
            self._folders.unlock_for_good(box)

    def _clear(self, box: str, runtime: Runtime) -> None:
        """Give back what a box has of this machine, from processes to files. Idempotent."""
        state = runtime.state / box
        group = self._group(box)
        # Killed first, so that a parent reaps what the runtime waits for.
        self._groups.clear(group, remove=False)
        if state.exists() or self._folders.folder(box).is_dir():
            _call(runtime.argv("delete", "--force", box))
        self._groups.clear(group, remove=True)
        if state.is_dir():
            shutil.rmtree(state, ignore_errors=True)  # a start that was cut off before it counted
        for file in runtime.state.glob(f"{box}_sandbox:*"):
            file.unlink(missing_ok=True)
        if self._how == "paired":
            with contextlib.suppress(Error):  # the namespace is gone, or was never there
                spec = self._folders.spec(box)
                if spec.netns is not None:
                    inside(spec.netns, lambda: remove(end_name(box)))
        self._folders.clear(box)

    async def _copy(self, field: Any, box: str, path: str) -> asyncio.subprocess.Process:
        spec = self._folders.spec(box)
        if not path.startswith("/") or path != os.path.normpath(path):
            raise InvalidError(f"got path {path!r}, expected an absolute one without `..`")
        check_copy(spec.policy, field, path)
        made = self._folders.launch(box)
        if made is None:
            raise ConflictError(f"box {box} is not whole, prepare it again")
        wanted = {key: made[key] for key in ("root", "binds", "first_id", "readonly")}
        if rootless.needed():
            state, pid = await self._chosen.status(box)
            if state != "running":
                raise ConflictError(f"box {box} does not run")
            wanted = {"pid": pid}
        wanted |= {"mode": field.removeprefix("copy_"), "path": path}
        return await asyncio.create_subprocess_exec(
            *copying(wanted),
            stdin=asyncio.subprocess.PIPE if field == "copy_in" else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if field == "copy_out" else asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={},
            start_new_session=True,
        )

    async def _probe(self, runtime: Runtime) -> str | None:
        """Why a runtime does not work; None if it does."""
        mine = type(self)(self._folders.home, self._groups)
        mine._runtime = runtime  # noqa: SLF001 - another of the same class
        return await probe(mine, self._folders.home / ".state")


class ContainerBoxes(OciBoxes):
    """`container`: namespaces of this machine's kernel, by runc or crun."""

    _for_everybody = True

    @property
    def isolation(self) -> str:
        """The driver's name."""
        return "container"

    async def link(self, netns: str) -> Link:
        """The box is in the namespace itself; see the protocol."""
        return await asyncio.to_thread(link_shared, netns)

    def _candidates(self) -> Sequence[Runtime]:
        state = self._folders.home / ".state" / "container"
        found = [Runtime(path, state) for name in ("runc", "crun") if (path := which(name))]
        if not found:
            raise UnavailableError(
                "neither runc nor crun is installed", hint="install one (Debian: runc)"
            )
        return found


class GvisorBoxes(OciBoxes):
    """`gvisor`: a kernel in user space, by runsc."""

    _sentry = True
    _how = "paired"

    @property
    def isolation(self) -> str:
        """The driver's name."""
        return "gvisor"

    async def link(self, netns: str) -> Link:
        """The cable is laid when the box starts; see the protocol."""
        return await asyncio.to_thread(link_stacks, netns)

    def _candidates(self) -> Sequence[Runtime]:
        program = which("runsc")
        if program is None:
            raise UnavailableError("runsc is not installed", hint="install it (Debian: runsc)")
        state = self._folders.home / ".state" / "gvisor"
        # Files are shared with copies from outside; writes go to the box's own overlay.
        options = ("--file-access=shared", "--overlay2=none", "--oci-seccomp", "--net-raw=false")
        return [
            Runtime(program, state, (*options, f"--platform={platform}"), platform)
            for platform in ("systrap", "kvm", "ptrace")
        ]

    def _foreground(
        self, spec: BoxSpec, runtime: Runtime, bundle: str, files: Files
    ) -> tuple[str, ...]:
        network = "--network=none" if spec.netns is None else "--network=sandbox"
        # runsc passes signals on only with a terminal; a shell does for it. What is in /proc has
        # not been waited for, so that the status is the program's and not the trap's.
        kill = shlex.join(runtime.argv("kill", spec.id))
        passed = ("TERM", "HUP") if spec.tty else ("TERM", "HUP", "INT", "QUIT", "USR1", "USR2")
        traps = "; ".join(f"trap {shlex.quote(f'{kill} {name}')} {name}" for name in passed)
        starting = replace(runtime, options=(*runtime.options, network))
        run = shlex.join(starting.starting("run", "--bundle", bundle, spec.id, files=files))
        script = (
            f'{traps}; {run} <&0 & p=$!; while :; do wait "$p"; s=$?; [ -d "/proc/$p" ] || break; '
            'done; exit "$s"'
        )
        return ("/bin/sh", "-c", script)


def _call(argv: tuple[str, ...]) -> None:
    """Run a command of a runtime, whose failure is seen by what it left undone."""
    import subprocess

    subprocess.run(argv, env=environment(), capture_output=True, timeout=30, check=False)


async def _ended(child: asyncio.subprocess.Process, errors: bytes) -> None:
    status = await child.wait()
    if status == 0:
        return
    try:
        value = json.loads(errors)
        raise from_code(value["code"], value["message"])
    except (ValueError, KeyError, TypeError):
        text = errors.decode(errors="replace").strip()
        raise UnavailableError(f"copying ended with status {status}: {reason(text)}") from None
