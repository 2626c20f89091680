"""The first process of a box: a static program that runs the command, passes signals on, and reaps.

The kernel gives the first process of a process namespace no signal that it does not handle
(pid_namespaces(7)), and leaves the children of processes that have ended to it; programs know
neither. The command is a child of this one. It ends as the command does, with 128 + N after signal
N, and with 127 or 126 if the command is not there or cannot be run.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Final

from bedstone.sandbox.oci.program import executable

_X86_64: Final = bytes.fromhex(
    # The start of the stack is kept: argc, argv, 0, environment.
    "4889e3"  # mov rbx, rsp
    # Block every signal: rt_sigprocmask(SIG_SETMASK, {all}, 0, 8).
    "6aff 4889e6 4989e4"  # push -1; mov rsi, rsp; mov r12, rsp
    "6a02 5f 31d2 6a08 415a 6a0e 58 0f05"  # rdi 2, rdx 0, r10 8, rax 14; syscall
    # fork(); the parent goes on at `parent`.
    "6a39 58 0f05 85c0 7534"  # rax 57; syscall; test eax, eax; jnz parent
    # The child: rt_sigprocmask(SIG_SETMASK, {none}, 0, 8).
    "6a00 4889e6 6a02 5f 31d2 6a08 415a 6a0e 58 0f05"
    # execve(argv[1], argv + 1, environment).
    "488b7b10 488d7310 488b03 488d54c310 6a3b 58 0f05"
    # It failed: 127 after ENOENT, else 126.
    "6a7e 5f 83f8fe 7560 ffc7 eb5c"  # rdi 126; cmp eax, -2; jne out; inc edi; jmp out
    # parent: its pid in ebp, room for a status at r13.
    "89c5 6a00 4989e5"
    # wait: rt_sigtimedwait({all}, 0, 0, 8).
    "4c89e7 31f6 31d2 6a08 415a b880000000 0f05"
    "83f811 740f 85c0 78e5"  # cmp eax, SIGCHLD; je reap; test eax, eax; js wait
    # kill(child, signal); wait.
    "89ef 89c6 6a3e 58 0f05 ebda"
    # reap: wait4(-1, status, WNOHANG, 0); wait, if nobody has ended; again, if not the child.
    "6aff 5f 4c89ee 6a01 5a 4531d2 6a3d 58 0f05 85c0 7ec5 39e8 75e7"
    # The status: 128 + signal, or the exit status.
    "418b4500 89c7 83e77f 7408 81c780000000 eb03 0fb6fc"
    # out: exit_group.
    "b8e7000000 0f05"
)
_CODE: Final = {"x86_64": (62, _X86_64)}


def first_program(machine: str = platform.machine()) -> bytes | None:
    """The file, or None for a machine that it was not written for."""
    found = _CODE.get(machine)
    return None if found is None else executable(*found)


def place(folder: Path) -> str | None:
    """Put it into a folder; its path, or None where there is none."""
    data = first_program()
    if data is None:
        return None
    file = folder / "init"
    file.write_bytes(data)
    file.chmod(0o755)
    return str(file)
