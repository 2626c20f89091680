"""What the driver keeps of its boxes on disk, beside what every driver does.

`HOME/ID/` also has the machine's files: `kernel`, `initrd`, `upper`, `qemu.log`, and `run/` with
sockets and the guest's console. QEMU's user owns `upper` and `run/` and can change nothing else, so
that what a start reads is what `prepare` wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bedstone.sandbox import folders

ISOLATION: Final = "microvm"


class Folders(folders.Folders):
    """The folders of the machines of one home."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, ISOLATION)

    def users(self) -> set[int]:
        """User ids that boxes run QEMU as."""
        launches = (self.launch(box) for box in self.boxes())
        return {launch["user"] for launch in launches if launch and launch["user"] is not None}
