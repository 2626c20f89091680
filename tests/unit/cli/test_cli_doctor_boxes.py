"""`bedstone doctor` says what boxes need."""

from __future__ import annotations

import os

import pytest

from bedstone.cli.doctor import boxes, result


def test_what_is_missing_is_a_warning_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedstone.sandbox.oci.machine.which", lambda _name: None)
    found = boxes()
    assert [check.name for check in found] == ["isolation: container", "isolation: gvisor"]
    assert {result(check) for check in found} == {"warn"}
    assert "apt-get install runsc" in (found[1].fix or "")


def test_one_of_two_runtimes_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def which(name: str) -> str | None:
        return "/bin/crun" if name == "crun" else None

    monkeypatch.setattr("bedstone.sandbox.oci.machine.which", which)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    container, gvisor = boxes()
    assert (container.ok, container.detail) == (True, "/bin/crun")
    assert not gvisor.ok
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert boxes()[0].detail.startswith("/bin/crun; without root")
    monkeypatch.setattr("bedstone.sandbox.oci.machine.which", lambda name: f"/bin/{name}")
    assert boxes()[1].detail == "not root"
