"""The process sandbox keeps the promises of sandboxes, with privileges and without."""

from __future__ import annotations

import os

import pytest

from bedstone.sandbox.process import ProcessSandbox
from bedstone.testing.sandbox import CHECKS, run_check


@pytest.mark.parametrize("check", CHECKS)
def test_cooperative(check: str) -> None:
    assert run_check(check, ProcessSandbox, enforce="never") is False


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root; run the tests as root")
@pytest.mark.parametrize("check", CHECKS)
def test_enforced(check: str) -> None:
    if run_check(check, ProcessSandbox, enforce="auto") is False:
        pytest.skip("this kernel or container has no network namespaces; grant CAP_SYS_ADMIN")


@pytest.mark.parametrize("check", CHECKS)
def test_cooperative_and_warm(check: str) -> None:
    assert run_check(check, ProcessSandbox, enforce="never", warm=("json",)) is False


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root; run the tests as root")
@pytest.mark.parametrize("check", CHECKS)
def test_enforced_and_warm(check: str) -> None:
    if run_check(check, ProcessSandbox, enforce="auto", warm=("json",)) is False:
        pytest.skip("this kernel or container has no network namespaces; grant CAP_SYS_ADMIN")
