"""Imports modules for children to come, and says what keeps an interpreter from being forked.

A fork copies one thread, and shares open descriptions and random bytes. So a module is refused that
after its import has a thread, a child or anything open, or that has drawn random bytes, which every
child would have. The reason names the module and what it left.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

_RENEWED = ("numpy.random", "multiprocessing.process")
"""Modules that draw random bytes for themselves, and whose state `renewal` draws again."""
_LOCAL = ("opentelemetry.context",)
"""Modules that draw names of keys which never leave the process."""
_CONVEYORS = ("os", "random", "secrets", "uuid", "tempfile", "importlib", __name__)
"""Who asks for random bytes on behalf of another."""
_HARMLESS = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
_PATIENCE = 0.2
"""Seconds that a thread which is ending gets."""
_ENDING = 5.0
"""Seconds for which processes are ended that modules have started."""


def preload(names: Sequence[str]) -> str | None:
    """Import the modules, in order; why this interpreter cannot be forked, if so."""
    for name in names:
        before = descriptors()
        drawn: list[str] = []
        with _watched(drawn):
            try:
                importlib.import_module(name)
            except BaseException as error:  # noqa: BLE001 - a module may raise anything, SystemExit too
                return f"{name} cannot be imported: {type(error).__name__}: {error}"
        reason = left_behind(before) or (drawn[0] if drawn else None)
        if reason:
            return f"after its import, {name} {reason}"
    return None


def descriptors() -> dict[int, str]:
    """What is open: number to what it leads to."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):  # the listing's own
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")  # noqa: PTH115
    return found


def threads() -> int:
    """How many threads this process has, by the kernel's word."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def left_behind(before: dict[int, str]) -> str | None:
    """What is there now that cannot be forked, given what was open before."""
    deadline = time.monotonic() + _PATIENCE
    while threads() > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    if threads() > 1:
        return f"has {threads() - 1} thread(s)"
    for number, target in descriptors().items():
        if before.get(number) != target and target not in _HARMLESS:
            return f"keeps {_kind(target)} open"
    return "has a child process" if _children() else None


def _children() -> list[int]:
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a kernel without CONFIG_PROC_CHILDREN
            found += map(int, path.read_text().split())
    return found


def end_children() -> None:
    """SIGKILL the processes that modules have started, and what those leave; wait for them."""
    deadline = time.monotonic() + _ENDING
    while (children := _children()) and time.monotonic() < deadline:
        for pid in children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def hides(folder: str) -> str | None:
    """Why a program whose own modules are in `folder` cannot be forked from here.

    Its folder comes first on its path: a module of it that is named like one which is loaded would
    have been taken in its place.
    """
    try:
        entries = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return None  # the program itself will say so
    for entry in entries:
        name = entry.partition(".")[0]
        loaded = sys.modules.get(name) if name.isidentifier() else None
        if loaded is None or name == "__main__":
            continue
        place = getattr(loaded, "__file__", None) or ""
        path = os.path.join(folder, entry)  # noqa: PTH118
        package = os.path.isdir(path) and os.path.exists(os.path.join(path, "__init__.py"))  # noqa: PTH110, PTH112, PTH118
        if (package or entry.endswith((".py", ".so"))) and not place.startswith(folder + os.sep):
            return f"its own {entry} has the name of a module that is loaded"
    return None


def _kind(target: str) -> str:
    if target.startswith("socket:"):
        return "a socket"
    if target.startswith("pipe:"):
        return "a pipe"
    return target.removeprefix("anon_inode:").strip("[]")


@contextlib.contextmanager
def _watched(drawn: list[str]) -> Iterator[None]:
    """Note who draws random bytes meanwhile."""
    real = os.urandom

    def urandom(size: int, /) -> bytes:
        who = _who(sys._getframe(1))  # noqa: SLF001
        if who is not None:
            drawn.append(f"has random bytes that every child would have: {who} drew them")
        return real(size)

    os.urandom = random._urandom = urandom  # type: ignore[attr-defined]  # noqa: SLF001
    try:
        yield
    finally:
        os.urandom = random._urandom = real  # type: ignore[attr-defined]  # noqa: SLF001


def _who(frame: FrameType | None) -> str | None:
    """The module for which random bytes are drawn; None if its state is renewed."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "?"))
        if _within(module, (*_RENEWED, *_LOCAL)):
            return None
        if not _within(module, _CONVEYORS):
            return f"{module}, line {frame.f_lineno},"
        frame = frame.f_back
    return None


def _within(module: str, names: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)
