"""A bank among faults, for more than a million scheduler steps: no money lost, nothing left."""

from __future__ import annotations

from collections import Counter

import pytest

from bedstone.testing.simulation.faults import Fate, Strike
from bedstone.testing.simulation.scenario import simulate
from bedstone.testing.simulation.transfers import MODES

STEPS = 1_200_000
FIRST = 1_000
"""Where these seeds start; the unit tests use those from zero."""


@pytest.mark.timeout(600)
def test_a_million_steps_among_faults_violate_nothing() -> None:
    modes = sorted(MODES)
    steps, seed = 0, FIRST
    faults: Counter[str] = Counter()
    ends: dict[str, Counter[str]] = {mode: Counter() for mode in modes}
    while steps < STEPS:
        mode = modes[seed % len(modes)]
        report = simulate(seed, mode=mode)
        assert report.violation is None, f"seed {seed} ({mode})\n{report.timeline}"
        steps += report.steps
        faults += report.faults
        ends[mode] += report.transactions
        seed += 1
    print(f"{steps} steps, {seed - FIRST} seeds, {ends}, {faults}")
    assert steps >= 1_000_000
    kinds = {strike.value for strike in Strike} | {
        f"{what} {fate.value}"
        for what, fates in {
            "message": (Fate.LOST, Fate.UNANSWERED, Fate.TWICE, Fate.LATE),
            "log": (Fate.REFUSED, Fate.UNANSWERED, Fate.LOST, Fate.TWICE, Fate.LATE),
            "statement": (Fate.REFUSED, Fate.UNANSWERED),
        }.items()
        for fate in fates
    }
    assert kinds <= set(faults), "every kind of fault happened"
    for mode, count in ends.items():
        assert set(count) == {"committed", "aborted"}, f"{mode}: {count}"
        assert min(count.values()) > 50
