"""Where images are kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def images_directory() -> Path:
    """The directory of the content store, which need not exist yet.

    `BEDSTONE_HOME/images`; without that variable `/var/lib/bedstone/images` for root, else
    `XDG_DATA_HOME/bedstone/images` (XDG Base Directory Specification).
    """
    if home := os.environ.get("BEDSTONE_HOME"):
        return Path(home).absolute() / "images"
    if os.geteuid() == 0:
        return Path("/var/lib/bedstone/images")
    data = os.environ.get("XDG_DATA_HOME", "")
    # The specification: a relative path is ignored.
    base = Path(data) if data.startswith("/") else Path.home() / ".local/share"
    return base / "bedstone" / "images"
