"""The simulator sees what it is for: every known mistake, planted into the real code, is found."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import pytest

from bedstone.errors import InvalidError
from bedstone.testing.simulation.bugs import BUGS, planted
from bedstone.testing.simulation.scenario import Report, simulate
from bedstone.testing.simulation.transfers import MODES
from bedstone.transactions import manager
from bedstone.transactions.databases import Database

SEEDS = 40
"""A mistake that shows in none of so many seeds counts as not found."""

FIRST = {
    "late-try": 26,
    "no-global-locks": 18,
    "only-own-version": 13,
    "prepared-too-late": 17,
    "unlocked-at-abort": 26,
}
"""Where to look first for what shows in few seeds: it saves time, and decides nothing."""


@functools.cache
def _clean(seed: int, mode: str) -> Report:
    return simulate(seed, mode=mode)


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_mistake_is_found_and_the_same_seeds_pass_without_it(name: str) -> None:
    bug = BUGS[name]
    first = FIRST.get(name, 0)
    for seed in range(first, first + SEEDS):
        report = simulate(seed, mode=bug.mode, bug=name)
        clean = _clean(seed, bug.mode)
        assert clean.violation is None, clean.timeline
        if report.violation is not None:
            print(f"{name}: seed {seed}: {report.violation}")
            assert report.timeline
            return
    pytest.fail(f"{name} was not found in {SEEDS} seeds")


@pytest.mark.parametrize("mode", sorted(MODES))
def test_the_same_seed_is_the_same_run(mode: str) -> None:
    first, second = simulate(5, mode=mode), simulate(5, mode=mode)
    assert first == second
    assert first.steps > 1000
    assert simulate(6, mode=mode).digest != first.digest


def test_a_run_does_not_depend_on_the_hash_seed_or_the_process() -> None:
    program = (
        "from bedstone.testing.simulation.scenario import simulate\n"
        f"print([simulate(seed, mode=mode).digest for seed in (7,) for mode in {sorted(MODES)}])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "4711")
    }
    here = [simulate(seed, mode=mode).digest for seed in (7,) for mode in sorted(MODES)]
    assert answers == {f"{here}\n"}


def test_a_run_does_not_depend_on_what_the_program_has_registered() -> None:
    """Its participants' databases would be swept in the simulated world."""
    before = [simulate(5, mode=mode) for mode in sorted(MODES)]
    opened: list[str] = []

    def opening() -> Any:
        opened.append("")
        raise OSError

    async def second(*_: object) -> None: ...

    manager.register("other/of-this-program", second, Database("x", opening, is_async=True))
    try:
        assert [simulate(5, mode=mode) for mode in sorted(MODES)] == before
        assert opened == []
    finally:
        del manager._common["other/of-this-program"]
        del manager._common_databases["other/of-this-program"]


def test_a_mistake_is_taken_out_again_even_after_an_error() -> None:
    from bedstone.transactions import barrier

    real = barrier.enter
    with planted("late-try"):
        assert barrier.enter is not real
    assert barrier.enter is real
    with pytest.raises(RuntimeError), planted("late-try"):
        raise RuntimeError
    assert barrier.enter is real
    with pytest.raises(InvalidError, match="late-try"), planted("no such"):
        pass
