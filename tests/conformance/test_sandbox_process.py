"""The process sandbox keeps the promises of sandboxes, with privileges and without."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bedstone.sandbox.process import ProcessSandbox
from bedstone.testing.sandbox import CHECKS, run_check

WARM = {"warm": ("json",)}
SYSTEM = Path(f"/usr/bin/python3.{sys.version_info.minor}")


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
    assert run_check(check, ProcessSandbox, enforce="never", declared=WARM) is False


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root; run the tests as root")
@pytest.mark.parametrize("check", CHECKS)
def test_enforced_and_warm(check: str) -> None:
    if run_check(check, ProcessSandbox, enforce="auto", declared=WARM) is False:
        pytest.skip("this kernel or container has no network namespaces; grant CAP_SYS_ADMIN")


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root; run the tests as root")
@pytest.mark.skipif(not SYSTEM.exists(), reason=f"install {SYSTEM}, which every user may run")
@pytest.mark.parametrize("check", CHECKS)
def test_warm_with_users_of_their_own(check: str) -> None:
    declared = {**WARM, "python": str(SYSTEM)}
    if run_check(check, ProcessSandbox, enforce="auto", declared=declared) is False:
        pytest.skip("this kernel or container has no network namespaces; grant CAP_SYS_ADMIN")
