"""What the drivers over OCI runtimes keep of their boxes on disk, beside what every driver does.

`HOME/ID/` also has `mnt/`, the mounts; and `bundle/config.json`. All
of it is root's; the box's own group may pass through, and nobody else.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from bedstone.errors import UnavailableError
from bedstone.sandbox import folders
from bedstone.sandbox.box import BoxSpec
from bedstone.sandbox.folders import write
from bedstone.sandbox.mounts import mounted_below
from bedstone.sandbox.oci import rootless
from bedstone.sandbox.oci.roots import release


class Folders(folders.Folders):
    """The folders of the boxes of one home and one isolation."""

    def obstacle(self) -> Path | None:
        """What keeps a user without rights from the home, as those of a box are; None: nothing."""
        for folder in (self.home, *self.home.resolve().parents):
            if not folder.stat().st_mode & 0o001:
                return folder
        return None

    def begin(self, spec: BoxSpec) -> Path:
        """Make a box's folder with its specification."""
        folder = self.folder(spec.id)
        folder.mkdir(mode=0o700)
        write(folder / "isolation", self.isolation)
        write(folder / "spec.json", json.dumps(spec.to_json()))
        (folder / "bundle").mkdir(mode=0o700)
        return folder

    def take_ids(self, box: str) -> int:
        """A range of user ids that no other box of this home has, kept by the box's folder."""
        first = super().take_ids(box)
        folder = self.folder(box)
        # The runtime goes through it as the box's root user, and nobody else does.
        os.chown(folder, 0, first)
        folder.chmod(0o710)
        return first

    def clear(self, box: str) -> None:
        """Unmount and remove all of a box. Idempotent."""
        folder = self.folder(box)
        if rootless.needed():
            rootless.clear(folder)
        else:
            release(folder)
        # What is behind a mount that could not be released is not ours to remove.
        left = mounted_below(folder)
        if left:
            raise UnavailableError(f"{left[0]} cannot be unmounted")
        super().clear(box)
