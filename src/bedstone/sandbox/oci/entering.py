"""Enters the network namespace of a box, and becomes the runtime that starts the box there.

The runtime is told of no network namespace, so that the box is in the one that the runtime is in.
Told of it, runc would enter it for each `exec` only once it is a user of the box, and be refused.

A process of its own (`main`). Only the standard library is used.
"""

from __future__ import annotations

import os
import signal
import sys

from bedstone.processes.linux import CLONE_NEWNET, setns
from bedstone.sandbox.oci.alone import standard_python


def main() -> None:
    """Run the program of the second and following arguments in the namespace of the first."""
    netns, *argv = sys.argv[1:]
    try:
        setns(netns, CLONE_NEWNET)
    except OSError as error:
        sys.exit(f"network namespace {netns}: {error}")
    # Python ignores these; programs expect not to.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execv(argv[0], argv)  # noqa: S606 - what the driver made


def command(netns: str, argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command line that runs another in a namespace."""
    return (*standard_python(__name__), netns, *argv)
