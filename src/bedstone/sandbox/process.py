"""The `process` sandbox: an ordinary process of this machine.

With privileges (root, network namespaces) each instance has its own network namespace, with the
same few ports in every one, and its own user id; who calls is then known by where the call comes
from. Without, instances share the loopback interface, and a random credential in the URL of its
proxy tells the caller: cooperative, not enforced, and `Started` says so.

A user id of its own is given only where that user can read the code and the interpreter, because an
unmodified program must work; otherwise the code's owner runs it. Whoever shares a user, let alone
root, can take the credentials of the others, so that `Started` then says: not enforced, and why.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from bedstone.errors import Error, InvalidError, UnavailableError
from bedstone.model.resources import SHARED_USER, Address, Instance, Plumbing
from bedstone.processes.spec import COLD_START, Confinement, Limits, ProcessInfo, ProcessSpec
from bedstone.processes.state import ROOT_RUNS
from bedstone.sandbox.bootstrap import make_folder, write_bootstrap, write_identity
from bedstone.sandbox.box import Stats
from bedstone.sandbox.commands import command_line
from bedstone.sandbox.environment import credential, environment
from bedstone.sandbox.interpreter import find_interpreter, obstacle
from bedstone.sandbox.namespaces import LOOPBACK, Sockets, namespace_name, plumb
from bedstone.sandbox.ports import bindable
from bedstone.sandbox.protocol import Host, Started, Unit, process_name
from bedstone.sandbox.zygotes import Policy, Zygotes

FIRST_UID: Final = 2_100_000_000
"""User ids far from those that `adduser`, systemd and container engines give out."""
UID_COUNT: Final = 1_000_000
WORKLOAD_UIDS: Final = 256
"""Users of one workload that is warm: the first is its zygotes', the others its instances'."""
_WORKLOAD_BLOCKS: Final = 170_000
"""So many of them follow, up to the last number that is positive in 32 bits."""


_TEMPORARY: Final = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
_SESSION: Final = Path("/run/user/0")
"""Sockets of root's own service manager and message bus."""


class ProcessSandbox:
    """Runs instances as processes; see the module. Construct it, then `open` it once."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._enforced = False
        self._sockets = Sockets()
        self._no_userns = ""
        self._zygotes = Zygotes(
            host.processes, host.run_dir / "zygotes", host.runtime, host.libraries
        )

    async def open(self) -> None:
        """Find out what privileges allow."""
        if self._host.enforce == "never" or os.geteuid() != 0:
            return
        try:
            await self._host.processes.create_netns("probe")
            await self._host.processes.delete_netns("probe")
        except Error:
            return
        self._enforced = True

    @property
    def enforced(self) -> bool:
        """Whether instances have their own network namespaces."""
        return self._enforced

    async def allot(
        self,
        instance: Instance,
        workloads: Sequence[str],
        databases: Sequence[str],
        previous: Plumbing | None,
        *,
        warm: bool = False,
    ) -> Plumbing:
        """Addresses; see the protocol."""
        if self._enforced:
            userns = await self._userns(instance) if warm else None
            return await self._allot_namespace(instance, workloads, databases, previous, userns)
        take = self._host.ports.take
        if previous is not None and self._fits(previous, workloads):
            if previous.telemetry is not None:
                return previous
            telemetry = Address(host="127.0.0.1", port=take())
            return previous.model_copy(update={"telemetry": telemetry})
        password = secrets.token_urlsafe(24)
        return Plumbing(
            app=Address(host="127.0.0.1", port=take()),
            inbound=Address(host=self._host.address, port=take(self._host.address)),
            outbound=Address(host="127.0.0.1", port=take()),
            services={name: Address(host="127.0.0.1", port=take()) for name in workloads},
            telemetry=Address(host="127.0.0.1", port=take()),
            credential=credential(instance.workload, password),
        )

    def _fits(self, previous: Plumbing, workloads: Sequence[str]) -> bool:
        if previous.app.netns is not None or set(previous.services) != set(workloads):
            return False
        for address in (previous.app, previous.inbound, *_listeners(previous)):
            self._host.ports.hold(address.port)
        return True

    async def _allot_namespace(
        self,
        instance: Instance,
        workloads: Sequence[str],
        databases: Sequence[str],
        previous: Plumbing | None,
        userns: str | None,
    ) -> Plumbing:
        netns = str(await self._host.processes.create_netns(namespace_name(instance), userns))
        return plumb(self._host, netns, LOOPBACK, workloads, databases, previous)

    async def fetch(self, unit: Unit, tell: Callable[[str], None]) -> None:
        """Nothing: what it runs is here; see the protocol."""

    async def start(self, unit: Unit) -> Started:
        """Start the process; see the protocol."""
        spec, notes = self.specification(unit)
        if unit.revision.spec.warm is not None:
            spec, cold = await self._warm(unit, spec)
            notes = (*notes, cold) if cold else notes
        info = await self._host.processes.spawn(spec)
        if info.state == "failed":
            raise (InvalidError if info.lasting else UnavailableError)(info.ending())
        shared = any(note.startswith(SHARED_USER) for note in notes)
        return Started(info, self._enforced and not shared, (*info.applied, *notes))

    async def _warm(self, unit: Unit, spec: ProcessSpec) -> tuple[ProcessSpec, str | None]:
        """The process, to be forked from a zygote; why not, if it cannot.

        Where it has a user of its own, its zygote is root in a user namespace that has the
        workload's users and owns its networks, and no rights at all outside.
        """
        policy = Policy()
        if spec.uid is None and os.geteuid() == 0:
            # What makes namespaces for its children has all rights that root has.
            return spec, f"{COLD_START}it runs as root, and its modules would have all rights"
        if spec.uid is not None:
            if spec.uid < FIRST_UID:
                reason = "the owner of its code may not enter its network"
                return spec, f"{COLD_START}{reason}"
            userns = await self._userns(unit.instance)
            if userns is None:
                return spec, f"{COLD_START}{self._no_userns}"
            policy = Policy(0, 0, userns)
        with _writing(self._host.run_dir):
            return await self._zygotes.prepare(unit, spec, policy)

    async def _userns(self, instance: Instance) -> str | None:
        """The user namespace of a workload that is warm; None where this machine allows none.

        It is found out once: what owns the network of an instance also has to enter it.
        """
        if self._no_userns:
            return None
        first = workload_users(instance, self._host.run_dir)
        name = _workload_name(instance)
        try:
            return str(await self._host.processes.create_userns(name, first, WORKLOAD_UIDS))
        except UnavailableError as error:
            self._no_userns = error.message
            return None

    async def run(self, unit: Unit, name: str, command: Sequence[str]) -> ProcessInfo:
        """Start a command beside the instance; see the protocol."""
        spec, _ = self.specification(unit, name=name, command=command)
        return await self._host.processes.spawn(spec)

    async def ending(self, instance: Instance, info: ProcessInfo) -> str:
        """As the supervisor knows it; see the protocol."""
        del instance
        return info.ending()

    async def stats(self, instance: Instance) -> Stats | None:
        """None: its processes tell; see the protocol."""

    async def stop(self, instance: Instance, grace: float) -> None:
        """End the process; see the protocol."""
        await self._host.processes.stop(process_name(instance), grace)

    async def release(self, instance: Instance, plumbing: Plumbing | None) -> None:
        """Give the network back; see the protocol."""
        await self._host.processes.forget(process_name(instance))
        await self._zygotes.release(instance.path)
        for folder in (self._folder(instance), _temporary(self._folder(instance))):
            shutil.rmtree(folder, ignore_errors=True)
        if plumbing is None:
            return
        self._host.ports.free(plumbing.inbound.port)
        if plumbing.app.netns is not None:
            await self._host.processes.delete_netns(namespace_name(instance))
            return
        for address in (plumbing.app, *_listeners(plumbing)):
            self._host.ports.free(address.port)

    def refresh(self, unit: Unit) -> None:
        """Replace the identity's files; see the protocol."""
        folder = self._folder(unit.instance)
        if unit.identity is not None and folder.is_dir():
            with _writing(folder):
                owner = folder.stat().st_uid if self._enforced else None
                write_identity(folder, unit.identity, owner)

    def socket(self, address: Address) -> socket.socket:
        """A socket in the network of `address`; see the protocol."""
        return self._sockets.make(address)

    def usable(self, plumbing: Plumbing) -> bool:
        """Whether the proxy could listen; see the protocol."""
        addresses = (plumbing.inbound, *_listeners(plumbing))
        return all(
            bindable(address.host, address.port) for address in addresses if address.netns is None
        )

    def app_port_free(self, plumbing: Plumbing) -> bool:
        """Whether the program could listen on its port now."""
        return plumbing.app.netns is not None or bindable(plumbing.app.host, plumbing.app.port)

    def specification(
        self, unit: Unit, *, name: str | None = None, command: Sequence[str] | None = None
    ) -> tuple[ProcessSpec, tuple[str, ...]]:
        """The process of a unit, or of a command beside it, and notes on what is not enforced.

        Raises:
            InvalidError: the workload cannot run as declared.
        """
        declared = unit.revision.spec
        source = Path(unit.revision.root, declared.path)
        if not source.is_dir():
            raise InvalidError(
                f"its directory {source} does not exist", hint="correct `path:` of the workload"
            )
        interpreter = find_interpreter(source, declared.python)
        uid, gid, notes = self._user(unit, source, interpreter)
        folder = self._folder(unit.instance)
        owner = uid if uid is not None and os.geteuid() == 0 else None
        with _writing(folder):
            make_folder(folder, owner)
        env = environment(unit)
        if "/" in interpreter and "PATH" not in declared.env:
            # As in an activated environment, so that a shell finds what is installed beside it.
            env["PATH"] = f"{Path(interpreter).parent}{os.pathsep}{env['PATH']}"
        if uid is not None and uid >= FIRST_UID:
            env["HOME"] = env["TMPDIR"] = str(folder)
        if unit.identity is not None and "GRPC_XDS_BOOTSTRAP" not in declared.env:
            node = f"{unit.instance.app}/{unit.instance.workload}/{unit.instance.name}"
            with _writing(folder):
                write_identity(folder, unit.identity, owner)
                env["GRPC_XDS_BOOTSTRAP"] = str(write_bootstrap(folder, node, unit.xds, owner))
        limits = declared.limits
        more = _declared(Path(unit.revision.root), declared.writes, env)
        kept, said = self._confinement([source, *more], interpreter, folder, env, uid)
        spec = ProcessSpec(
            name=name or process_name(unit.instance),
            argv=command_line(self._host, unit, interpreter, command, unit.plumbing.app.host),
            env=env,
            cwd=str(source),
            stdout=str(unit.log),
            uid=uid,
            gid=gid,
            netns=unit.plumbing.app.netns,
            limits=Limits(limits.files, limits.memory, limits.cpu, limits.processes)
            if limits is not None
            else Limits(),
            confinement=kept,
            umask=0o022,
            stop_grace=declared.stop_timeout,
        )
        return spec, (*notes, *said)

    def _confinement(
        self,
        declared: Sequence[Path],
        interpreter: str,
        folder: Path,
        env: Mapping[str, str],
        uid: int | None,
    ) -> tuple[Confinement, tuple[str, ...]]:
        """What the process of an instance is kept to, and what is to be said about it.

        It writes where programs do that nobody has changed: in its source's folder, which its user
        may or may not, in temporary folders, and in the cache of whoever runs it; and where the
        manifest says so.
        """
        writable = [*map(str, declared), str(folder), *_TEMPORARY]
        for place in (env.get("TMPDIR"), os.path.join(env.get("HOME", "/"), ".cache")):  # noqa: PTH118
            if place is not None and place not in writable:
                writable.append(place)
        needed = [*(path.resolve() for path in declared), *_homes(interpreter)]
        if uid is not None and uid >= FIRST_UID:
            if any(path.is_relative_to(place) for path in needed for place in _TEMPORARY):
                note = ("shares /tmp: its code or its interpreter lies there",)
                return Confinement(tuple(writable), alone=True), note
            # Not in its own folder, where it could put a link to anywhere in its place.
            temporary = _temporary(folder)
            with _writing(temporary):
                make_folder(temporary, uid)
            return Confinement(tuple(writable), temporary=str(temporary), alone=True), ()
        if uid is not None or os.geteuid() != 0:
            return Confinement(tuple(writable)), ()
        # Root reads whatever it sees, and is obeyed by whoever listens on a socket of root's.
        visible = tuple(str(path) for path in (folder.resolve(), *needed) if path.exists())
        return Confinement(tuple(writable), visible, tuple(self._hidden()), root=True), ()

    def _hidden(self) -> Iterator[str]:
        """Folders of Bedstone's, and of root's session, that who runs as root is not to see."""
        host = self._host
        places = [*host.private, host.run_dir, ROOT_RUNS, host.boxes, _SESSION]
        found = {path.resolve() for path in places}
        for path in sorted(found):
            if found.isdisjoint(path.parents):
                yield str(path)

    def _user(
        self, unit: Unit, source: Path, interpreter: str
    ) -> tuple[int | None, int | None, tuple[str, ...]]:
        """The user and group to run as, and what is to be said about it."""
        if not self._enforced:
            return None, None, ()
        needed = [source]
        if "/" in interpreter:
            needed.append(Path(interpreter))
        for path in needed:
            blocked = obstacle(path)
            if blocked is not None:
                owner = source.stat()
                who = "root" if owner.st_uid == 0 else "the owner of its code"
                note = f"{SHARED_USER}as {who}, since {blocked} is not open to others"
                if owner.st_uid == os.geteuid():
                    return None, None, (note,)
                return owner.st_uid, owner.st_gid, (note,)
        identify = user_id if unit.revision.spec.warm is None else warm_user_id
        uid = identify(unit.instance, self._host.run_dir)
        return uid, uid, (f"user: {uid}",)

    def _folder(self, instance: Instance) -> Path:
        return self._host.run_dir / "instances" / namespace_name(instance)


def _listeners(plumbing: Plumbing) -> list[Address]:
    """Where the proxy listens for the instance itself, but for its databases."""
    found = [plumbing.outbound, *plumbing.services.values()]
    return found if plumbing.telemetry is None else [*found, plumbing.telemetry]


def _declared(root: Path, writes: Sequence[str], env: Mapping[str, str]) -> list[Path]:
    """The paths of `writes`, made absolute.

    Raises:
        InvalidError: one of them is not there.
    """
    found = []
    for text in writes:
        home = text == "~" or text.startswith("~/")
        path = Path(env.get("HOME", "/"), text[2:]) if home else Path(root, text).absolute()
        if not path.exists():
            raise InvalidError(
                f"its `writes` names {path}, which does not exist", hint="make it, or remove it"
            )
        found.append(path)
    return found


def _temporary(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.tmp")


def _homes(interpreter: str) -> Iterator[Path]:
    """The folders that an interpreter's files lie in: an environment's, and its own."""
    if "/" in interpreter:
        yield Path(interpreter).parents[1].resolve()
        yield Path(os.path.realpath(interpreter)).parents[1]


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"cannot write {error.filename or folder}: {error.strerror}",
            hint="make it writable, and see that its disk has room",
        ) from error


def user_id(instance: Instance, run_dir: Path) -> int:
    """The user id of an instance: derived, so that it is the same after any restart.

    The directory of the run, which no two domains of a machine share, is part of it: the same app
    in two of them must not be one user. Two of a million ids may meet; they then share a user,
    which is what they would without one.
    """
    digest = hashlib.sha256(f"uid\0{run_dir}\0{instance.path}".encode()).digest()
    return FIRST_UID + int.from_bytes(digest[:4], "big") % UID_COUNT


def workload_users(instance: Instance, run_dir: Path) -> int:
    """The first of the users of a workload that is warm; derived, as `user_id` is.

    Two workloads of some hundred thousand may meet; they are then one to the kernel.
    """
    workload = f"{instance.app}/{instance.cell}/{instance.workload}"
    digest = hashlib.sha256(f"workload\0{run_dir}\0{workload}".encode()).digest()
    block = int.from_bytes(digest[:4], "big") % _WORKLOAD_BLOCKS
    return FIRST_UID + UID_COUNT + block * WORKLOAD_UIDS


def warm_user_id(instance: Instance, run_dir: Path) -> int:
    """The user id of an instance of a workload that is warm: one of its workload's.

    Two instances of one workload may meet; they have one identity in the mesh, too.
    """
    offset = user_id(instance, run_dir) % (WORKLOAD_UIDS - 1)
    return workload_users(instance, run_dir) + 1 + offset


def _workload_name(instance: Instance) -> str:
    workload = f"{instance.app}/{instance.cell}/{instance.workload}"
    return f"{instance.workload[:20]}-{hashlib.sha256(workload.encode()).hexdigest()[:8]}"
