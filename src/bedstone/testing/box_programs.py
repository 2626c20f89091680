"""Programs for boxes under test: a root of busybox, and programs of one system call each."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

from bedstone.sandbox.oci.program import executable

_X86_64: Final = 62
_NULL: Final = 0
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNS: Final = 0x00020000
_SIGCHLD: Final = 17
_SESSION_KEYRING: Final = 2**64 - 3

ATTEMPTS: Final[dict[str, tuple[int, ...]]] = {
    "acct": (163, _NULL),
    "add_key": (248, _NULL, _NULL, _NULL, 0, _SESSION_KEYRING),
    "bpf": (321, 0, _NULL, 0),
    "clock_settime": (227, 0, _NULL),
    "clone_user_namespace": (56, _CLONE_NEWUSER | _SIGCHLD, 0, 0, 0, 0),
    "clone3": (435, _NULL, 0),
    "delete_module": (176, _NULL, 0),
    "finit_module": (313, 0, _NULL, 0),
    "init_module": (175, _NULL, 0, _NULL),
    "io_uring_setup": (425, 8, _NULL),
    "iopl": (172, 3),
    "kexec_load": (246, 0, 0, _NULL, 0),
    "keyctl": (250, 0, _SESSION_KEYRING, 1),
    "mount": (165, _NULL, _NULL, _NULL, 0, _NULL),
    "open_by_handle_at": (304, 0, _NULL, 0),
    "open_tree": (428, 0, _NULL, 0),
    "perf_event_open": (298, _NULL, 0, 0, 0, 0),
    "personality": (135, 0x0400000),
    "pivot_root": (155, _NULL, _NULL),
    "process_vm_readv": (310, 1, _NULL, 0, _NULL, 0, 0),
    "ptrace": (101, 0, 0, 0, 0),
    "quotactl": (179, 0, _NULL, 0, _NULL),
    "raw_socket": (41, 2, 3, 1),
    "packet_socket": (41, 17, 3, 0),
    "vsock_socket": (41, 40, 1, 0),
    "alg_socket": (41, 38, 5, 0),
    "reboot": (169, 0xFEE1DEAD, 672274793, 0, _NULL),
    "request_key": (249, _NULL, _NULL, _NULL, 0),
    "setns": (308, 0, 0),
    "settimeofday": (164, _NULL, _NULL),
    "swapon": (167, _NULL, 0),
    "umount": (166, _NULL, 0),
    "unshare_mounts": (272, _CLONE_NEWNS),
    "unshare_user": (272, _CLONE_NEWUSER),
    "userfaultfd": (323, 0),
}
"""System calls that no box may make, with their numbers and arguments on x86-64."""


def supported() -> str | None:
    """Why the root cannot be made here; None if it can."""
    if platform.machine() != "x86_64":
        return "the programs of system calls are written for x86-64"
    if busybox() is None:
        return "busybox is not static or not there; install it (Debian: busybox-static)"
    return None


def busybox() -> str | None:
    """A statically linked busybox."""
    found = shutil.which("busybox")
    if found is None:
        return None
    data = Path(found).read_bytes()
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    kinds = {struct.unpack_from("<I", data, offset + size * each)[0] for each in range(count)}
    return None if 3 in kinds else found  # PT_INTERP: it needs libraries


def system_call(number: int, *arguments: int) -> bytes:
    """A program that makes one system call and exits with its errno, 0 if it succeeded."""
    registers = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
    code = b"".join(
        register + struct.pack("<Q", value)
        for register, value in zip(registers, arguments, strict=False)
    )
    code += b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"
    # test rax, rax; js failed; xor edi, edi; jmp out; failed: neg rax; mov edi, eax; out: exit
    code += bytes.fromhex("4885c0 7804 31ff eb05 48f7d8 89c7 b8e7000000 0f05")
    return executable(_X86_64, code)


def make_root(folder: Path) -> Path:
    """A root file system below `folder`, readable to all: busybox, and `/attempts`."""
    found = busybox()
    assert found is not None
    root = folder / "root"
    programs = root / "bin"
    for place in (programs, root / "attempts", root / "etc", root / "tmp", root / "job"):
        place.mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy(found, programs / "busybox")
    (programs / "busybox").chmod(0o755)
    applets = subprocess.run([found, "--list"], capture_output=True, text=True, check=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            (programs / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "etc/of-the-box").write_text("yes\n")
    for name, call in ATTEMPTS.items():
        (root / "attempts" / name).write_bytes(system_call(*call))
        (root / "attempts" / name).chmod(0o755)
    for place in (root, *root.rglob("*")):
        if place.is_dir() and not place.is_symlink() and place.name != "tmp":
            place.chmod(0o755)
    return root
