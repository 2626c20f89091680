"""`python -m tests.chaos --seconds 600 --seed 7`: the bank, its customers and its killer.

Ends with 0 if everything held; else it prints the seed, what is wrong, and the killer's time line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2])] if not __package__ else []

from tests.chaos.accounts import MODES, opened  # noqa: E402
from tests.chaos.audit import Audit  # noqa: E402
from tests.chaos.killer import Killer  # noqa: E402
from tests.chaos.load import DONE, Load  # noqa: E402
from tests.chaos.world import World  # noqa: E402


def say(text: str) -> None:
    """Print at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def report(load: Load, started: float) -> None:
    """Say how it goes, for ever."""
    while True:
        await asyncio.sleep(10.0)
        told = dict(load.told())
        say(f"{time.monotonic() - started:7.1f} s  {told}  violations: {len(load.violations)}")


async def run(options: argparse.Namespace) -> int:
    """One run; the exit code."""
    async with World(mariadb=not options.no_mariadb) as world:
        say(f"seed {options.seed}; banks: {', '.join(world.banks)}")
        if world.missing:
            say(f"without MariaDB: {world.missing}")
        for bank in world.banks:
            await asyncio.to_thread(opened, world.url(bank), bank)
        load = Load(world, options.seed, options.concurrency, options.modes)
        killer = Killer(world, options.seed, pause=tuple(options.pause))
        audit = Audit(world, load)
        started = time.monotonic()
        reporting = asyncio.create_task(report(load, started))
        sending = asyncio.create_task(load.run())
        await asyncio.sleep(options.before)
        before = load.told()[DONE]
        if options.no_kill:
            await asyncio.sleep(options.seconds)
        else:
            await killer.run(options.seconds)
        during = load.told()[DONE] - before
        say("the killer has stopped")
        await asyncio.sleep(options.after)
        load.stop()
        await sending
        reporting.cancel()
        await audit.rest(options.rest)
        await audit.look()
        wrong = load.violations + audit.wrong
        if not before or not during:
            wrong.append(f"too little was done: {before} before, {during} while killing")
        numbers = summary(options, world, load, killer, audit)
        numbers["wrong"] = len(wrong)
        say(json.dumps(numbers, indent=1))
        if wrong:
            say(f"seed {options.seed}: {len(wrong)} things are wrong")
            for line in [*wrong[:60], "the killer:", *map(str, killer.deeds)]:
                say(line)
            for line in await audit.concerned():
                say(line)
            say(world.domain.logs())
        if options.output:
            Path(options.output).write_text(json.dumps(numbers))
    return 1 if wrong else 0


def summary(
    options: argparse.Namespace, world: World, load: Load, killer: Killer, audit: Audit
) -> dict[str, Any]:
    """What there is to say of a run."""
    took = sorted(t.took for t in load.transfers.values() if t.told == DONE)
    return {
        "seed": options.seed,
        "banks": world.banks,
        "without": world.missing,
        "told": {mode: dict(load.told(mode)) for mode in options.modes},
        "seconds of the median and of the slowest": [took[len(took) // 2], took[-1]]
        if took
        else [],
        "reads": dict(load.reads),
        "deeds": dict(killer.counts()),
        "errors": dict(load.errors.most_common(25)),
        **audit.numbers,
    }


def main() -> None:
    """Read the command line, and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seconds", type=float, default=60.0, help="of killing")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--concurrency", type=int, default=300, help="requests in flight")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("--no-mariadb", action="store_true")
    parser.add_argument("--pause", nargs=2, type=float, default=(1.0, 4.0), metavar="SECONDS")
    parser.add_argument("--before", type=float, default=5.0, help="seconds before the killing")
    parser.add_argument("--after", type=float, default=5.0, help="seconds after it")
    parser.add_argument("--rest", type=float, default=60.0, help="seconds in which all must end")
    parser.add_argument("--output", help="file for the numbers, as JSON")
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
