"""What an interpreter of Python needs of this machine, as a box has to show it.

Rules:
- No file is run to find out: `pyvenv.cfg` and `.pth` files are read. What a package has installed
  may have written them, so they choose only among what the workload may see anyway: of a prefix,
  where Python's own library lies in it; of folders, those in `within`.
- What they name and does not come with it is left out, and said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bedstone.sandbox.views import systems

_INSTALLED: Final = ("bin", "lib", "lib64", "libexec", "share", "ssl", "etc")
"""What of an interpreter's prefix is shown: the prefix itself may be somebody's home."""
_LIBRARY: Final = ("lib*/python*/os.py", "lib*/pypy*/os.py")
"""By which an interpreter finds its library, too (CPython, Modules/getpath.py)."""
_KERNELS: Final = tuple(map(Path, ("/dev", "/etc", "/proc", "/run", "/sys")))
_ROOTS: Final = (*_KERNELS, *map(Path, ("/home", "/root", "/tmp", "/var/lib")))  # noqa: S108
_MOST: Final = 64
_SAID: Final = 8
_LONGEST: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Needed:
    """What a box shows for an interpreter.

    Attributes:
        shown: folders, with all that is in them.
        links: symbolic links that lead to the interpreter, and lie in no such folder.
        notes: what was added or left out of what its files name.
    """

    shown: tuple[Path, ...] = ()
    links: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def installed(interpreter: Path, within: Sequence[Path]) -> Needed:
    """What an interpreter needs: itself, its virtual environment, where that came from.

    Args:
        interpreter: absolute path; a link is followed.
        within: where folders have to lie which a `.pth` file adds.
    """
    interpreter = Path(os.path.normpath(interpreter))
    steps = list(_steps(interpreter))
    home = interpreter.parent.parent
    settings = _settings(home)
    ends = (*steps, Path(os.path.realpath(interpreter)))
    prefixes = [step.parent.parent for step in ends]
    notes: list[str] = []
    shown: list[Path] = []
    if settings is not None:
        shown.append(home)
        prefixes = [prefix for prefix in prefixes if prefix != home]
        base = Path(os.path.normpath(settings.get("home", "/"))).parent
        prefixes.append(base)
        if base.is_absolute() and not _has_library(base) and not systems(base):
            notes.append(f"left out: {base}, which {home}/pyvenv.cfg names and has no Python")
    elif home.name and interpreter.parent.name == "bin" and not _has_library(home):
        shown.append(interpreter.parent)
    bases = [prefix for prefix in dict.fromkeys(prefixes) if _has_library(prefix)]
    shown += [base / name for base in bases for name in _INSTALLED]
    shown = [path for path in dict.fromkeys(shown) if not systems(path)]
    isolated = (
        settings is not None and settings.get("include-system-site-packages", "").lower() != "true"
    )
    added, more = _added([home] if isolated else [home, *bases], shown, within)
    return Needed(
        (*shown, *added),
        tuple(step for step in steps if not (systems(step) or _covered(step, shown))),
        (*notes, *more),
    )


def _steps(interpreter: Path) -> Iterator[Path]:
    """An interpreter that is a link, and each link that it leads to."""
    seen: set[Path] = set()
    step = interpreter
    while step.is_symlink() and step not in seen:
        seen.add(step)
        yield step
        step = Path(os.path.normpath(step.parent / step.readlink()))


def _settings(home: Path) -> dict[str, str] | None:
    """What a virtual environment says of itself; None if it is none."""
    lines = _lines(home / "pyvenv.cfg")
    if lines is None:
        return None
    pairs = (line.partition("=") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _has_library(prefix: Path) -> bool:
    return prefix.is_absolute() and any(
        file.is_file() for pattern in _LIBRARY for file in prefix.glob(pattern) if prefix.name
    )


def _added(
    homes: Sequence[Path], shown: Sequence[Path], within: Sequence[Path]
) -> tuple[list[Path], list[str]]:
    """The folders that path configuration files add, and what is to be said of them."""
    added: list[Path] = []
    kept: list[str] = []
    left: list[str] = []
    files = (
        file
        for home in dict.fromkeys(homes)
        for folder in sorted(home.glob("lib*/python*/*-packages"))
        for file in sorted(folder.glob("*.pth"))
    )
    for file in dict.fromkeys(Path(os.path.realpath(file)) for file in files):
        for path in path_file(file):
            if path in added or _covered(path, shown) or systems(path):
                continue
            if len(added) < _MOST and _may(path, within):
                added.append(path)
                kept.append(f"shown: {path}, which {file.name} of its packages names")
            else:
                left.append(
                    f"left out: {path}, which {file.name} of its packages names; put it below "
                    "`path`, or install it into its virtual environment"
                )
    left = list(dict.fromkeys(left))
    if len(left) > _SAID:
        left = [*left[:_SAID], f"left out: {len(left) - _SAID} more that its packages name"]
    return added, [*kept, *left]


def _may(path: Path, within: Sequence[Path]) -> bool:
    """Whether a file that a package may have written may have a folder shown."""
    real = Path(os.path.realpath(path))
    if any(root.is_relative_to(real) for root in (*_ROOTS, _own_home())):
        return False
    if real.parent == Path("/home") or any(real.is_relative_to(root) for root in _KERNELS):
        return False
    for place in {Path(os.path.realpath(place)) for place in within}:
        if real.is_relative_to(place):
            return not any(part.startswith(".") for part in real.relative_to(place).parts)
    return False


def _own_home() -> Path:
    return Path(os.path.realpath(os.path.expanduser("~")))  # noqa: PTH111 - it may be unknown


def path_file(file: Path) -> Iterator[Path]:
    """The folders that a path configuration file adds (`site` of Python's library)."""
    for line in _lines(file) or ():
        text = line.strip()
        if text and not text.startswith(("#", "import ", "import\t")):
            path = Path(os.path.normpath(file.parent / text))
            if path.is_dir() and path != Path("/"):
                yield path


def _lines(file: Path) -> list[str] | None:
    """Of a file that is one: whoever could write it could have put anything there."""
    try:
        if not file.is_file() or file.stat().st_size > _LONGEST:
            return None
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return None


def _covered(path: Path, shown: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in shown)
