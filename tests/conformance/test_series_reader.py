"""Every store of series keeps the promises of `Reader`."""

from __future__ import annotations

import pytest

from bedstone.testing.series import CHECKS, MemoryReader, Subject, run_check


@pytest.mark.parametrize("check", CHECKS)
def test_memory(check: str) -> None:
    memory = MemoryReader()
    run_check(check, Subject(writer=memory, reader=memory))
