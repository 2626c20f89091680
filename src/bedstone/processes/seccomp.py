"""The filter of system calls as a program of the kernel's (classic BPF, seccomp(2)).

A call that is allowed is found by halving the list, so that few steps decide; a kernel that knows
which numbers are always allowed (5.11 and later) does not run the program for those at all.

The refusal is EPERM, and ENOSYS for what libraries then do by an older call: `clone3`, and whatever
came after the list was made. Another architecture's calls (a 32-bit program, x32) are refused.
"""

from __future__ import annotations

import errno
import platform
import struct
from functools import cache
from typing import Final

from bedstone.processes.calls import (
    ALLOWED,
    CLONE_NAMESPACES,
    CREATING,
    FAMILIES,
    MODES,
    NEWEST,
    OPENS,
    PERSONALITIES,
    SET_ID,
    architecture,
    numbers,
)

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
# struct seccomp_data: the number, the architecture, the instruction, six arguments of 64 bits.
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENT: Final = 16  # the low half of the first; both machines are little-endian

ALLOW: Final = 0x7FFF0000
_ERROR: Final = 0x00050000
REFUSE: Final = _ERROR | errno.EPERM
ABSENT: Final = _ERROR | errno.ENOSYS

Instruction = tuple[int, int, int, int]
"""Code, how many to skip if true, if false, and the operand: `struct sock_filter`."""


@cache
def program(machine: str = platform.machine()) -> bytes | None:
    """The filter as an array of `struct sock_filter`; None for a machine that is not known."""
    wanted = architecture(machine)
    if wanted is None:
        return None
    known = numbers(machine)
    checks = {
        known["socket"]: _one_of(FAMILIES),
        known["personality"]: _one_of(PERSONALITIES),
        known["clone"]: [
            (_LOAD, 0, 0, _ARGUMENT),
            (_ANY_BIT, 0, 1, CLONE_NAMESPACES),
            (_RETURN, 0, 0, REFUSE),
            (_RETURN, 0, 0, ALLOW),
        ],
    }
    places: dict[int, int] = {}
    tail: list[Instruction] = []
    for number, check in checks.items():
        places[number] = len(tail)
        tail += check
    actions = dict.fromkeys(range(NEWEST + 1), REFUSE)
    actions |= dict.fromkeys((known[name] for name in ALLOWED if name in known), ALLOW)
    actions[known["clone3"]] = ABSENT
    body = _decide(_spans(actions, frozenset(checks)), places)
    return _assembled(wanted, [*body, *tail])


@cache
def no_set_id(machine: str = platform.machine()) -> bytes | None:
    """A filter that refuses set-user-id and set-group-id bits for files, and allows the rest."""
    wanted = architecture(machine)
    if wanted is None:
        return None
    known = numbers(machine)
    unset = [(_RETURN, 0, 0, REFUSE), (_RETURN, 0, 0, ALLOW)]
    body: list[Instruction] = []
    for name, (flags, mode) in OPENS.items():
        check = [
            (_LOAD, 0, 0, _ARGUMENT + 8 * flags),
            (_ANY_BIT, 0, 3, CREATING),
            (_LOAD, 0, 0, _ARGUMENT + 8 * mode),
            (_ANY_BIT, 0, 1, SET_ID),
            *unset,
        ]
        body += [(_EQUAL, 0, len(check), known[name]), *check] if name in known else []
    for name, mode in MODES.items():
        check = [(_LOAD, 0, 0, _ARGUMENT + 8 * mode), (_ANY_BIT, 0, 1, SET_ID), *unset]
        body += [(_EQUAL, 0, len(check), known[name]), *check] if name in known else []
    body += [(_EQUAL, 0, 1, known["openat2"]), (_RETURN, 0, 0, ABSENT), (_RETURN, 0, 0, ALLOW)]
    return _assembled(wanted, body)


def _assembled(wanted: int, body: list[Instruction]) -> bytes:
    """A program that goes on with the number of a call of the architecture that is wanted."""
    return b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, _ARCHITECTURE),
            (_EQUAL, 1, 0, wanted),
            (_RETURN, 0, 0, REFUSE),
            (_LOAD, 0, 0, _NUMBER),
            # x32, which has the architecture of x86-64, adds this bit to its numbers.
            (_ANY_BIT, 0, 1, 0x40000000),
            (_RETURN, 0, 0, REFUSE),
            *body,
        )
    )


def _one_of(values: tuple[int, ...]) -> list[Instruction]:
    """Allowed if the first argument is one of these."""
    count = len(values)
    tests = [(_EQUAL, count - at, 0, value) for at, value in enumerate(values)]
    return [(_LOAD, 0, 0, _ARGUMENT), *tests, (_RETURN, 0, 0, REFUSE), (_RETURN, 0, 0, ALLOW)]


def _spans(actions: dict[int, int], checked: frozenset[int]) -> list[tuple[int, int | None]]:
    """First number and action of each run of the same; None for one that is checked."""
    spans: list[tuple[int, int | None]] = []
    for number in range(NEWEST + 2):
        action = None if number in checked else actions.get(number, ABSENT)
        if not spans or action is None or spans[-1][1] != action:
            spans.append((number, action))
    return spans


def _decide(spans: list[tuple[int, int | None]], places: dict[int, int]) -> list[Instruction]:
    """A tree of comparisons whose leaves return, or jump to a check behind it."""
    leaves: list[int] = []

    def build(low: int, high: int, at: int) -> list[Instruction]:
        if high - low == 1:
            number, action = spans[low]
            if action is None:
                leaves.append(at)
                return [(_JUMP, 0, 0, places[number])]
            return [(_RETURN, 0, 0, action)]
        middle = (low + high) // 2
        left = build(low, middle, at + 1)
        right = build(middle, high, at + 1 + len(left))
        return [(_AT_LEAST, len(left), 0, spans[middle][0]), *left, *right]

    tree = build(0, len(spans), 0)
    for at in leaves:
        tree[at] = (_JUMP, 0, 0, len(tree) - at - 1 + tree[at][3])
    return tree
