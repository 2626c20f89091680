"""Snapshots of machines: the files of one, taken and gone on from.

A snapshot is a folder: `memory`, as the guest's kernel sees it; `state`, of processors and devices;
`upper`, the disk for its writes, and `root.erofs`, if the box's root was made of a folder; last,
`snapshot.json`, without which it is not whole. Files are sparse.

A copy maps the memory privately: what it does not change, all copies have once. While a snapshot is
taken the machine stands still, for as long as it takes to copy what it uses of its memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from bedstone.errors import InvalidError, UnavailableError
from bedstone.sandbox.box import BoxSpec
from bedstone.sandbox.folders import write
from bedstone.sandbox.microvm.qemu import RUN
from bedstone.sandbox.microvm.qmp import connected

WHOLE: Final = "snapshot.json"
MEMORY, STATE, UPPER, ROOT = "memory", "state", "upper", "root.erofs"
PATIENCE: Final = 30.0
START_PATIENCE: Final = 5.0
_OWN: Final = ("id", "netns", "created_at", "labels")
"""What of its specification a copy has for itself."""
_BLOCK: Final = 1 << 18
_ZEROS: Final = bytes(_BLOCK)
_BACKEND: Final = "/memfd:memory-backend"
# A machine's memory is in a file, which is copied as such, unless it is itself a copy of another.
_SHARED_APART: Final = [{"capability": "x-ignore-shared", "state": True}]


def take(box: Path, folder: Path, kept: dict[str, Any]) -> None:
    """Write a snapshot of the machine of a box's folder, which is paused, to `folder`.

    Args:
        box: its folder.
        folder: empty.
        kept: whatever `read` is to give back.

    Raises:
        UnavailableError: it cannot be taken.
    """
    with connected(box) as qmp:
        qmp("migrate-set-capabilities", capabilities=_SHARED_APART)
        try:
            with (folder / STATE).open("wb") as file:
                qmp("getfd", file.fileno(), fdname=STATE)
                qmp("migrate", uri=f"fd:{STATE}")
                qmp.migrated(PATIENCE)
            with (folder / MEMORY).open("wb") as file:
                file.truncate(kept["machine"]["memory"] >> 20 << 20)
                source = _memory_of(qmp.peer)
                if source is not None:
                    try:
                        copy_sparse(source, file.fileno(), kept["machine"]["memory"])
                    finally:
                        os.close(source)
            for name in (UPPER, ROOT):
                give(box / name, folder / name, shared=name == ROOT)
        except OSError as error:
            raise UnavailableError(f"no snapshot can be written: {error}") from error
    # Ports were added, and a copy begins with as many.
    ports = len(list((box / RUN).glob("port*.sock")))
    write(folder / WHOLE, json.dumps(kept | {"machine": kept["machine"] | {"ports": ports}}))


def read(folder: Path) -> dict[str, Any]:
    """What `take` was given.

    Raises:
        InvalidError: there is no whole snapshot.
    """
    try:
        value: dict[str, Any] = json.loads((folder / WHOLE).read_text())
    except (OSError, ValueError) as error:
        raise InvalidError(f"{folder} is no snapshot of a microvm") from error
    return value


def check(folder: Path, spec: BoxSpec, tools: str) -> None:
    """Refuse what a copy cannot be.

    Args:
        folder: of the snapshot.
        spec: the box that is to go on from it.
        tools: the key of what machines are made with here.

    Raises:
        InvalidError: it is not whole, another machine's, or the box would be another.
    """
    kept = read(folder)
    if kept["tools"] != tools:
        raise InvalidError(f"{folder} was written with another version of QEMU, kernel or agent")
    before = BoxSpec.from_json(kept["spec"])
    if (before.netns is None) != (spec.netns is None):
        raise InvalidError(f"box {spec.id}: a copy has a network if the original had one")
    for field in fields(BoxSpec):
        if field.name not in _OWN and getattr(spec, field.name) != getattr(before, field.name):
            raise InvalidError(f"box {spec.id}: a copy cannot have another `{field.name}`")


def go_on(box: Path, state: int) -> None:
    """Give a QEMU that has another's memory the rest of its state.

    Args:
        box: the folder of its box.
        state: a descriptor of the state.

    Raises:
        UnavailableError: QEMU does not take it.
    """
    with connected(box, START_PATIENCE) as qmp:
        qmp("migrate-set-capabilities", capabilities=_SHARED_APART)
        qmp("getfd", state, fdname=STATE)
        qmp("migrate-incoming", uri=f"fd:{STATE}")
        qmp.migrated(PATIENCE)
        qmp("cont")  # it is paused, as the original was


def give(source: Path, target: Path, *, shared: bool) -> None:
    """Put a file where it is expected, if it is there: the same, or a sparse copy.

    Raises:
        OSError: it cannot be copied.
    """
    if not source.exists():
        return
    if shared:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
        shutil.copyfile(source, target)
        return
    with source.open("rb") as given, target.open("xb") as file:
        size = os.fstat(given.fileno()).st_size
        file.truncate(size)
        copy_sparse(given.fileno(), file.fileno(), size)


def copy_sparse(source: int, target: int, most: int) -> None:
    """Copy what of a file's first `most` bytes is neither a hole nor zero.

    Raises:
        OSError: it cannot be read or written.
    """
    end = min(most, os.fstat(source).st_size)
    at = 0
    while at < end:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: only holes follow
        hole = os.lseek(source, at, os.SEEK_HOLE)
        while at < hole:
            block = os.pread(source, min(_BLOCK, hole - at), at)
            if not block:
                return
            if block != _ZEROS[: len(block)]:
                written = 0
                while written < len(block):
                    written += os.pwrite(target, block[written:], at + written)
            at += len(block)


def _memory_of(pid: int) -> int | None:
    """The file that is a machine's memory; None if it has a private view of another's."""
    folder = Path(f"/proc/{pid}/fd")
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith(_BACKEND):  # noqa: PTH115
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return None
