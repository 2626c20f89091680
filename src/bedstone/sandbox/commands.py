"""The command line of an instance, as its workload declares it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from bedstone.errors import InvalidError
from bedstone.sandbox.protocol import Host, Unit


def command_line(
    host: Host, unit: Unit, interpreter: str, command: Sequence[str] | None, listen: str
) -> tuple[str, ...]:
    """The program and its arguments, of the unit or of a command beside it.

    Args:
        host: of the sandbox.
        unit: the instance.
        interpreter: what `python` means.
        command: what runs beside it; None for its own.
        listen: the address that an ASGI application is served at.

    Raises:
        InvalidError: it declares none.
    """
    declared = unit.revision.spec
    command = declared.command if command is None else command
    if command is not None:
        if command[0] in ("python", "python3"):
            return (interpreter, *command[1:])
        beside = Path(interpreter).parent / command[0]
        if "/" not in command[0] and "/" in interpreter and os.access(beside, os.X_OK):
            # `command: [gunicorn, …]` means the one installed beside the interpreter.
            return (str(beside), *command[1:])
        return tuple(command)
    if declared.run is None:
        raise InvalidError("it has neither `run` nor `command`", hint="declare one of them")
    grace = max(declared.stop_timeout - 1.0, declared.stop_timeout / 2)
    argv = host.serve(interpreter, declared.run, listen, unit.plumbing.app.port)
    return (*argv, f"--grace={grace:g}")
