"""Stand-alone boxes: a root from an image or a directory, run without an app or a server.

This package composes `bedstone.sandbox` and `bedstone.images`, which know nothing of each other.
"""

from bedstone.boxes.api import Result, Sandbox

__all__ = ["Result", "Sandbox"]
