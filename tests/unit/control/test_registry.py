"""Which instances are endpoints, whatever order their parts become known in."""

from __future__ import annotations

import itertools

import pytest

from bedstone.control.registry import Change, Endpoint, Registry
from bedstone.model.resources import (
    Address,
    Desired,
    Instance,
    InstanceStatus,
    Phase,
    Plumbing,
    Presence,
)

SERVICE = ("bank", "default", "risk")


def instance(node: str = "n1", desired: Desired = Desired.RUNNING) -> Instance:
    return Instance(
        app="bank", workload="risk", name="r1", revision="r", node=node, desired=desired
    )


def status(phase: Phase = Phase.READY, node: str = "n1", *, plumbed: bool = True) -> InstanceStatus:
    def at(port: int) -> Address:
        return Address(host="10.0.0.1", port=port)

    return InstanceStatus(
        app="bank",
        workload="risk",
        name="r1",
        revision="r",
        node=node,
        phase=phase,
        plumbing=Plumbing(app=at(1), inbound=at(2), outbound=at(3)) if plumbed else None,
    )


def test_endpoint_appears_with_the_last_of_its_parts_in_any_order() -> None:
    parts: list[Instance | InstanceStatus | Presence] = [
        instance(),
        status(),
        Presence(node="n1"),
    ]
    for order in itertools.permutations(parts):
        registry = Registry()
        changes = [registry.put(part) for part in order]
        assert sorted(map(len, changes)) == [0, 0, 1]
        assert {Change(*SERVICE, "r1")} in changes
        assert registry.endpoints(SERVICE) == {"r1": Endpoint("r1", "n1", "10.0.0.1", 2)}
        assert list(registry.services()) == [SERVICE]


@pytest.mark.parametrize(
    "parts",
    [
        (instance(), status(phase), Presence(node="n1"))
        for phase in Phase
        if phase is not Phase.READY
    ]
    + [
        (instance(desired=Desired.DRAINED), status(), Presence(node="n1")),
        (instance(), status(plumbed=False), Presence(node="n1")),
        (instance(node="n2"), status(), Presence(node="n1")),
        (status(), Presence(node="n1")),
    ],
)
def test_not_an_endpoint(parts: tuple[Instance | InstanceStatus | Presence, ...]) -> None:
    registry = Registry()
    for part in parts:
        assert registry.put(part) == set()
    assert registry.endpoints(SERVICE) == {}


@pytest.mark.parametrize(
    "key",
    ["instances/bank/default/risk/r1", "status/instances/bank/default/risk/r1"],
)
def test_endpoint_goes_with_any_of_its_parts(key: str) -> None:
    registry = Registry()
    for part in (instance(), status(), Presence(node="n1")):
        registry.put(part)
    assert registry.delete("status/databases/bank/default/risk") == set()
    assert registry.delete(key) == {Change(*SERVICE, "r1")}
    assert registry.delete(key) == set()
    assert registry.endpoints(SERVICE) == {}
    assert list(registry.services()) == []


def test_repeated_report_is_no_change() -> None:
    registry = Registry()
    for part in (instance(), status(), Presence(node="n1")):
        registry.put(part)
    assert registry.put(status().model_copy(update={"pid": 7})) == set()
    assert registry.put(Presence(node="n1")) == set()


def test_a_dead_nodes_endpoints_expire_once_another_node_has_one() -> None:
    """To call what may be dead is better than to call nobody."""
    registry = Registry()
    for part in (instance(), status(), Presence(node="n1")):
        registry.put(part)
    kept = registry.endpoints(SERVICE)
    assert registry.delete("presence/n1") == set()
    assert registry.endpoints(SERVICE) == kept
    other = instance(node="n2").model_copy(update={"name": "r2"})
    registry.put(other)
    registry.put(status(node="n2").model_copy(update={"name": "r2"}))
    assert set(registry.endpoints(SERVICE)) == {"r1", "r2"}, "n2 is not present either"
    assert registry.put(Presence(node="n2")) == {Change(*SERVICE, "r1")}
    assert set(registry.endpoints(SERVICE)) == {"r2"}
    assert registry.put(Presence(node="n1")) == {Change(*SERVICE, "r1")}
    assert set(registry.endpoints(SERVICE)) == {"r1", "r2"}


def test_an_instance_that_stops_on_an_absent_node_is_no_endpoint_any_more() -> None:
    registry = Registry()
    for part in (instance(), status(), Presence(node="n1")):
        registry.put(part)
    registry.delete("presence/n1")
    assert registry.put(instance(desired=Desired.DRAINED)) == {Change(*SERVICE, "r1")}
    assert registry.endpoints(SERVICE) == {}
    assert list(registry.services()) == []
