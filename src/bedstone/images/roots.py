"""Root file systems: images unpacked once, shared read-only by all that run them.

```text
ROOT/roots/ALGORITHM-HEX         the root of the manifest with that digest, whole
ROOT/roots/ALGORITHM-HEX.json    what was left out of it
ROOT/roots/.ALGORITHM-HEX.new    one that is being unpacked
```

A root has its name only when all of it is on the disk. It must not be written to: put an overlay
above. The directory `roots` may be entered by its owner only, since images hold set-user-id files.
It stays for as long as its manifest is kept (`bedstone.images.collection`).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bedstone.errors import UnavailableError
from bedstone.images import digests
from bedstone.images.admission import admit
from bedstone.images.files import make_directory, replace_file, sync_directory
from bedstone.images.opening import Opened
from bedstone.images.store import ContentStore
from bedstone.images.unpacking import Unpacked, UnpackLimits, unpack


def prepare_root(
    store: ContentStore,
    image: Opened,
    *,
    limits: UnpackLimits | None = None,
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[Path, Unpacked]:
    """The directory with an image's root, unpacked if it is not there; and what was left out.

    It must be admitted (`bedstone.images.admission`). Blocks; run it in a thread. Several may ask
    for the same root at once: one unpacks it. The caller holds a lease on the image's root digest
    from before the call to the end of its use.

    Raises:
        DeniedError, VerificationError: the policy does not admit it.
        InvalidError, NotFoundError, VerificationError, UnavailableError: as `unpack`.
    """
    admit(store, image.reference, image.root.digest)
    folder = store.root / "roots"
    path = root_path(store, image.descriptor.digest)
    fresh = folder / f".{path.name}.new"
    try:
        make_directory(folder, 0o700)
        with (folder / f".{path.name}.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.is_dir():
                return path, _read(path)
            _remove(fresh)
            try:
                result = unpack(store, image, fresh, limits=limits, tell=tell)
            except BaseException:
                _remove(fresh)
                raise
            _flush(fresh)
            replace_file(path.with_suffix(".json"), json.dumps(asdict(result)).encode())
            fresh.rename(path)
            sync_directory(folder)
            return path, result
    except OSError as error:
        raise UnavailableError(f"cannot unpack into {folder}: {error.strerror}") from error


def root_path(store: ContentStore, manifest: str) -> Path:
    """Where the root of a manifest is or would be. Raises InvalidError."""
    algorithm, value = digests.parts(manifest)
    return store.root / "roots" / f"{algorithm}-{value}"


def sweep_roots(store: ContentStore, kept: set[str]) -> int:
    """Remove the roots of manifests that are not kept, and what killed unpackers have left.

    The caller is collecting. Returns: how many roots were removed.
    """
    folder = store.root / "roots"
    if not folder.is_dir():
        return 0
    removed = 0
    for path in sorted(folder.iterdir()):
        name = path.name.removeprefix(".").split(".")[0]
        digest = name.replace("-", ":", 1)
        if path.name.startswith(".") or not digests.valid(digest) or digest in kept:
            continue
        if path.suffix:
            path.unlink(missing_ok=True)
            continue
        # First out of the way, so that half of it never has its name.
        gone = folder / f".{path.name}.gone"
        _remove(gone)
        path.rename(gone)
        _remove(gone)
        removed += 1
    for path in folder.glob(".*.new"):
        if _idle(path.with_suffix(".lock")):
            _remove(path)
    return removed


def _read(path: Path) -> Unpacked:
    record = json.loads(path.with_suffix(".json").read_bytes())
    return Unpacked(**{**record, "left_out": tuple(record["left_out"])})


def _idle(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True


def _remove(folder: Path) -> None:
    """Remove a tree, also one whose directories their owner may not write."""
    if not folder.exists():
        return
    if os.geteuid() != 0:
        folder.chmod(0o700)
        for at, names, _ in os.walk(folder):
            for name in names:
                place = Path(at, name)
                if not place.is_symlink():
                    with contextlib.suppress(OSError):
                        place.chmod(0o700)
    shutil.rmtree(folder)


def _flush(folder: Path) -> None:
    """Put all of a file system's content on its disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            os.sync()
    finally:
        os.close(handle)
