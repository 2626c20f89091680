"""A box's specification refuses what cannot be meant, and survives JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bedstone.errors import InvalidError
from bedstone.sandbox.box import BoxLimits, BoxSpec, Exec, Mount
from bedstone.sandbox.policy import AllowedMount, Policy

SPEC = BoxSpec(
    id="web-1",
    root="/srv/root",
    command=("/bin/sh", "-c", "true"),
    policy=Policy(programs=("/bin/sh",), env=("PATH",), users=(0,)),
    env={"PATH": "/bin"},
    groups=(7,),
    mounts=(
        Mount("/srv/data", "/data"),
        Mount("", "/scratch", readonly=False, kind="tmpfs", size=1 << 20),
    ),
    devices=("/dev/fuse",),
    limits=BoxLimits(memory=None, cpus=0.5),
    netns="/run/netns/a",
    capabilities=("CAP_CHOWN",),
    labels={"name": "web"},
)


def changed(**change: Any) -> BoxSpec:
    return BoxSpec.from_json(SPEC.to_json() | change)


def test_json_keeps_everything() -> None:
    again = BoxSpec.from_json(json.loads(json.dumps(SPEC.to_json())))
    assert again == SPEC
    assert again.digest() == SPEC.digest()


def test_the_digest_covers_the_policy() -> None:
    assert changed(policy=None).digest() != SPEC.digest()


def test_a_request_names_what_the_policy_decides() -> None:
    asked = SPEC.request()
    assert asked.program == "/bin/sh"
    assert asked.network == "given"
    assert asked.writable_root
    assert asked.mounts == (
        AllowedMount("/srv/data", "/data"),
        AllowedMount("tmpfs", "/scratch", readonly=False),
    )
    assert Exec(("id",)).request(changed(user=5)).user == 5


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"id": "../x"},
        {"id": "a..b"},
        {"id": "A"},
        {"id": "a/b"},
        {"id": "a" * 64},
        {"root": "relative"},
        {"command": []},
        {"command": [""]},
        {"command": ["a\0b"]},
        {"cwd": "job"},
        {"cwd": "/job/.."},
        {"cwd": "//job"},
        {"env": {"A=B": "1"}},
        {"env": {"A": "\0"}},
        {"capabilities": ["chown"]},
        {"devices": ["/dev/../etc/passwd"]},
        {"devices": ["/etc/passwd"]},
        {"mounts": [{"source": "/a", "target": "/"}]},
        {"mounts": [{"source": "/a", "target": "/proc/self"}]},
        {"mounts": [{"source": "/a", "target": "/x/../proc"}]},
        {"mounts": [{"source": "a", "target": "/x"}]},
        {"mounts": [{"source": "/a", "target": "/x"}, {"source": "/b", "target": "/x"}]},
        {"unknown": 1},
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        changed(**change)
