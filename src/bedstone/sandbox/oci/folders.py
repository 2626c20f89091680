"""What a driver keeps of its boxes on disk.

`HOME/ID/` has `isolation` and `spec.json`, written first; `first_id`, if ids are mapped; `mnt/`,
the mounts; `bundle/config.json`; and `launch.json`, written last: without it the box is half made,
and is cleared away. All of it is root's; the box's own group may pass through, and nobody else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bedstone.errors import NotFoundError, UnavailableError
from bedstone.sandbox.box import BoxSpec, check_id
from bedstone.sandbox.oci.config import IDS
from bedstone.sandbox.oci.mounts import mounted_below
from bedstone.sandbox.oci.roots import FIRST_ID, SLOTS, release


class Folders:
    """The folders of the boxes of one home and one isolation."""

    def __init__(self, home: Path, isolation: str) -> None:
        self.home = home
        self._isolation = isolation

    def open(self) -> None:
        """Make the home. Raises UnavailableError."""
        try:
            self.home.mkdir(mode=0o711, parents=True, exist_ok=True)
            (self.home / ".state").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"cannot make {error.filename}: {error.strerror}",
                hint="set BEDSTONE_HOME to a folder that you may write to",
            ) from error

    def passable(self) -> bool:
        """Whether a user without rights reaches the home, as the user of a box must."""
        return all(
            folder.stat().st_mode & 0o001 for folder in (self.home, *self.home.resolve().parents)
        )

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Alone, among all processes of this machine, for one box, or for the home: `""`."""
        path = self.home / ".state" / f"lock-{name}"
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
                    yield
                    return
            finally:
                os.close(descriptor)

    def unlock_for_good(self, box: str) -> None:
        """Remove a box's lock file; who waits for it makes a new one."""
        (self.home / ".state" / f"lock-{box}").unlink(missing_ok=True)

    def folder(self, box: str) -> Path:
        """Of one box, there or not."""
        return self.home / check_id(box)

    def owner(self, box: str) -> str | None:
        """The isolation of the box of that id; None if there is none."""
        try:
            return (self.folder(box) / "isolation").read_text()
        except OSError:
            return None

    def spec(self, box: str) -> BoxSpec:
        """What a box is. Raises NotFoundError."""
        if self.owner(box) == self._isolation:
            with contextlib.suppress(OSError, ValueError):
                return BoxSpec.from_json(json.loads((self.folder(box) / "spec.json").read_text()))
        raise NotFoundError(f"no {self._isolation} box {box}")

    def launch(self, box: str) -> dict[str, Any] | None:
        """What was made for a box; None if it is not whole."""
        try:
            value: dict[str, Any] = json.loads((self.folder(box) / "launch.json").read_text())
        except (OSError, ValueError):
            return None
        return value

    def begin(self, spec: BoxSpec) -> Path:
        """Make a box's folder with its specification."""
        folder = self.folder(spec.id)
        folder.mkdir(mode=0o700)
        write(folder / "isolation", self._isolation)
        write(folder / "spec.json", json.dumps(spec.to_json()))
        (folder / "bundle").mkdir(mode=0o700)
        return folder

    def take_ids(self, box: str) -> int:
        """A range of user ids that no other box of this home has, kept by the box's folder."""
        with self.locked(""):
            used = set()
            for file in self.home.glob("*/first_id"):
                with contextlib.suppress(OSError, ValueError):
                    used.add(int(file.read_text()))
            digest = hashlib.sha256(f"{self.home}\0{box}".encode()).digest()
            slot = int.from_bytes(digest[:4], "big")
            for step in range(SLOTS):
                first = FIRST_ID + (slot + step) % SLOTS * IDS
                if first not in used:
                    folder = self.folder(box)
                    write(folder / "first_id", str(first))
                    # The runtime goes through it as the box's root user, and nobody else does.
                    os.chown(folder, 0, first)
                    folder.chmod(0o710)
                    return first
        raise UnavailableError(f"all {SLOTS} ranges of user ids are taken by boxes")

    def clear(self, box: str) -> None:
        """Unmount and remove all of a box. Idempotent."""
        folder = self.folder(box)
        release(folder)
        # What is behind a mount that could not be released is not ours to remove.
        left = mounted_below(folder)
        if left:
            raise UnavailableError(f"{left[0]} cannot be unmounted")
        shutil.rmtree(folder, ignore_errors=True)

    def boxes(self) -> list[str]:
        """The ids of this isolation, sorted."""
        found = [path.parent.name for path in self.home.glob("*/isolation")]
        return sorted(box for box in found if self.owner(box) == self._isolation)


def write(path: Path, text: str) -> None:
    """Write a file of mode 0600, whole or not at all."""
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)
