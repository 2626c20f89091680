"""Whether a runtime works here: by running a program in a box that has all that boxes have."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Final

from bedstone.errors import Error
from bedstone.sandbox.box import BoxLimits, BoxSpec
from bedstone.sandbox.boxes import Boxes
from bedstone.sandbox.oci.machine import end
from bedstone.sandbox.oci.program import STATUS, probe_program
from bedstone.sandbox.oci.runtime import reason
from bedstone.sandbox.policy import ANY, ANY_USER, Policy

_LIMIT: Final = 5.0
"""Seconds; a platform of runsc that a machine only seems to have hangs."""


async def probe(boxes: Boxes, folder: Path) -> str | None:
    """Why a driver's runtime does not work; None if it does.

    Args:
        boxes: the driver, with the runtime that it is to try.
        folder: for a root file system while it lasts.
    """
    program = probe_program()
    if program is None:
        return "there is no program to try it with, for this kind of processor"
    with tempfile.TemporaryDirectory(dir=folder) as root:
        file = Path(root, "probe")
        file.write_bytes(program)
        file.chmod(0o755)
        Path(root).chmod(0o755)
        spec = BoxSpec(
            id=f"probe-{secrets.token_hex(4)}",
            root=os.path.realpath(root),
            command=("/probe",),
            policy=Policy(programs=(ANY,), users=(ANY_USER,)),
            write="readonly",
            limits=BoxLimits(memory=256 << 20, cpus=1.0, pids=64, disk=None),
            created_at=time.time(),
        )
        try:
            return await _try(boxes, spec)
        except Error as error:
            return error.message
        finally:
            await boxes.delete(spec.id)


async def _try(boxes: Boxes, spec: BoxSpec) -> str | None:
    launch = await boxes.prepare(spec)
    child = await asyncio.create_subprocess_exec(
        *launch.argv,
        env=dict(launch.env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_LIMIT):
            _, errors = await child.communicate()
    except TimeoutError:
        return f"a program in a box did not end within {_LIMIT:g} s"
    finally:
        await end(child)
    return None if child.returncode == STATUS else reason(errors.decode(errors="replace"))
