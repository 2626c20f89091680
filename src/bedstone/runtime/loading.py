"""Import the application that a manifest names, and say in one screen why that failed.

Rules: no traceback of ours or of the import system's; a place in the user's file wherever there is
one; every failure is an `InvalidError` with a hint.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import traceback
from pathlib import Path

from bedstone.errors import InvalidError, Position
from bedstone.runtime.asgi import Application

_SHOWN_FRAMES = 5
_SHOWN_PATHS = 4


def load(target: str) -> Application:
    """The ASGI application `module:attribute`."""
    module_name, _, attribute = target.partition(":")
    if not module_name or not all(part.isidentifier() for part in module_name.split(".")):
        raise InvalidError(
            f"got the application {target!r}, expected module:attribute",
            hint="write for example `run: accounts:app`",
        )
    attribute = attribute or "app"
    try:
        found: object = importlib.import_module(module_name)
    except SyntaxError as error:
        raise _syntax(error) from error
    except ModuleNotFoundError as error:
        raise _not_found(module_name, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(module_name, error) from error
    walked = module_name
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise _no_attribute(walked, found, name) from error
        walked = f"{walked}.{name}"
    if not callable(found):
        raise InvalidError(
            f"{target} is a {type(found).__name__}, expected an ASGI application",
            hint="name what FastAPI(), Starlette() or the like returned",
        )
    return found


def _syntax(error: SyntaxError) -> InvalidError:
    position = Position(_short(error.filename or "?"), error.lineno or 1, error.offset or 1)
    line = f": {error.text.strip()}" if error.text else ""
    return InvalidError(
        f"{error.msg}{line}", position=position, hint="correct the line; it is not Python"
    )


def _not_found(module: str, error: ModuleNotFoundError) -> InvalidError:
    missing = error.name or "?"
    if module == missing or module.startswith(missing + "."):
        places = [path or "." for path in sys.path[:_SHOWN_PATHS]]
        more = "" if len(sys.path) <= _SHOWN_PATHS else ", …"
        near = difflib.get_close_matches(missing, _modules_here(), 1)
        return InvalidError(
            f"no module named {missing!r}; looked in {', '.join(places)}{more}",
            hint=f"did you mean {near[0]!r}?"
            if near
            else "check `run:` and `path:` of the workload in the manifest",
        )
    return InvalidError(
        f"{module} imports {missing!r}, which is not installed for {sys.executable}"
        + _trail(error),
        hint="install it there, or name another interpreter with `python:`",
        position=_innermost(error),
    )


def _failed(module: str, error: Exception | SystemExit) -> InvalidError:
    reason = traceback.format_exception_only(error)[-1].strip()
    return InvalidError(
        f"importing {module} failed: {reason}{_trail(error)}",
        position=_innermost(error),
        hint="the application raised this itself; correct it or its environment",
    )


def _no_attribute(walked: str, found: object, name: str) -> InvalidError:
    near = difflib.get_close_matches(name, [n for n in dir(found) if not n.startswith("_")], 1)
    public = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
    if near:
        hint = f"did you mean {near[0]!r}?"
    elif public:
        hint = f"it has {', '.join(sorted(public)[:8])}"
    else:
        hint = "name the variable that holds the ASGI application"
    return InvalidError(f"{walked} has no {name!r}", hint=hint)


def _modules_here() -> list[str]:
    here = Path.cwd()
    names = [path.stem for path in here.glob("*.py")]
    return names + [path.parent.name for path in here.glob("*/__init__.py")]


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The application's own frames, outermost first."""
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen ")
        and frame.filename not in {__file__, importlib.__file__}
    ]


def _innermost(error: BaseException) -> Position | None:
    frames = _frames(error)
    if not frames:
        return None
    last = frames[-1]
    return Position(_short(last.filename), last.lineno or 1, (last.colno or 0) + 1)


def _trail(error: BaseException) -> str:
    return "".join(
        f"\n  {_short(frame.filename)}:{frame.lineno}: {frame.line}"
        for frame in _frames(error)[-_SHOWN_FRAMES:]
    )


def _short(filename: str) -> str:
    try:
        return str(Path(filename).relative_to(Path.cwd()))
    except ValueError:
        return filename
