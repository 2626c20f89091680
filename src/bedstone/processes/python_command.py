"""A command line of Python, run in an interpreter that is up already.

Owns what CPython's own `Py_RunMain` would do: which `__main__` it makes, what it puts first on
`sys.path`, and what becomes of `sys.argv`. Options of the interpreter cannot be given afterwards,
so a command with one is refused; `-u` alone is taken, where output is unbuffered anyway.
"""

from __future__ import annotations

import os
import runpy
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn


@dataclass(frozen=True, slots=True)
class PythonCommand:
    """What is run: `kind` says what `target` is; `arguments` come after it."""

    kind: Literal["script", "module", "text"]
    target: str
    arguments: tuple[str, ...]

    def folder(self, cwd: str) -> str:
        """The folder that comes first on `sys.path`, for a process that works in `cwd`."""
        if self.kind == "script":
            return os.path.dirname(os.path.realpath(os.path.join(cwd, self.target)))  # noqa: PTH118, PTH120
        return cwd


def parse(argv: Sequence[str]) -> PythonCommand | None:
    """The command of an argv whose program is an interpreter; None if that needs an option."""
    rest = [*argv[1:]]
    if rest[:1] == ["-u"]:
        del rest[0]
    match rest:
        case ["-m", target, *arguments]:
            return PythonCommand("module", target, tuple(arguments))
        case ["-c", target, *arguments]:
            return PythonCommand("text", target, tuple(arguments))
        case [target, *arguments] if not target.startswith("-"):
            return PythonCommand("script", target, tuple(arguments))
        case _:
            return None


def run(command: PythonCommand, search: Sequence[str]) -> NoReturn:
    """Be the program; `search` is `sys.path` as the interpreter had it without any program.

    Raises:
        SystemExit: with its status, always; what the program has registered for its end still runs.
    """
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    first = "" if command.kind == "text" else command.folder(os.getcwd())  # noqa: PTH109
    sys.path[:] = [*search] if sys.flags.safe_path else [first, *search]
    names = {"text": "-c", "module": "-m"}
    sys.argv[:] = [names.get(command.kind, command.target), *command.arguments]
    try:
        match command.kind:
            case "module":
                # What CPython itself calls for `-m`.
                runpy._run_module_as_main(command.target)  # type: ignore[attr-defined]  # noqa: SLF001
            case "text":
                exec(compile(command.target, "<string>", "exec"), main.__dict__)  # noqa: S102
            case "script":
                _script(command.target, main)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - as the interpreter itself does
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        sys.exit(1)
    sys.exit(0)


def _script(path: str, main: types.ModuleType) -> None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            text = file.read()
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        sys.stderr.write(f"{sys.executable}: can't open file {path!r}: {reason}\n")
        sys.exit(2)
    place = os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118 - as the interpreter does
    main.__dict__.update(__file__=place, __cached__=None)
    exec(compile(text, place, "exec"), main.__dict__)  # noqa: S102
