"""Deletes one stand-alone box: what a shim runs for a box that is to go when it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from bedstone.boxes.standalone import Standalone
from bedstone.errors import NotFoundError


def main() -> None:
    """`python -m bedstone.boxes.remove HOME ID`."""
    with contextlib.suppress(NotFoundError):
        asyncio.run(Standalone(Path(sys.argv[1])).delete(sys.argv[2]))


if __name__ == "__main__":
    main()
