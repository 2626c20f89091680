"""The filter of system calls, run step by step as the kernel would: for both machines."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from bedstone.processes.calls import ALLOWED, NEWEST, architecture, numbers
from bedstone.processes.seccomp import ABSENT, ALLOW, REFUSE, no_set_id, program

MACHINES = ["x86_64", "aarch64"]
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def decide(machine: str, number: int, argument: int = 0, arch: int | None = None) -> int:
    """What the filter returns, and that it does (seccomp(2), struct seccomp_data)."""
    return run(program(machine), machine, number, (argument,), arch)


def run(
    filtering: bytes | None,
    machine: str,
    number: int,
    arguments: tuple[int, ...],
    arch: int | None = None,
) -> int:
    """The same for any filter."""
    code = [*struct.iter_unpack("HBBI", filtering or b"")]
    name = architecture(machine) if arch is None else arch
    data = struct.pack("iIQ6Q", number, name, 0, *arguments, *[0] * (6 - len(arguments)))
    at, value = 0, 0
    while True:
        kind, yes, no, operand = code[at]
        at += 1
        match kind:
            case 0x20:
                value = struct.unpack_from("I", data, operand)[0]
            case 0x05:
                at += operand
            case 0x15:
                at += yes if value == operand else no
            case 0x35:
                at += yes if value >= operand else no
            case 0x45:
                at += yes if value & operand else no
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"no such instruction: {kind:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_what_is_listed_is_allowed_and_nothing_else(machine: str) -> None:
    known = numbers(machine)
    allowed = {known[name] for name in ALLOWED if name in known}
    found = {number for number in range(1024) if decide(machine, number) == ALLOW}
    assert found == allowed | {known["personality"], known["clone"]}
    # Whatever has been added since the list was made is absent, as on an older kernel.
    assert {decide(machine, number) for number in range(NEWEST + 1, 1024)} == {ABSENT}
    assert decide(machine, known["clone3"]) == ABSENT


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide(machine: str) -> None:
    known = numbers(machine)
    families = {n for n in range(64) if decide(machine, known["socket"], n) == ALLOW}
    assert families == {1, 2, 10, 16}
    assert decide(machine, known["clone"], 0x01200011) == ALLOW, "a fork of the C library's"
    for flag in (0x20000, 0x10000000, 0x20000000, 0x40000000, 0x02000000, 0x04000000, 0x08000000):
        assert decide(machine, known["clone"], flag | 17) == REFUSE
    assert decide(machine, known["personality"], 0x0040000) == REFUSE, "ADDR_NO_RANDOMIZE"
    assert REFUSE & 0xFFFF == errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_of_another_architecture_are_refused(machine: str) -> None:
    read = numbers(machine)["read"]
    for arch in (0x40000003, 0x40000028, architecture(MACHINES[machine == "x86_64"])):
        assert decide(machine, read, arch=arch) == REFUSE
    assert decide(machine, 0x40000000 | read) == REFUSE, "x32"


@pytest.mark.parametrize("machine", MACHINES)
def test_no_file_gets_a_set_user_id_bit(machine: str) -> None:
    """By whatever call; where no file is made, a mode has no meaning and is not looked at."""
    known = numbers(machine)

    def asked(name: str, *arguments: int) -> int:
        return run(no_set_id(machine), machine, known[name], arguments)

    made, existing, temporary = 0o101, 0o2, 0o20200002
    calls = {
        "chmod": (1,), "fchmod": (3,), "fchmodat": (3, 1), "fchmodat2": (3, 1), "mknod": (1,),
        "mknodat": (3, 1), "creat": (1,), "open": (1, made), "openat": (3, 1, made),
    }  # fmt: skip
    assert {"fchmod", "fchmodat", "mknodat", "openat"} <= set(calls) & set(known)
    for name, before in calls.items():
        if name in known:
            for mode in (0o4755, 0o2755, 0o6000, 0o104711):
                assert asked(name, *before, mode) == REFUSE, name
            assert asked(name, *before, 0o101777) == ALLOW, name
    assert asked("openat", 3, 1, temporary, 0o4700) == REFUSE
    assert asked("openat", 3, 1, existing, 0o6000) == ALLOW
    assert asked("openat2", 3, 1, 2, 24) == ABSENT
    assert asked("write", 0o6000, 0o6000, 0o6000, 0o6000) == ALLOW
    assert run(no_set_id(machine), machine, known["read"], (), 0x40000003) == REFUSE


@pytest.mark.skipif(not HEADER.exists(), reason="install linux-libc-dev on x86-64")
def test_numbers_are_the_kernels() -> None:
    pairs = re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text())
    theirs = {name: int(number) for name, number in pairs}
    ours = numbers("x86_64")
    both = set(theirs) & set(ours)
    assert len(both) > 250
    assert {name: ours[name] for name in both} == {name: theirs[name] for name in both}
    asked = {name for name in ALLOWED if name in theirs}
    assert asked <= set(ours), "none is forgotten"


def test_a_machine_that_is_not_known_has_no_filter() -> None:
    assert program("riscv64") is None
    assert no_set_id("riscv64") is None
