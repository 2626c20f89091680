from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bedstone.errors import InvalidError
from bedstone.processes.spec import Confinement, Limits, Mount, ProcessInfo, ProcessSpec

SPEC = ProcessSpec(
    "web",
    ("python", "app.py"),
    env={"B": "2", "A": "1"},
    groups=(1, 2),
    mounts=(Mount("/a", "/b", readonly=True),),
    limits=Limits(open_files=10, cpu=0.5),
    confinement=Confinement(("/a",), temporary="/tmp"),
)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"argv": ()},
        {"argv": ("a\0b",)},
        {"env": {"A=B": "1"}},
        {"env": {"": "1"}},
        {"env": {"A": "x\0"}},
    ],
)
def test_what_no_kernel_could_run_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        replace(SPEC, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [{}, {"name": "x"}, {"name": "x", "argv": ["a"], "more": 1}])
def test_what_is_no_specification_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        ProcessSpec.from_json(value)


def test_a_specification_survives_json() -> None:
    again = ProcessSpec.from_json(json.loads(json.dumps(SPEC.to_json())))
    assert again == SPEC
    assert again.digest() == SPEC.digest()


def test_the_digest_covers_every_field_and_no_order_of_variables() -> None:
    assert replace(SPEC, env={"A": "1", "B": "2"}).digest() == SPEC.digest()
    changed = {
        "name": "x",
        "argv": ("python",),
        "env": {"A": "1"},
        "cwd": "/tmp",
        "stdout": "/x",
        "stderr": "/x",
        "uid": 1,
        "gid": 1,
        "groups": (1,),
        "netns": "/x",
        "userns": "/x",
        "mounts": (Mount("/a", "/b"),),
        "limits": Limits(open_files=11),
        "confinement": Confinement(alone=True),
        "umask": 0,
        "nice": 1,
        "oom_score_adj": 1,
        "death_signal": 1,
        "stop_signal": 1,
        "stop_grace": 1.0,
        "stage": 4,
        "restart": "always",
        "zygote": "zygote/x",
        "forks": True,
    }
    assert set(changed) == set(ProcessSpec.__slots__)
    digests = {replace(SPEC, **{key: value}).digest() for key, value in changed.items()}  # type: ignore[arg-type]
    assert len(digests | {SPEC.digest()}) == len(changed) + 1


def test_information_ignores_what_a_newer_supervisor_adds() -> None:
    info = ProcessInfo("web", "exited", "d", exit_signal=9, applied=("a",))
    assert ProcessInfo.from_json({**info.to_json(), "newer": 1, "applied": ["a"]}) == info


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (ProcessInfo("a", "running", "d"), "running"),
        (ProcessInfo("a", "failed", "d", message="program not found: x"), "program not found: x"),
        (ProcessInfo("a", "exited", "d", exit_code=3), "exit status 3"),
        (ProcessInfo("a", "exited", "d", exit_signal=11), "killed by SIGSEGV"),
        (ProcessInfo("a", "exited", "d", exit_signal=63), "killed by signal 63"),
    ],
)
def test_an_ending_is_said_for_people(info: ProcessInfo, text: str) -> None:
    assert info.ending() == text
