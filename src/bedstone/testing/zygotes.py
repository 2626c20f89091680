"""Zygotes for tests: interpreters that load modules once, and are forked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import bedstone.processes
from bedstone.processes.renewal import THREAD_VARIABLES
from bedstone.processes.spec import ProcessSpec

_PROGRAM = Path(bedstone.processes.__file__).with_name("zygote.py")


def zygote(
    name: str,
    logs: Path,
    modules: Sequence[str] = (),
    *,
    folder: str | None = None,
    parent: str | None = None,
) -> ProcessSpec:
    """A zygote `zygote/NAME` of this interpreter; `folder` is where modules are sought first."""
    config = {"modules": list(modules), "folder": folder}
    return ProcessSpec(
        name=f"zygote/{name}",
        argv=(sys.executable, str(_PROGRAM), str(_PROGRAM.parents[2]), json.dumps(config)),
        env={"PATH": os.environ["PATH"], **dict.fromkeys(THREAD_VARIABLES, "1")},
        stdout=str(logs / f"zygote-{name}.log"),
        stop_grace=1.0,
        zygote=parent,
        forks=True,
    )
