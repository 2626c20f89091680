"""`python -m bedstone.node --config FILE`: run the node agent of this machine."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from bedstone.errors import EXIT_STATUS, Error
from bedstone.node.config import load_config
from bedstone.node.logging import configure


def main() -> int:
    """Run until SIGTERM; what it started goes on."""
    parser = argparse.ArgumentParser(prog="python -m bedstone.node", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the configuration file, JSON")
    options = parser.parse_args()
    configure()
    try:
        config = load_config(options.config)
        from bedstone.node.agent import Agent

        async def run() -> None:
            task = asyncio.current_task()
            if task is None:
                raise AssertionError("a coroutine runs in a task")
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, task.cancel)
            await Agent(config).run()

        asyncio.run(run())
    except asyncio.CancelledError:
        return 0
    except Error as error:
        return _say(error)
    except ExceptionGroup as group:
        ours, bugs = group.split(Error)
        if ours is None or bugs is not None:
            raise  # a bug of ours: its trace is what helps
        return _say(ours)
    return 0


def _say(error: Exception) -> int:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, Error):
        raise error
    logging.getLogger("bedstone.node").error(
        "ended", extra={"code": error.code, "reason": str(error), "hint": error.hint}
    )
    return EXIT_STATUS[error.code]


if __name__ == "__main__":
    sys.exit(main())
