"""What scaling, rolling back and declaring again make of an app."""

from __future__ import annotations

from typing import Any

import pytest

from bedstone.control import declaring
from bedstone.errors import ConflictError, InvalidError, NotFoundError
from bedstone.model.diff import format_change
from bedstone.model.resources import App, Declaration
from bedstone.model.spec import AppSpec


def spec(web: dict[str, Any] | None = None, **more: Any) -> AppSpec:
    workloads = {"web": {"command": ["w"], **(web or {})}, "db-user": {"command": ["u"]}}
    return AppSpec.model_validate({"app": "shop", "workloads": workloads, **more})


def app(web: dict[str, Any] | None = None, **more: Any) -> App:
    return App(name="shop", spec=spec(web), sources={"web": "s1"}, generation=3, **more)


def declaration(generation: int, web: dict[str, Any] | None = None, **more: Any) -> Declaration:
    return Declaration(app="shop", generation=generation, spec=spec(web, **more))


def test_a_workload_stays_scaled_until_a_manifest_says_another_number() -> None:
    held, lines = declaring.scaled(app({"replicas": 2}), "web", 5)
    assert held.replicas("web") == 5
    assert [format_change(line) for line in lines] == [
        "~ workload web: replicas 2 → 5 (scales; the manifest says 2)"
    ]
    same, _ = declaring.declared(held, "shop", spec({"replicas": 2, "env": {"A": "1"}}), "", {})
    assert same.replicas("web") == 5, "another change of the manifest leaves it"
    other, lines = declaring.declared(held, "shop", spec({"replicas": 3}), "", {"web": "s1"})
    assert other.scaled == {}
    assert other.replicas("web") == 3
    assert [format_change(line) for line in lines] == [
        "~ workload web: replicas 5, scaled by hand, → 3 (scales)"
    ]


def test_scaling_to_what_is_declared_leaves_no_trace() -> None:
    held, _ = declaring.scaled(app({"replicas": 2}), "web", 0)
    back, lines = declaring.scaled(held, "web", 2)
    assert back.scaled == {}
    assert lines[0].effect == "scales, as declared"
    assert declaring.scaled(back, "web", 2) == (back, ())


def test_a_workload_that_is_gone_is_scaled_no_more() -> None:
    held, _ = declaring.scaled(app(), "db-user", 4)
    only = AppSpec.model_validate({"app": "shop", "workloads": {"web": {"command": ["w"]}}})
    without, _ = declaring.declared(held, "shop", only, "", {})
    assert without.scaled == {}
    again, _ = declaring.declared(without, "shop", spec(), "", {})
    assert again.replicas("db-user") == 1


def test_what_is_not_there_cannot_be_scaled() -> None:
    with pytest.raises(NotFoundError, match="has no workload nothing"):
        declaring.scaled(app(), "nothing", 1)


def test_a_roll_back_restores_the_declaration_and_not_the_replicas() -> None:
    now = app({"env": {"A": "2"}, "replicas": 4})
    restored = declaring.rolled_back(now, "web", declaration(1, {"env": {"A": "1"}}))
    assert restored.workloads["web"].env == {"A": "1"}
    assert restored.workloads["web"].replicas == 4
    assert restored.workloads["db-user"] == now.spec.workloads["db-user"]


def test_a_roll_back_that_changes_nothing_is_refused() -> None:
    with pytest.raises(InvalidError, match="declared as in generation 1 already"):
        declaring.rolled_back(app({"replicas": 4}), "web", declaration(1))


def test_a_roll_back_to_what_used_more_than_there_is_is_refused() -> None:
    then = declaration(1, {"uses": ["ledger", "db-user"]}, databases={"ledger": {}})
    with pytest.raises(ConflictError, match="uses ledger, which is not declared") as caught:
        declaring.rolled_back(app(), "web", then)
    assert caught.value.hint == "restore the whole app: bedstone undo 2"


def test_a_roll_back_to_before_the_workload_is_refused() -> None:
    only = AppSpec.model_validate({"app": "shop", "workloads": {"db-user": {"command": ["u"]}}})
    with pytest.raises(NotFoundError, match="generation 1 of app shop has no workload web"):
        declaring.rolled_back(app(), "web", Declaration(app="shop", generation=1, spec=only))


def test_without_a_generation_the_last_that_differs_is_meant() -> None:
    now = app({"env": {"A": "2"}})
    history = [declaration(n, {"env": {"A": a}}) for n, a in ((3, "2"), (2, "2"), (1, "1"))]
    assert declaring.earlier(now, "web", history).generation == 1
    with pytest.raises(NotFoundError, match="no earlier declaration"):
        declaring.earlier(now, "web", history[:2])


def test_source_stays_as_it_is_now() -> None:
    then = declaration(1).model_copy(update={"sources": {"web": "s0", "db-user": "u0"}})
    assert declaring.restored_sources(app(), then) == {"web": "s1", "db-user": "u0"}
