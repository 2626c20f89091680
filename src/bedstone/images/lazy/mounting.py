"""Mounts a lazy image's tree read-only, the best way that this machine has; and says which.

1. `erofs`: the kernel mounts the metadata file, its device a file of the FUSE mount (Linux 6.12).
2. `loop`: the same through two loop devices, on older kernels.
3. `plain`: whatever the caller does instead, such as unpacking the image whole.

Only root can mount EROFS; without root it is `plain`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bedstone.errors import NotFoundError, UnavailableError
from bedstone.images.lazy import kernel
from bedstone.images.lazy.making import Lazy
from bedstone.images.lazy.server import Journal
from bedstone.images.lazy.spec import DEVICE, Spec
from bedstone.processes.spec import NAME_MARKER, RUN_MARKER, SHARED_MARKER

How = Literal["erofs", "loop", "plain"]
_RECORD = "mounted.json"


def best() -> tuple[How, str]:
    """The best way here, and why not a better one (empty if there is none)."""
    if os.geteuid() != 0:
        return "plain", "only root may mount EROFS"
    if not Path("/dev/fuse").exists():
        return "plain", "there is no /dev/fuse"
    if "erofs" not in kernel.filesystems() and not _module("erofs"):
        return "plain", "the kernel has no EROFS"
    if kernel.release() >= (6, 12):
        return "erofs", ""
    if shutil.which("losetup") is None:
        return "plain", "the kernel is older than 6.12, and losetup is missing"
    return "loop", "the kernel is older than 6.12"


@dataclass(frozen=True, slots=True)
class Mounted:
    """A mounted tree.

    Attributes:
        target: where it is.
        how: the way it was mounted.
        reason: why not a better way.
        directory: of the keeper and the server; None if plain.
        loops: the loop devices in use.
    """

    target: Path
    how: How
    reason: str
    directory: Path | None = None
    loops: tuple[str, ...] = ()

    @classmethod
    def load(cls, directory: Path) -> Mounted:
        """A mount that another process has made; it stays when that one ends without closing it.

        Raises:
            NotFoundError: nothing is mounted from that directory.
        """
        try:
            found = json.loads((directory / _RECORD).read_bytes())
        except FileNotFoundError:
            raise NotFoundError(f"nothing is mounted from {directory}") from None
        how, reason, loops = found["how"], found["reason"], tuple(found["loops"])
        return cls(Path(found["target"]), how, reason, directory, loops)

    def touched(self) -> list[int]:
        """The chunks that were asked for so far, in order; the server notes them every 2 s."""
        return Journal(self.directory).touched() if self.directory else []

    async def close(self) -> None:
        """Unmount, and end the keeper. Idempotent; a plain tree is the caller's."""
        await asyncio.to_thread(self.release)

    def release(self) -> None:
        """As `close`, blocking."""
        if self.directory is None:
            return
        # Held by nobody but us, or by somebody who keeps it until they close it.
        with contextlib.suppress(OSError):
            kernel.unmount(self.target, kernel.MNT_DETACH)
        for loop in self.loops:
            with contextlib.suppress(UnavailableError):
                _losetup("--detach", loop)
        with contextlib.suppress(UnavailableError):
            say(self.directory, "stop")
        (self.directory / _RECORD).unlink(missing_ok=True)


async def mount(
    image: Lazy,
    spec: Spec,
    target: Path,
    plain: Callable[[Path], Awaitable[None]],
    *,
    ways: tuple[How, ...] = ("erofs", "loop", "plain"),
) -> Mounted:
    """Mount an image at `target`, a directory that exists.

    Args:
        image: what to mount.
        spec: for the server; its directory must be this mount's alone.
        target: where.
        plain: puts the image's files into `target`, if nothing else can be done.
        ways: those that may be used.

    Raises:
        UnavailableError: no way that may be used works here.
    """
    way, reason = best()
    tried = [reason] if reason else []
    if way in ways and way != "plain":
        try:
            return await _lazily(image, spec, target, way, reason)
        except (UnavailableError, OSError) as error:
            tried.append(f"{way}: {error}")
    if way == "erofs" and "loop" in ways:
        try:
            return await _lazily(image, spec, target, "loop", "; ".join(tried))
        except (UnavailableError, OSError) as error:
            tried.append(f"loop: {error}")
    if "plain" not in ways:
        raise UnavailableError(f"the image cannot be mounted: {'; '.join(tried)}")
    await plain(target)
    return Mounted(target, "plain", "; ".join(tried))


async def _lazily(image: Lazy, spec: Spec, target: Path, way: How, reason: str) -> Mounted:
    spec.write(image)
    metadata = spec.directory / "metadata.erofs"
    metadata.write_bytes(image.metadata)
    if not image.table.addresses()[1]:
        # No file has content. The device must be there, and EROFS takes no empty one.
        raise UnavailableError("the image has no file with content")
    await start_keeper(spec.directory)
    device = spec.directory / "blobs" / DEVICE
    loops: list[str] = []
    try:
        if way == "erofs":
            _mount_erofs(str(metadata), str(device), target)
        else:
            for file in (metadata, device):
                loop = await asyncio.to_thread(
                    _losetup, "--find", "--show", "--read-only", str(file)
                )
                loops.append(loop)
            _mount_erofs(loops[0], loops[1], target)
    except BaseException:
        await Mounted(target, way, reason, spec.directory, tuple(loops)).close()
        raise
    if spec.seal is not None:
        metadata.unlink()  # the kernel holds it open; nobody else is to read the names in it
    record = {"target": str(target), "how": way, "reason": reason, "loops": loops}
    (spec.directory / _RECORD).write_text(json.dumps(record))
    return Mounted(target, way, reason, spec.directory, tuple(loops))


def _mount_erofs(source: str, device: str, target: Path) -> None:
    flags = kernel.MS_RDONLY | kernel.MS_NODEV
    kernel.mount(source, target, "erofs", flags, f"device={device}")


async def start_keeper(directory: Path, *, take_over: bool = False) -> None:
    """Start a keeper, a daemon, and wait until its server serves.

    Raises:
        UnavailableError: it did not come up; its log is in `directory`.
    """
    argv = [sys.executable, "-m", "bedstone.images.lazy.keeper", str(directory)]
    if take_over:
        argv.append("--take-over")
    with (directory / "keeper.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=_of_no_run()
        )
    if await process.wait() != 0:
        raise UnavailableError(
            f"the image's blob server did not start; {directory / 'keeper.log'} says why"
        )


def _of_no_run() -> dict[str, str]:
    """The environment of what works for all users of an image, whoever was the first."""
    own = (RUN_MARKER, NAME_MARKER)
    kept = {name: value for name, value in os.environ.items() if name not in own}
    return {**kept, SHARED_MARKER: "1"}


async def tell(directory: Path, word: str) -> None:
    """As `say`, in a thread."""
    await asyncio.to_thread(say, directory, word)


def say(directory: Path, word: str) -> None:
    """Say a word to a directory's keeper, and wait until it is done.

    Raises:
        UnavailableError: there is no keeper, or it did not do it.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(30.0)
            with kernel.short(directory) as folder:
                client.connect(f"{folder}/keeper.sock")
            client.sendall(word.encode())
            answer = client.recv(16)
    except OSError as error:
        raise UnavailableError(f"the image's keeper does not answer: {error}") from error
    if answer != b"ok":
        raise UnavailableError(f"the image's keeper did not {word}")


def _losetup(*arguments: str) -> str:
    done = subprocess.run(["losetup", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UnavailableError(f"losetup: {done.stderr.strip()}")
    return done.stdout.strip()


def _module(name: str) -> bool:
    """Whether the kernel has a module for a file system, loaded if it is there."""
    found = shutil.which("modprobe", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        return False
    return subprocess.run([found, "-q", name], check=False).returncode == 0
