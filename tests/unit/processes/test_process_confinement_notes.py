"""What a kernel cannot do is said, and keeps no program from starting."""

from __future__ import annotations

import errno
import os

import pytest

from bedstone.processes import confinement, landlock, linux, seccomp
from bedstone.processes.spec import UNCONFINED, Confinement


@pytest.mark.parametrize(
    ("version", "said"), [(0, "this kernel has none"), (1, "this kernel has version 1")]
)
def test_an_old_kernel_or_another_machine(
    monkeypatch: pytest.MonkeyPatch, version: int, said: str
) -> None:
    monkeypatch.setattr(landlock, "version", lambda: version)
    monkeypatch.setattr(seccomp, "program", lambda: None)
    notes = [*confinement.restrict(Confinement(("/tmp",)))]
    assert all(note.startswith(UNCONFINED) for note in notes), notes
    assert said in notes[0]
    assert "system calls are not filtered: their numbers" in notes[1]


def test_a_kernel_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    for module, name in ((landlock, "restrict"), (linux, "filter_calls"), (linux, "unshare")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(landlock, "version", lambda: 7)
    monkeypatch.setattr(seccomp, "program", lambda: b"")
    given = Confinement(("/tmp",), hidden=("/home",))
    notes = [*confinement.separate(given), *confinement.restrict(given)]
    assert len(notes) == 3
    assert all(note.startswith(UNCONFINED) for note in notes)
    assert all(note.endswith("Operation not permitted") for note in notes)
