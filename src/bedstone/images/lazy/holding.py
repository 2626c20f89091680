"""Lazy roots that outlive who mounted them: one mount an image, for all who use it.

```text
STORE/lazy/run-HEX-RANDOM/     a mount of the lazy image whose digest begins so
    root/                      the tree
    users.json                 names of leases: who uses it
    image.json                 digests of the image's manifest and of the lazy image
    mounted.json, keeper.sock, events.jsonl …   of `mounting`, `keeper` and `server`
```

Rules:
- A user is a lease of the store, and a mount is kept as long as one of its users has its lease.
  Whoever releases a lease calls `sweep`; if it is killed before, the next `sweep` does it.
- A mount whose keeper and server were both killed, or that is of an earlier boot, is not used
  again: the next user gets another one. Boxes on it get EIO, and are to be started anew.
- Each image has a lock, held for as long as mounting takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from bedstone import __version__
from bedstone.errors import NotFoundError, UnavailableError
from bedstone.images.files import make_directory, replace_file
from bedstone.images.lazy import artifact, kernel
from bedstone.images.lazy.mounting import How, Mounted, mount, say, start_keeper
from bedstone.images.lazy.remote import vouch
from bedstone.images.lazy.spec import Origin, Spec
from bedstone.images.opening import Opened
from bedstone.images.store import ContentStore

_PATIENCE = 3.0  # seconds in which a server that has lost its keeper becomes one
_WAYS: tuple[How, ...] = ("erofs", "loop")


async def hold(
    store: ContentStore, image: Opened, user: str, *, ways: Sequence[How] = _WAYS
) -> Mounted:
    """An image's lazy root, mounted if it is not, and kept until `sweep` finds no user of it.

    Idempotent for a user. The mount survives this process.

    Args:
        store: has the lazy image attached to the image.
        image: it was admitted.
        user: the name of a lease, which holds the image.
        ways: how it may be mounted.

    Raises:
        NotFoundError: no lazy image is attached.
        UnavailableError: it cannot be mounted here.
        InvalidError, VerificationError: the lazy image is damaged.
        DeniedError: it is encrypted, and the key is not there.
    """
    found = await asyncio.to_thread(artifact.find, store, image)
    if found.pulled:
        await asyncio.to_thread(vouch, store, image.reference, found)
    async with _locking(store, _key(found.digest)):
        for directory in _directories(store, _key(found.digest)):
            mounted = await asyncio.to_thread(_alive, directory)
            if mounted is not None and mounted.how in ways:
                await _renew(directory)
                _set_users(directory, [*_users(directory), user])
                return mounted
        return await _mount(store, image, found, user, ways)


async def _mount(
    store: ContentStore, image: Opened, found: artifact.Artifact, user: str, ways: Sequence[How]
) -> Mounted:
    directory = store.root / "lazy" / f"run-{_key(found.digest)}-{secrets.token_hex(4)}"
    make_directory(directory, 0o700)
    _set_users(directory, [user])
    about = {"manifest": image.descriptor.digest, "lazy": found.digest}
    (directory / "image.json").write_text(json.dumps(about))
    root = directory / "root"
    root.mkdir()
    try:
        lazy = await asyncio.to_thread(artifact.load, store, found)
        origins = [
            Origin(directory=str(store.root / "blobs")),
            Origin(image=str(image.reference), store=str(store.root)),
        ]
        ahead = artifact.remembered(store, image, found.digest)
        cache = store.root / "chunks"
        spec = Spec(directory, cache, origins, prefetch=ahead, seal=found.seal)
        mountable = tuple(way for way in ways if way != "plain")
        return await mount(lazy, spec, root, _refuse, ways=mountable)
    except BaseException:
        await asyncio.to_thread(_clear, directory)
        raise


def sweep(store: ContentStore) -> int:
    """Let go the mounts that nobody uses; how many. Idempotent. Blocks."""
    live = {lease.name for lease in store.leases()}
    swept = 0
    for directory in _directories(store):
        if live.intersection(_users(directory)):
            continue
        with _locked(store, directory.name.split("-")[1]):
            live = {lease.name for lease in store.leases()}
            if live.intersection(_users(directory)):
                continue
            with contextlib.suppress(NotFoundError):
                Mounted.load(directory).release()
            _remember(store, directory)
            _clear(directory)
            swept += 1
    return swept


def _remember(store: ContentStore, directory: Path) -> None:
    """Keep what the first run has touched."""
    try:
        about = json.loads((directory / "image.json").read_text())
    except (OSError, ValueError):
        return
    touched = Mounted(directory / "root", "erofs", "", directory).touched()
    with contextlib.suppress(NotFoundError, UnavailableError):
        artifact.remember(store, about["manifest"], about["lazy"], touched)


def _alive(directory: Path) -> Mounted | None:
    """The mount of a directory, if somebody answers its reads; what is dead is cleared."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            mounted = Mounted.load(directory)
            say(directory, "here")
        except NotFoundError:
            break
        except UnavailableError:
            if not _served(directory) or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return mounted
    _clear(directory)
    return None


def _served(directory: Path) -> bool:
    """Whether a process says that it serves this directory, with a keeper or without."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        pid = int(json.loads((directory / "state.json").read_text())["pid"])
        return str(directory).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


async def _renew(directory: Path) -> None:
    """Let code of this version keep the mount; what it kept before goes on if that fails."""
    with contextlib.suppress(OSError, UnavailableError):
        if (directory / "version").read_text() != __version__:
            await start_keeper(directory, take_over=True)


def _clear(directory: Path) -> None:
    """Unmount and remove, whatever is there; nobody may read from it again."""
    with contextlib.suppress(UnavailableError):
        say(directory, "stop")
    for name, flags in (
        ("root", kernel.MNT_DETACH),
        ("blobs", kernel.MNT_FORCE | kernel.MNT_DETACH),
    ):
        with contextlib.suppress(OSError):
            kernel.unmount(directory / name, flags)
    shutil.rmtree(directory, ignore_errors=True)


def _key(digest: str) -> str:
    return digest.partition(":")[2][:16]


def _directories(store: ContentStore, key: str = "*") -> list[Path]:
    return sorted((store.root / "lazy").glob(f"run-{key}-*"))


def _users(directory: Path) -> list[str]:
    try:
        found = json.loads((directory / "users.json").read_text())
    except (OSError, ValueError):
        return []
    return [str(user) for user in found]


def _set_users(directory: Path, users: Sequence[str]) -> None:
    replace_file(directory / "users.json", json.dumps(sorted(set(users))).encode())


@contextmanager
def _locked(store: ContentStore, key: str) -> Iterator[None]:
    make_directory(store.root / "lazy", 0o700)
    with (store.root / "lazy" / f".{key}.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@asynccontextmanager
async def _locking(store: ContentStore, key: str) -> AsyncIterator[None]:
    lock = _locked(store, key)
    await asyncio.to_thread(lock.__enter__)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


async def _refuse(target: Path) -> None:
    raise UnavailableError(f"nothing may be unpacked into {target}")
