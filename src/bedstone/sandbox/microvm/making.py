"""Making all that one machine starts from, in its box's folder: anew, or as a copy of another."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bedstone.sandbox.box import BoxSpec
from bedstone.sandbox.folders import write
from bedstone.sandbox.microvm import build, network, snapshots
from bedstone.sandbox.microvm.build import Tools
from bedstone.sandbox.microvm.folders import Folders
from bedstone.sandbox.microvm.qemu import RUN, Accelerator, Machine

FIRST_USER: Final = 2_090_000_000
"""User ids for QEMU, far from those that anybody gives out."""
USERS: Final = 1_000_000
MEMORY: Final = 512 << 20


@dataclass(frozen=True, slots=True)
class Host:
    """What machines are made with and run on here."""

    tools: Tools
    accelerator: Accelerator
    tsc_kilohertz: int


def make(spec: BoxSpec, folders: Folders, host: Host, snapshot: Path | None) -> None:
    """Write a box's files, `launch.json` last.

    Args:
        spec: the box; its folder is there.
        folders: of all boxes.
        host: this machine.
        snapshot: what it goes on from at its first start.

    Raises:
        UnavailableError: something cannot be made.
    """
    folder = folders.folder(spec.id)
    shares, notes = build.share(spec, folders)
    build.place_kernel(host.tools, folder, folders.state)
    write(folder / "initrd", build.initrd(host.tools, folders.state, spec))
    (folder / RUN).mkdir(mode=0o700)
    if snapshot is None:
        machine = asdict(_machine(spec, host))
        _new_disks(spec, folder, host)
    else:
        machine = snapshots.read(snapshot)["machine"]
        _copies(snapshot, folder)
    root = folder / snapshots.ROOT
    with folders.locked(""):
        user = _user(folders, host)
        if user is not None:
            os.chown(folder / "initrd", 0, user)
            (folder / "initrd").chmod(0o640)
            for name in (RUN, snapshots.UPPER):
                if (folder / name).exists():
                    os.chown(folder / name, user, user)
        value = {
            "machine": machine,
            "main": _main(spec),
            "netns": spec.netns,
            "root": str(root if root.exists() else spec.root),
            "user": user,
            "shares": shares,
            "notes": notes,
        }
        write(folder / "launch.json", json.dumps(value))


def _new_disks(spec: BoxSpec, folder: Path, host: Host) -> None:
    if not build.is_image(Path(spec.root)):
        build.pack_root(host.tools, Path(spec.root), folder / snapshots.ROOT)
    if spec.write == "overlay":
        build.make_upper(host.tools, folder / snapshots.UPPER, spec.limits.disk or build.DISK)


def _copies(snapshot: Path, folder: Path) -> None:
    memory = folder / RUN / snapshots.MEMORY
    for name, target, shared in (
        (snapshots.STATE, folder / snapshots.STATE, True),
        (snapshots.ROOT, folder / snapshots.ROOT, True),
        (snapshots.MEMORY, memory, True),
        (snapshots.UPPER, folder / snapshots.UPPER, False),
    ):
        snapshots.give(snapshot / name, target, shared=shared)
    # QEMU wants to open it for writing, though what it writes it keeps to itself. All names of it
    # are in folders that are closed to others.
    memory.chmod(0o666)


def _machine(spec: BoxSpec, host: Host) -> Machine:
    cpus = 1 if spec.limits.cpus is None else math.ceil(spec.limits.cpus)
    return Machine(
        program=host.tools.qemu,
        accelerator=host.accelerator,
        memory=spec.limits.memory or MEMORY,
        cpus=max(1, cpus),
        tsc_kilohertz=host.tsc_kilohertz,
        upper=spec.write == "overlay",
        mac=None if spec.netns is None else network.mac(spec.id),
        io_read=spec.limits.io_read,
        io_write=spec.limits.io_write,
    )


def _main(spec: BoxSpec) -> dict[str, Any]:
    return {
        "argv": list(spec.command),
        "env": dict(spec.env),
        "cwd": spec.cwd,
        "user": spec.user,
        "group": spec.group,
        "groups": list(spec.groups),
        "capabilities": list(spec.capabilities),
        "tty": spec.tty,
    }


def _user(folders: Folders, host: Host) -> int | None:
    """A user that no other box's QEMU has; None where this process may not choose one."""
    if os.geteuid() != 0 or (host.accelerator == "kvm" and not _everybodys("/dev/kvm")):
        return None
    used = folders.users()
    return next(user for user in range(FIRST_USER, FIRST_USER + USERS) if user not in used)


def _everybodys(path: str) -> bool:
    return Path(path).stat().st_mode & 0o006 == 0o006
