"""Notices when a manifest or the source of a workload is saved.

Directories are watched one by one, without those that hold no source: a database's own files change
all the time, and an environment has thousands. The set is made anew when it differs after a change,
so that new directories are watched too.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path, PurePosixPath

from bedstone.errors import UnavailableError
from bedstone.model.sources import IGNORED_DIRECTORIES, is_source

_LIMIT = 4000
"""Directories watched at most; a user may have 8192 inotify watches on an old kernel."""
_DEBOUNCE_MS = 150


async def saves(manifest: Path) -> AsyncGenerator[None, None]:
    """Yields after every burst of changes to the manifest or below its directory.

    Raises:
        UnavailableError: the system cannot watch files.
    """
    from watchfiles import awatch

    file = manifest.absolute()
    root = file.parent

    def wanted(_change: object, path: str) -> bool:
        changed = Path(path)
        relative = PurePosixPath(os.path.relpath(changed, root))
        return changed == file or is_source(relative)

    folders = directories(root)
    renewed = False
    while True:
        try:
            events = awatch(
                *folders,
                recursive=False,
                watch_filter=wanted,
                debounce=_DEBOUNCE_MS,
                step=30,
                rust_timeout=1000,
                yield_on_timeout=True,
            )
            async with aclosing(events):
                async for changes in events:
                    # What was saved while the set was made anew is caught by the first time-out.
                    if changes or renewed:
                        renewed = False
                        yield
                    if changes and (now := directories(root)) != folders:
                        folders, renewed = now, True
                        break
        except OSError as error:
            raise UnavailableError(
                f"cannot watch {root}: {error.strerror or error}",
                hint="raise fs.inotify.max_user_watches, or use --no-watch",
            ) from error


def directories(root: Path) -> list[Path]:
    """The directories from this one down that may hold source, sorted; at most `_LIMIT`."""
    found: list[Path] = []
    for folder, names, _ in os.walk(root):
        found.append(Path(folder))
        names[:] = sorted(
            name
            for name in names
            if name not in IGNORED_DIRECTORIES and not Path(folder, name, "pyvenv.cfg").exists()
        )
        if len(found) >= _LIMIT:
            break
    return sorted(found)
