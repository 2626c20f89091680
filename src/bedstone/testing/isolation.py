"""Whether this machine can run boxes of an isolation, for tests that need them."""

from __future__ import annotations

import asyncio
import os

from bedstone.boxes.home import boxes_directory
from bedstone.errors import UnavailableError
from bedstone.sandbox.boxes import KIND, Boxes


def missing(isolation: str) -> str:
    """Why not, and what to do; empty if it can. What the drivers found out is kept."""
    if os.geteuid() != 0:
        return f"isolation {isolation} needs root; run the tests as root"
    boxes: Boxes = KIND.load(isolation)(boxes_directory())
    try:
        asyncio.run(boxes.open())
    except UnavailableError as error:
        return f"{error.message}; {error.hint}"
    return ""
