"""Where stand-alone boxes are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def boxes_directory() -> Path:
    """The directory of all boxes, which need not exist yet.

    `BEDSTONE_HOME/boxes`; without that variable `/var/lib/bedstone/boxes` for root, else
    `XDG_DATA_HOME/bedstone/boxes`.
    """
    if home := os.environ.get("BEDSTONE_HOME"):
        return Path(home).absolute() / "boxes"
    if os.geteuid() == 0:
        return Path("/var/lib/bedstone/boxes")
    data = os.environ.get("XDG_DATA_HOME", "")
    base = Path(data) if data.startswith("/") else Path.home() / ".local/share"
    return base / "bedstone" / "boxes"
