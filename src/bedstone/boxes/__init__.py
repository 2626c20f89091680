"""Stand-alone boxes: a root from an image or a directory, run without an app or a server.

This package composes `bedstone.sandbox` and `bedstone.images`, which know nothing of each other.
What it exports is loaded when it is used: programs of the standard library alone are in it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bedstone.boxes.api import Result, Sandbox

__all__ = ["Result", "Sandbox"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bedstone.boxes import api

    return getattr(api, name)
