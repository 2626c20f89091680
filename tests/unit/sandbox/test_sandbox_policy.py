"""A policy denies whatever it does not name, and says which field it was."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import pytest

from bedstone.errors import DeniedError, InvalidError
from bedstone.sandbox.policy import (
    ANY,
    ANY_USER,
    AllowedMount,
    Policy,
    Request,
    check_copy,
    check_exec,
    check_start,
)

DECISIONS = json.loads(
    Path(__file__).parents[2].joinpath("golden/policy/decisions.json").read_text()
)
POLICY = Policy.from_json(DECISIONS["policy"])


def request(value: dict[str, Any]) -> Request:
    mounts = tuple(AllowedMount(**mount) for mount in value["mounts"])
    lists = {name: tuple(value[name]) for name in ("env", "capabilities", "devices")}
    return Request(**{**value, **lists, "mounts": mounts})


@pytest.mark.parametrize("decision", DECISIONS["starts"], ids=json.dumps)
def test_a_start_is_decided_as_recorded(decision: dict[str, Any]) -> None:
    asked = request(DECISIONS["start"] | decision["change"])
    if decision["denied"] is None:
        check_start(POLICY, asked)
        return
    with pytest.raises(DeniedError, match=f"field `{decision['denied']}`"):
        check_start(POLICY, asked)


@pytest.mark.parametrize("decision", DECISIONS["execs"], ids=json.dumps)
def test_an_exec_is_decided_as_recorded(decision: dict[str, Any]) -> None:
    asked = request(DECISIONS["start"] | decision["change"])
    if decision["denied"] is None:
        check_exec(POLICY, asked)
        return
    with pytest.raises(DeniedError, match=f"field `{decision['denied']}`"):
        check_exec(POLICY, asked)


@pytest.mark.parametrize("decision", DECISIONS["copies"], ids=json.dumps)
def test_a_copy_is_decided_as_recorded(decision: dict[str, Any]) -> None:
    field: Literal["copy_in", "copy_out"] = decision["field"]
    if decision["denied"] is None:
        check_copy(POLICY, field, decision["path"])
        return
    with pytest.raises(DeniedError, match=f"field `{field}`"):
        check_copy(POLICY, field, decision["path"])


@pytest.mark.parametrize("policy", [None, Policy()])
def test_no_policy_and_an_empty_one_deny_everything(policy: Policy | None) -> None:
    asked = Request(program="/bin/sh")
    with pytest.raises(DeniedError):
        check_start(policy, asked)
    with pytest.raises(DeniedError):
        check_exec(policy, asked)
    with pytest.raises(DeniedError):
        check_copy(policy, "copy_in", "/")
    with pytest.raises(DeniedError):
        check_copy(policy, "copy_out", "/")


def test_exec_is_allowed_by_itself() -> None:
    policy = Policy(programs=(ANY,), users=(ANY_USER,))
    with pytest.raises(DeniedError, match="field `exec`"):
        check_exec(policy, Request(program="/bin/sh"))


def test_a_star_among_capabilities_allows_none() -> None:
    policy = Policy(programs=(ANY,), users=(ANY_USER,), capabilities=(ANY,))
    with pytest.raises(DeniedError, match="field `capabilities`"):
        check_start(policy, Request(program="sh", capabilities=("CAP_SYS_ADMIN",)))


def test_json_keeps_everything() -> None:
    text = json.dumps(POLICY.to_json())
    assert Policy.from_json(json.loads(text)) == POLICY
    assert Policy.from_json(json.loads(text)).digest() == POLICY.digest()
    assert set(POLICY.to_json()) == {"version", *(field.name for field in fields(Policy))}


def test_what_is_missing_in_json_denies() -> None:
    assert Policy.from_json({"version": 1}) == Policy()


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": None},
        {"unknown": 1},
        {"exec": "true"},
        {"network": "host"},
        {"programs": "/bin/sh"},
        {"programs": [1]},
        {"users": [True]},
        {"users": ["0"]},
        {"mounts": [{"source": "/a"}]},
        {"mounts": [{"source": "/a", "target": "/b", "readonly": "no"}]},
        {"mounts": [{"source": "/a", "target": "/b", "type": "bind"}]},
        {"mounts": {}},
        {"mounts": ["/a"]},
    ],
)
def test_other_json_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        Policy.from_json({"version": 1, **change})
