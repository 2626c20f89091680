"""Making a box's files: the image of its root, the disk for its writes, its initial file system."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bedstone.errors import InvalidError, UnavailableError
from bedstone.sandbox import mounts
from bedstone.sandbox.box import BoxSpec, Mount
from bedstone.sandbox.folders import IDS, write
from bedstone.sandbox.microvm import guest, network, sharing
from bedstone.sandbox.microvm.folders import Folders
from bedstone.sandbox.microvm.qemu import PORTS
from bedstone.sandbox.sources import look

EROFS_PACKAGE: Final = "erofs-utils"
EXT4_PACKAGE: Final = "e2fsprogs"
SHARING_PACKAGE: Final = "qemu-system-common, or virtiofsd"
DISK: Final = 1 << 30
"""Bytes for writes where the box has no limit of its own; the file is sparse."""

_EROFS_MAGIC: Final = bytes.fromhex("e2e1f5e0")


@dataclass(frozen=True, slots=True)
class Tools:
    """What guests are made with, as `find_tools` found it."""

    qemu: str
    erofs: str
    ext4: str
    agent: Path
    kernel: guest.Kernel

    def key(self) -> str:
        """Changes with every one of them."""
        state = []
        for path in (self.qemu, str(self.agent), str(self.kernel.image)):
            known = Path(path).stat()
            state.append((path, known.st_size, known.st_mtime_ns))
        return hashlib.sha256(repr(state).encode()).hexdigest()[:32]


def check(spec: BoxSpec) -> None:
    """Refuse what a guest cannot have.

    Raises:
        InvalidError: it can never run so.
    """
    where = f"box {spec.id}"
    if spec.write == "direct":
        raise InvalidError(f"{where}: a microvm does not write to this machine's folder itself")
    for mount in binds(spec):
        look(spec.id, Path(mount.source))
    if spec.devices:
        raise InvalidError(f"{where}: a microvm has no device of this machine")
    if spec.limits.memory is not None and spec.limits.memory < 96 << 20:
        raise InvalidError(f"{where}: a microvm needs 96 MiB of memory for its own kernel")
    if not is_image(Path(spec.root)) and not Path(spec.root).is_dir():
        raise InvalidError(f"{where}: its root is neither a folder nor an EROFS image: {spec.root}")


def is_image(path: Path) -> bool:
    """Whether a file is an EROFS image: by the magic number of its superblock."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        with path.open("rb") as file:
            file.seek(1024)
            return file.read(4) == _EROFS_MAGIC
    except OSError:
        return False


def binds(spec: BoxSpec) -> list[Mount]:
    """What of this machine the box has."""
    return [mount for mount in spec.mounts if mount.kind == "bind"]


def config(spec: BoxSpec) -> dict[str, Any]:
    """What the guest's agent is told before it starts, sealed into the initial file system."""
    wanted: list[dict[str, Any]] = [
        {"source": "tmpfs", "target": each.target, "readonly": each.readonly, "size": each.size}
        for each in spec.mounts
        if each.kind == "tmpfs"
    ]
    wanted += [
        {
            "source": each.source,
            "target": each.target,
            "readonly": each.readonly,
            "share": str(number),
            "folder": stat.S_ISDIR(look(spec.id, Path(each.source)).st_mode),
        }
        for number, each in enumerate(binds(spec))
    ]
    return {
        "version": 1,
        "policy": None if spec.policy is None else spec.policy.to_json(),
        "hostname": spec.hostname,
        "root": "/dev/vda",
        "upper": "/dev/vdb" if spec.write == "overlay" else None,
        "mounts": wanted,
        "interface": None if spec.netns is None else network.interface(),
        "pids": spec.limits.pids,
        "files": spec.limits.files,
    }


def share(spec: BoxSpec, folders: Folders) -> tuple[dict[str, Any] | None, list[str]]:
    """How the guest's mounts are served (see `sharing`), and what could not be applied.

    Raises:
        UnavailableError: they cannot be, here.
    """
    if not binds(spec):
        return None, []
    if os.geteuid() != 0:
        raise UnavailableError(
            f"box {spec.id}: a microvm's mounts need root", hint="run it as root, or with sudo"
        )
    program = next((place for place in sharing.PLACES if Path(place).exists()), None)
    if program is None:
        raise UnavailableError(
            "virtiofsd is missing, which gives folders to microVMs",
            hint=f"install it (Debian: {SHARING_PACKAGE})",
        )
    view = folders.folder(spec.id) / "shares"
    view.mkdir(mode=0o755)
    owner = folders.take_ids(spec.id)
    shares, notes = [], []
    for each in binds(spec):
        mapped, source = True, Path(each.source)
        try:
            with mounts.viewed(source, owner=owner, size=IDS, readonly=each.readonly):
                pass
        except OSError as error:
            if error.errno not in mounts.UNMAPPABLE:
                raise UnavailableError(f"box {spec.id}: {error}") from error
            notes.append(f"owners of {each.target} are not mapped: {error.strerror}")
            mapped = False
        shares.append((each.source, each.readonly, mapped))
    wanted = {"program": program, "view": str(view), "shares": shares, "owner": owner, "size": IDS}
    return wanted, notes


def base_initrd(tools: Tools, state: Path, extra: tuple[str, ...]) -> bytes:
    """The part that all guests with the same modules share, kept in `state`."""
    kept = state / "-".join(("initrd", tools.key(), *extra))
    try:
        return kept.read_bytes()
    except FileNotFoundError:
        modules = guest.module_order(tools.kernel, (*guest.MODULES, *extra))
        data = guest.cpio(guest.base_files(tools.agent.read_bytes(), modules))
        write(kept, data)
        return data


def initrd(tools: Tools, state: Path, spec: BoxSpec) -> bytes:
    """A box's initial file system: two archives, one after the other."""
    own = {
        "config.json": (0o100600, json.dumps(config(spec)).encode()),
        "ports": (0o100600, str(PORTS).encode()),
    }
    extra: tuple[str, ...] = () if spec.netns is None else guest.NETWORK_MODULES
    extra += guest.SHARING_MODULES if binds(spec) else ()
    return base_initrd(tools, state, extra) + guest.cpio(own)


def pack_root(tools: Tools, source: Path, image: Path) -> None:
    """Make an EROFS image of a folder, with owners, modes and extended attributes.

    Raises:
        UnavailableError: it cannot be made.
    """
    _run([tools.erofs, "-x1", str(image), str(source)])


def make_upper(tools: Tools, path: Path, size: int) -> None:
    """Make a disk for a box's writes: sparse, of `size` bytes.

    Raises:
        UnavailableError: it cannot be made.
    """
    with path.open("wb") as file:
        file.truncate(max(size, 8 << 20))
    options = ("-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1")
    _run([tools.ext4, *options, str(path)])


def place_kernel(tools: Tools, folder: Path, state: Path) -> None:
    """Give a box the kernel; one copy is shared by all boxes of a home."""
    kept = state / f"kernel-{tools.key()}"
    if not kept.exists():
        draft = kept.with_name(f".{kept.name}.{os.getpid()}")
        shutil.copyfile(tools.kernel.image, draft)
        draft.chmod(0o644)
        draft.replace(kept)
    os.link(kept, folder / "kernel")


def _run(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
        raise UnavailableError(f"{Path(argv[0]).name} failed: {said}")


def find_tools(home: Path) -> Tools:
    """Find all that guests are made with.

    Raises:
        UnavailableError: something is missing; names the package.
    """
    from bedstone.sandbox.microvm import qemu

    roots = [home / ".state/guest", Path("/usr/local/lib/bedstone/guest"), Path("/")]
    if given := os.environ.get("BEDSTONE_GUEST"):
        roots.insert(0, Path(given))
    return Tools(
        qemu=guest.find_program(qemu.PROGRAM, qemu.PACKAGE),
        erofs=guest.find_program("mkfs.erofs", EROFS_PACKAGE),
        ext4=guest.find_program("mkfs.ext4", EXT4_PACKAGE),
        agent=guest.find_agent(),
        kernel=guest.find_kernel(roots),
    )
