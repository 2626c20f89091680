"""Sandboxes that are boxes keep the promises of sandboxes."""

from __future__ import annotations

import pytest

from bedstone.sandbox.boxed import container, gvisor
from bedstone.testing.isolation import missing
from bedstone.testing.sandbox import CHECKS, run_check

FEW = ("bootstrap_is_private", "command_runs_beside", "stop_is_polite_then_firm")
"""What the driver has a part in; the rest is the same code."""


@pytest.mark.parametrize("check", [check for check in CHECKS if check != "warm_is_said"])
def test_container(check: str) -> None:
    if why := missing("container"):
        pytest.skip(why)
    assert run_check(check, container, boxed=True)


@pytest.mark.parametrize("check", FEW)
def test_gvisor(check: str) -> None:
    if why := missing("gvisor"):
        pytest.skip(why)
    assert run_check(check, gvisor, boxed=True)
