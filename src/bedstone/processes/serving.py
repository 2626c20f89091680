"""The inside of a zygote: serves requests, and makes a forked child its program.

See `bedstone.processes.zygote` for the messages and the rules. Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from bedstone.processes import (
    confinement,
    launcher,
    linux,
    preloading,
    python_command,
    renewal,
    siblings,
)
from bedstone.processes.spec import Confinement, ProcessSpec

_REQUEST = 1 << 16
_ORDER = 1 << 20
_REHEARSALS = 16
"""CPython specialises what has run some eight times (PEP 659)."""
_IDLE = 0.003
"""Seconds without a request until one child is forked ahead of the next."""


def main(config: Mapping[str, Any], search: Sequence[str]) -> NoReturn:
    """Load what `config` names, then serve until the supervisor lets go.

    Args:
        config: `modules`, their names; `folder`, of the application, put first on the path, or
            None; `libraries`, a path list that is searched last where Bedstone is not installed.
        search: `sys.path` as the interpreter has it.
    """
    # What the interpreter itself set the variables to is the child's business again.
    os.environ.update(dict.fromkeys(renewal.THREAD_VARIABLES, "1"))
    folder = config.get("folder")
    sys.path[:] = [folder, *search] if folder else [*search]
    # As `bedstone.runtime.bootstrap`: what a zygote above has loaded need not be installed.
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    if not any(finder.find_spec("bedstone", None) for finder in finders):
        sys.path.extend(str(config.get("libraries", "")).split(os.pathsep))
    channel = socket.socket(fileno=launcher.CHANNEL)
    channel.set_inheritable(False)
    # Whatever a module starts is a child then, also if its parent has ended.
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    reason = preloading.preload(config["modules"])
    if reason is not None:
        preloading.end_children()
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)
    gc.unfreeze()  # what the zygote above has frozen is to be found as well
    found = renewal.sources()
    hides = confinement.hides_processes()
    if hides and os.geteuid() == 0:
        # No child is to gain what its kind never has; it is taken from all of them here, at once.
        linux.bar_capabilities(0 if _mapped() else confinement.ROOT_KEPT)
    rehearse = _rehearsal(found)
    rehearse(_REHEARSALS)
    gc.collect()
    gc.freeze()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    link = _serve(channel, reason, rehearse)
    if link is None:
        sys.exit(0)
    command = _become(link, found, hides=hides)
    python_command.run(command, search)


def _mapped() -> bool:
    """Whether it is in a user namespace of its own, where none of its children stays root."""
    with open("/proc/self/uid_map", encoding="ascii") as file:  # noqa: PTH123
        return file.read().split() != ["0", "0", "4294967295"]


def _rehearsal(found: renewal.Sources) -> Callable[[int], None]:
    """Does what every child will do, where that changes nothing here, so many times.

    What the interpreter makes at the first use, and its specialised code, is then shared.
    """
    env = dict(os.environ)
    sample = ProcessSpec("x", (sys.executable, "-c", "pass"), env=env, confinement=Confinement())
    text = json.dumps({"spec": sample.to_json(), "marks": {"X": "x"}, "parent": 1})

    def rehearse(times: int) -> None:
        for _ in range(times):
            spec = ProcessSpec.from_json(json.loads(text)["spec"])
            python_command.parse(spec.argv)
            confinement.rehearse()
            linux.retitle(sys.orig_argv, env)
            renewal.renew(found, env)

    return rehearse


def _serve(
    channel: socket.socket, reason: str | None, rehearse: Callable[[int], None]
) -> socket.socket | None:
    """Fork for each request. Returns a child's end in a child; None when the supervisor lets go."""
    ahead = _Ahead(channel, rehearse)
    while True:
        mine = ahead.fork() if reason is None else None
        if mine is not None:
            return mine
        data, handles, _, _ = socket.recv_fds(channel, _REQUEST, 1)
        if not data:
            return None
        if not handles:
            ahead.exists = False  # somebody has taken it
            continue
        link = socket.socket(fileno=handles[0])
        why = reason or _obstacle()
        if why is None:
            try:
                if _fork():
                    channel.close()
                    return link
            except OSError as error:
                why = f"its zygote cannot fork: {error.strerror}"
        if why is not None:
            _refuse(link, why)
        link.close()


class _Ahead:
    """One child that is forked while nothing is asked for, and offered to the supervisor.

    It ends with the supervisor's end of its pair, and so with its zygote.
    """

    def __init__(self, channel: socket.socket, rehearse: Callable[[int], None]) -> None:
        self._channel = channel
        self._rehearse = rehearse
        self.exists = False

    def fork(self) -> socket.socket | None:
        """Fork it, if it is time; returns its end in the child."""
        if self.exists or select.select((self._channel,), (), (), _IDLE)[0]:
            return None
        self.exists = True
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, contextlib.suppress(OSError):  # whoever asks next is told
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            if _obstacle() is None:
                if _fork():
                    self._channel.close()
                    # Its own copies of what it will touch are made now: nobody waits yet.
                    self._rehearse(1)
                    return theirs
                socket.send_fds(self._channel, [b"{}"], [ours.fileno()])
        theirs.close()
        return None


def _fork() -> bool:
    """Fork; True in the child, once it is the supervisor's."""
    if siblings.available():
        return siblings.fork() == 0
    between = os.fork()
    if between != 0:
        os.waitpid(between, 0)
        return False
    own = os.getpid()
    try:
        child = os.fork()
    except OSError:
        os._exit(1)  # the end of the link says it
    if child != 0:
        os._exit(0)
    while os.getppid() == own:
        time.sleep(0.0001)
    return True


def _obstacle() -> str | None:
    """Why nothing can be forked now."""
    extra = preloading.threads() - 1
    return f"its zygote has {extra} more thread(s)" if extra else None


def _refuse(link: socket.socket, why: str) -> None:
    with contextlib.suppress(OSError):  # nobody waits any more
        link.send(json.dumps({"refused": why[:1000]}).encode())


def _separate(spec: ProcessSpec, *, hides: bool) -> list[str]:
    """Namespaces of its own, where it can; its view of processes is the zygote's."""
    if os.geteuid() != 0:
        return []
    notes = confinement.separate(spec.confinement or Confinement())
    return [*notes, confinement.HIDES] if hides else notes


def _become(
    link: socket.socket, found: renewal.Sources, *, hides: bool
) -> python_command.PythonCommand:
    """Take the order, and do to this process what it says; returns what is left to be run."""
    link.send(b"{}")
    data, handles, _, _ = socket.recv_fds(link, _ORDER, 3)
    if not data:
        os._exit(launcher.FAILED)  # it was given up meanwhile
    order = json.loads(data)
    spec = ProcessSpec.from_json(order["spec"])
    env = {**spec.env, **order["marks"]}
    parent = int(order["parent"])
    command = python_command.parse(spec.argv)
    why = preloading.hides(command.folder(spec.cwd)) if command else "it is no command of Python's"
    if command is None or why is not None:
        _refuse(link, str(why))
        link.recv(1)  # until the supervisor has heard it, it is to see no end
        os._exit(launcher.FAILED)
    step = "start"
    applied: list[str] = []
    limited = bool(order["memory_limited"])
    steps: launcher.Steps = (
        ("bind to the supervisor's life", lambda: launcher.bind_life(spec, parent)),
        ("open a session", os.setsid),
        ("take the output", lambda: _take(handles)),
        ("enter the network namespace", lambda: launcher.enter(spec)),
        ("separate it from others", lambda: applied.extend(_separate(spec, hides=hides))),
        ("mount", lambda: launcher.mount(spec)),
        *launcher.restrictions(spec, parent, applied, memory_limited=limited),
        # No program is run, which would have made it so: /proc/self is its own again.
        ("own its entry in /proc", lambda: linux.prctl(linux.PR_SET_DUMPABLE, 1)),
        ("own its title", lambda: linux.retitle(spec.argv, env)),
        ("renew what a fork shares", lambda: renewal.renew(found, env)),
    )
    try:
        for name, action in steps:
            step = name
            action()
        link.send(json.dumps({"running": applied}).encode())
        link.close()
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told to who asked
        with contextlib.suppress(OSError):
            link.send(launcher.failure(step, spec, error))
        os._exit(launcher.FAILED)
    return command


def _take(handles: Sequence[int]) -> None:
    """Output, error, and for a zygote the channel that it is asked on."""
    for handle, target in zip(handles, (1, 2, launcher.CHANNEL), strict=False):
        os.dup2(handle, target)
    kept = (1, 2, launcher.CHANNEL)[: len(handles)]
    for handle in handles:
        if handle not in kept:
            os.close(handle)
