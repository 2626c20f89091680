"""Command lines of processes that need the standard library only, and start the faster."""

from __future__ import annotations

import os
import posixpath
import sys


def standard_python(module: str) -> tuple[str, ...]:
    """Run `main` of a module of this package; arguments may follow."""
    package = os.path.dirname(os.path.realpath(__file__))  # noqa: PTH120
    source = posixpath.normpath(posixpath.join(package, "../.."))
    code = f"import sys; sys.path.insert(0, {source!r}); from {module} import main; main()"
    return (sys.executable, "-I", "-S", "-c", code)
