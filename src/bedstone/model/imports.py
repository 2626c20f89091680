"""Which files of a tree a Python program imports, found in its text; nothing is imported.

Over-estimates by design: an import counts wherever it stands, in a function or under a condition
too. What is imported by a computed name is not seen; `sources` allows for that.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from bedstone.model.spec import WorkloadSpec

_INTERPRETER: Final = re.compile(r"(python|pypy)[0-9.]*(\.exe)?")
_OPTIONS_WITH_VALUE: Final = frozenset({"-X", "-W", "--check-hash-based-pycs"})


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name: `level` dots, then `module`, then perhaps `name` from it."""

    module: str
    name: str = ""
    level: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a program starts: a script, or a module found on the search path.

    Attributes:
        modules: modules to start from.
        script: a script's path, relative to the workload's directory.
        search: directories in which modules are found, relative to the workload's directory.
    """

    modules: tuple[str, ...] = ()
    script: str | None = None
    search: tuple[str, ...] = (".",)


def imports_of(source: bytes) -> tuple[Import, ...] | None:
    """The imports in a Python text, or None where it is not Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tuple(dict.fromkeys(_imports(tree)))


def _imports(tree: ast.AST) -> Iterator[Import]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(alias.name)
            case ast.ImportFrom(module=module, names=names, level=level):
                for alias in names:
                    yield Import(module or "", alias.name, level)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(name)
            case _:
                pass


def entries_of(workload: WorkloadSpec) -> tuple[Entry, ...] | None:
    """Where a workload's program and its `prepare:` start.

    None where the program is not Python of its own. A `prepare:` that is not adds nothing.
    """
    program = entry_of(workload)
    if program is None:
        return None
    prepare = _command_entry(workload.prepare, program.search) if workload.prepare else None
    return (program, prepare) if prepare else (program,)


def entry_of(workload: WorkloadSpec) -> Entry | None:
    """Where a workload's program starts, or None where that is not Python of its own."""
    paths = tuple(
        part
        for part in workload.env.get("PYTHONPATH", "").split(":")
        if part and "$" not in part and not part.startswith("/")
    )
    search = (".", *paths)
    if workload.run:
        return Entry((workload.run.partition(":")[0],), None, search)
    return _command_entry(workload.command, search) if workload.command else None


def _command_entry(command: Sequence[str], search: tuple[str, ...]) -> Entry | None:
    """The program of `python [options] -m module` or `python [options] script.py`."""
    if not _INTERPRETER.fullmatch(PurePosixPath(command[0]).name):
        return None
    words = iter(command[1:])
    for word in words:
        if word == "-m":
            module = next(words, "")
            return Entry((module,), None, search) if module else None
        if word in _OPTIONS_WITH_VALUE:
            next(words, None)
        elif word.endswith(".py") and not word.startswith(("-", "/")):
            script = str(PurePosixPath(word))
            return Entry((), script, (str(PurePosixPath(script).parent), *search))
        elif not word.startswith("-") or word.startswith("-c") or word == "-":
            return None
    return None


def closure(
    entry: Entry,
    files: Collection[str],
    imports: Callable[[str], tuple[Import, ...] | None],
) -> frozenset[str] | None:
    """The files that a program reaches through imports.

    Args:
        entry: where it starts.
        files: every Python file, relative to the workload's directory, in POSIX form.
        imports: the imports of one of them.

    Returns:
        The files, or None where they cannot be told: the program does not start in these files, or
        one of them is not Python.
    """
    finder = _Finder(frozenset(files), tuple(_clean(path) for path in entry.search))
    if entry.script is not None:
        waiting = [entry.script] if entry.script in finder.files else []
    else:
        waiting = [path for module in entry.modules for path in finder.program(module)]
    if not waiting:
        return None
    found: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        imported = imports(path)
        if imported is None:
            return None
        for one in imported:
            waiting += finder.imported(one, path)
    return frozenset(found)


def _clean(directory: str) -> str:
    path = str(PurePosixPath(directory))
    return "" if path == "." else path + "/"


@dataclass(frozen=True)
class _Finder:
    """Finds modules among files, as Python's import system would, in each search directory."""

    files: frozenset[str]
    search: tuple[str, ...]

    def program(self, module: str) -> list[str]:
        """The files of a module that is run, and of its `__main__` if it is a package."""
        return [*self.module(module), *self._below(module, "__main__")]

    def _below(self, module: str, name: str) -> list[str]:
        """The files of a submodule; none if there is no such."""
        path = f"{module}.{name}".replace(".", "/")
        exists = any(
            f"{base}{path}{end}" in self.files
            for base in self.search
            for end in (".py", "/__init__.py")
        )
        return self.module(f"{module}.{name}") if exists else []

    def module(self, module: str) -> list[str]:
        """The files of a module and of the packages around it."""
        found = []
        parts = module.split(".")
        for base in self.search:
            for length in range(1, len(parts) + 1):
                stem = base + "/".join(parts[:length])
                found += [p for p in (f"{stem}/__init__.py", f"{stem}.py") if p in self.files]
        return found

    def imported(self, one: Import, importer: str) -> list[str]:
        """The files that an import statement of a file may load."""
        if one.level:
            return self._relative(one, importer)
        found = self.module(one.module)
        if one.name and one.name != "*":
            found += self._below(one.module, one.name)
        return found

    def _relative(self, one: Import, importer: str) -> list[str]:
        package = PurePosixPath(importer).parent
        for _ in range(one.level - 1):
            package = package.parent
        parts = [part for part in (*one.module.split("."), one.name) if part and part != "*"]
        prefix = _clean(str(package))
        found = [f"{prefix}__init__.py"]
        for length in range(1, len(parts) + 1):
            stem = prefix + "/".join(parts[:length])
            found += [f"{stem}/__init__.py", f"{stem}.py"]
        return [path for path in found if path in self.files]
