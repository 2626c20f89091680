"""Runs one more program in a box that runs, in the foreground: what the supervisor sees of it.

`python -m bedstone.sandbox.beside ISOLATION HOME BOX FILE`. Ends with the program's exit status, or
128 + N after signal N; 125 if it could not be run, with the reason on standard error. SIGTERM and
SIGINT are passed on.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from bedstone.errors import Error
from bedstone.sandbox.box import Exec, Stdio
from bedstone.sandbox.boxes import KIND, Boxes
from bedstone.sandbox.failing import FAILED


def command(isolation: str, home: Path, box: str, file: Path) -> tuple[str, ...]:
    """The command line; `file` has what `encode` gave, readable to its owner alone."""
    return (sys.executable, "-P", "-m", __name__, isolation, str(home), box, str(file))


def encode(program: Exec) -> str:
    """What runs, as text."""
    return json.dumps(asdict(program))


def decode(text: str) -> Exec:
    """The reverse of `encode`."""
    value = json.loads(text)
    return Exec(
        **{
            **value,
            "command": tuple(value["command"]),
            "capabilities": tuple(value["capabilities"]),
        }
    )


async def _run(isolation: str, home: str, box: str, file: str) -> int:
    boxes: Boxes = KIND.load(isolation)(Path(home))
    await boxes.open()
    running = await boxes.exec(box, decode(Path(file).read_text()), Stdio(0, 1, 2))
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def pass_on(number: int) -> None:
        tasks.add(loop.create_task(running.signal(number)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, pass_on, number)
    return (await running.wait()).code


def main() -> int:
    """Run it; see the module."""
    try:
        return asyncio.run(_run(*sys.argv[1:5]))
    except Error as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
