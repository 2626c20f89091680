"""The command of a box that waits to be used: a static program that reaps and sleeps.

A root need not have any program for that, so it is mounted into the box.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

from bedstone.sandbox.oci.program import executable

TARGET: Final = "/.bedstone-idle"
FALLBACK: Final = ("sleep", "2147483647")
_REAP: Final = bytes.fromhex("bfffffffff 31f6 31d2 4531d2 b83d000000 0f05 4885c0")
_SLEEP: Final = bytes.fromhex("31ff 31f6 bae8030000 b807000000 0f05")


def idle(home: Path) -> tuple[tuple[str, ...], str | None]:
    """The command, and the file to mount at `TARGET`; None where the command is the root's own."""
    if platform.machine() != "x86_64":
        return FALLBACK, None
    path = home / ".run" / "idle"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # wait4(-1) as long as there is something to reap, then poll() for a second, for ever.
        code = _REAP + b"\x7f" + (256 - len(_REAP) - 2).to_bytes(1) + _SLEEP
        code += b"\xeb" + (256 - len(code) - 2).to_bytes(1)
        draft = path.with_name(f".idle-{os.getpid()}")
        draft.write_bytes(executable(62, code))
        draft.chmod(0o755)
        draft.rename(path)
    return (TARGET,), str(path)
