"""`python -m bedstone.server --config FILE`: the control-plane daemon."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from bedstone.errors import EXIT_STATUS, Error
from bedstone.server.config import ServerConfig
from bedstone.server.daemon import serve
from bedstone.telemetry import logs


def main() -> int:
    """Run the daemon; returns its exit status, by kind of error."""
    parser = argparse.ArgumentParser(prog="bedstone.server", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    logs.configure()
    try:
        asyncio.run(serve(ServerConfig.load(arguments.config)))
    except (Error, BaseExceptionGroup) as failure:
        known = [error for error in _leaves(failure) if isinstance(error, Error)]
        if not known:
            raise
        first = known[0]
        logging.getLogger("bedstone.server").error(
            "cannot serve", extra={"code": first.code, "reason": str(first), "hint": first.hint}
        )
        return EXIT_STATUS[first.code]
    return 0


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]


if __name__ == "__main__":
    sys.exit(main())
