"""The inside of a zygote: serves requests, and makes a forked child its program.

See `bedstone.processes.zygote` for the messages and the rules. Imports the standard library only.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from bedstone.processes import confinement, launcher, linux, preloading, python_command, renewal
from bedstone.processes.spec import Confinement, ProcessSpec

_REQUEST = 1 << 16
_ORDER = 1 << 20
_REHEARSALS = 16
"""CPython specialises what has run some eight times (PEP 659)."""


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
    reason = preloading.preload(config["modules"])
    gc.unfreeze()  # what the zygote above has frozen is to be found as well
    found = renewal.sources()
    hides = confinement.hides_processes()
    _rehearse(found)
    gc.collect()
    gc.freeze()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    link = _serve(channel, reason)
    if link is None:
        sys.exit(0)
    command = _become(link, found, hides=hides)
    python_command.run(command, search)


def _rehearse(found: renewal.Sources) -> None:
    """Do what every child will do, where that changes nothing here.

    What the interpreter makes at the first use, and its specialised code, is then shared.
    """
    env = dict(os.environ)
    sample = ProcessSpec("x", (sys.executable, "-c", "pass"), env=env)
    text = json.dumps({"spec": sample.to_json(), "marks": {"X": "x"}, "parent": 1})
    for _ in range(_REHEARSALS):
        spec = ProcessSpec.from_json(json.loads(text)["spec"])
        python_command.parse(spec.argv)
        linux.retitle(sys.orig_argv, env)
        renewal.renew(found, env)


def _serve(channel: socket.socket, reason: str | None) -> socket.socket | None:
    """Fork for each request. Returns a child's end in a child; None when the supervisor lets go."""
    # Who comes between ends at once; nobody has to wait for it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, handles, _, _ = socket.recv_fds(channel, _REQUEST, 1)
        if not data:
            return None
        if not handles:
            continue
        link = socket.socket(fileno=handles[0])
        why = reason or preloading.hides(json.loads(data)["folder"])
        if why is None and (extra := preloading.threads() - 1):
            why = f"its zygote has {extra} more thread(s)"
        if why is None:
            try:
                between = os.fork()
            except OSError as error:
                why = f"its zygote cannot fork: {error.strerror}"
            else:
                if between == 0 and _fork_again(link):
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    channel.close()
                    return link
        if why is not None:
            _refuse(link, why)
        link.close()


def _fork_again(link: socket.socket) -> bool:
    """Fork in the one in between; True in the child, once it is the supervisor's."""
    between = os.getpid()
    try:
        child = os.fork()
    except OSError as error:
        _refuse(link, f"its zygote cannot fork: {error.strerror}")
        os._exit(1)
    if child != 0:
        os._exit(0)
    while os.getppid() == between:
        time.sleep(0.0001)
    return True


def _refuse(link: socket.socket, why: str) -> None:
    with contextlib.suppress(OSError):  # nobody waits any more
        link.send(json.dumps({"refused": why[:1000]}).encode())


def _separate(spec: ProcessSpec, *, hides: bool) -> list[str]:
    """Namespaces of its own; its view of processes is the zygote's."""
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
        if command is None:
            raise ValueError("not a command of Python")
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
