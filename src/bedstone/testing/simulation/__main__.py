"""`python -m bedstone.testing.simulation`: run seeds until so many steps are done."""

from __future__ import annotations

import sys
import time
from collections import Counter

import click

from bedstone.testing.simulation.bugs import BUGS
from bedstone.testing.simulation.scenario import Report, simulate
from bedstone.testing.simulation.transfers import MODES


@click.command()
@click.option("--steps", default=1_000_000, show_default=True, help="Run at least so many steps.")
@click.option("--seed", default=0, show_default=True, help="The first seed.")
@click.option("--mode", type=click.Choice(sorted(MODES)), help="One mode; by default all in turn.")
@click.option("--bug", type=click.Choice(sorted(BUGS)), help="Plant a known mistake.")
@click.option("--replay", type=int, help="Run this one seed, and show its time line.")
@click.option("--keep-going", is_flag=True, help="Go on after a violation.")
def main(
    *,
    steps: int,
    seed: int,
    mode: str | None,
    bug: str | None,
    replay: int | None,
    keep_going: bool,
) -> None:
    """Simulate transactions among faults, and check that no money is lost.

    The same seed is the same run, bit for bit. The exit status is 1 where
    an invariant was violated.
    """
    if bug is not None and mode is None:
        mode = BUGS[bug].mode
    if replay is not None:
        report = simulate(replay, mode=mode or "tcc", bug=bug, story=True)
        click.echo(report.timeline)
        click.echo(f"seed {replay}: {report.violation or 'all invariants hold'}")
        click.echo(f"{report.steps} steps, digest {report.digest:08x}")
        sys.exit(report.violation is not None)
    modes = [mode] if mode else sorted(MODES)
    done, violated = 0, 0
    transactions: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    start = time.monotonic()
    first = seed
    while done < steps:
        report = simulate(seed, mode=modes[seed % len(modes)], bug=bug)
        done += report.steps
        transactions += report.transactions
        faults += report.faults
        seed += 1
        if report.violation is not None:
            violated += 1
            _tell(report, bug)
            if not keep_going:
                break
    seconds = time.monotonic() - start
    click.echo(f"steps        {done} in {seed - first} seeds, {done / seconds:,.0f} a second")
    click.echo(f"transactions {_told(transactions)}")
    click.echo(f"faults       {_told(faults)}")
    click.echo(f"violations   {violated}")
    sys.exit(violated > 0)


def _tell(report: Report, bug: str | None) -> None:
    click.echo(report.timeline)
    click.echo(f"seed {report.seed} ({report.mode}): {report.violation}")
    planted = f" --bug {bug}" if bug else ""
    click.echo(f"again: --replay {report.seed} --mode {report.mode}{planted}\n")


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "none"


if __name__ == "__main__":
    main()
