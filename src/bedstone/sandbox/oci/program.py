"""The smallest program: a static ELF file that exits with status 42, to probe runtimes with.

A runtime that is installed may still not work on a machine; only one that has run something does.
"""

from __future__ import annotations

import platform
import struct
from typing import Final

STATUS: Final = 42
_BASE: Final = 0x400000
_CODE: Final = {
    # mov edi, 42; mov eax, 231 (exit_group); syscall
    "x86_64": (62, bytes.fromhex("bf2a000000b8e70000000f05")),
    # mov x0, #42; mov x8, #94 (exit_group); svc #0
    "aarch64": (183, bytes.fromhex("400580d2c80b80d2010000d4")),
}


def probe_program(machine: str = platform.machine()) -> bytes | None:
    """The file (elf(5)), or None for a machine that it was not written for."""
    found = _CODE.get(machine)
    if found is None:
        return None
    number, code = found
    return executable(number, code)


def executable(number: int, code: bytes) -> bytes:
    """A static 64-bit ELF file of the architecture `number` (e_machine) that runs `code`."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    entry = _BASE + 64 + 56
    header += struct.pack("<HHIQQQIHHHHHH", 2, number, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = 64 + 56 + len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code
