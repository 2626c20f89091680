"""What every driver keeps of its boxes on disk: one layout, so that all see whose a box is.

`HOME/ID/` has `isolation` and `spec.json`, written first, and `launch.json`, written last: without
it the box is half made, and is cleared away; and `first_id`, if its user ids are others here.
`HOME/.state/` has what belongs to no box, and the locks of ids while boxes are made.
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
from typing import Any, Final

from bedstone.errors import NotFoundError, UnavailableError
from bedstone.sandbox.box import BoxSpec, check_id

IDS: Final = 65536
"""User and group ids that a box has, from 0."""
FIRST_ID: Final = 2_200_000_000
"""First of the user ids of boxes, above those of instances (`sandbox.process`)."""
SLOTS: Final = (2**32 - 1 - FIRST_ID) // IDS


class Folders:
    """The folders of the boxes of one home and one isolation."""

    def __init__(self, home: Path, isolation: str) -> None:
        self.home = home
        self.state = home / ".state"
        self.isolation = isolation

    def open(self) -> None:
        """Make the home. Raises UnavailableError."""
        made = [folder for folder in (self.home, *self.home.parents) if not folder.exists()]
        try:
            self.home.mkdir(mode=0o711, parents=True, exist_ok=True)
            for folder in made:
                folder.chmod(0o711)  # whatever the umask: users of boxes have to pass
            self.state.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise UnavailableError(
                f"cannot make {error.filename}: {error.strerror}",
                hint="set BEDSTONE_HOME to a folder that you may write to",
            ) from error

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Alone, among all processes of this machine, for one box, or for the home: `""`."""
        path = self.state / f"lock-{name}"
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
        (self.state / f"lock-{box}").unlink(missing_ok=True)

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
        if self.owner(box) == self.isolation:
            with contextlib.suppress(OSError, ValueError):
                return BoxSpec.from_json(json.loads((self.folder(box) / "spec.json").read_text()))
        raise NotFoundError(f"no {self.isolation} box {box}")

    def launch(self, box: str) -> dict[str, Any] | None:
        """What was made for a box; None if it is not whole."""
        try:
            value: dict[str, Any] = json.loads((self.folder(box) / "launch.json").read_text())
        except (OSError, ValueError):
            return None
        return value

    def boxes(self) -> list[str]:
        """The ids of this isolation, sorted."""
        found = [path.parent.name for path in self.home.glob("*/isolation")]
        return sorted(box for box in found if self.owner(box) == self.isolation)

    def take_ids(self, box: str) -> int:
        """A range of user ids that no other box of this home has, kept by the box's folder.

        Raises:
            UnavailableError: there is none left.
        """
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
                    write(self.folder(box) / "first_id", str(first))
                    return first
        raise UnavailableError(f"all {SLOTS} ranges of user ids are taken by boxes")

    def clear(self, box: str) -> None:
        """Remove all of a box. Idempotent."""
        shutil.rmtree(self.folder(box), ignore_errors=True)


def write(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Write a file, whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)
    draft.replace(path)
