"""Golden files: what a manifest and its instances become, as every proxy is sent it.

`BEDSTONE_GOLDEN=write` writes the files anew; read the difference before committing it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.names import Type
from bedstone.control.mesh.protos import AnyMessage
from bedstone.control.mesh.views import GrpcClient, NodeProxy, Proxy
from bedstone.model.resources import (
    Address,
    App,
    DatabaseStatus,
    Instance,
    InstanceStatus,
    Node,
    Phase,
    Plumbing,
    Presence,
    Resource,
)
from bedstone.model.spec import AppSpec

FILES = Path(__file__).parent / "mesh"
NETNS = "/run/bedstone/netns/1"
BANK: dict[str, Any] = {
    "app": "bank",
    "gateway": {
        "port": 8080,
        "routes": [
            {"path": "/", "to": "web"},
            {"path": "/api/risk", "to": "risk", "strip": True, "timeout": 5, "host": "api.example"},
        ],
    },
    "workloads": {
        "web": {"command": ["web"], "uses": ["accounts", "risk"]},
        "accounts": {"command": ["accounts"], "uses": ["ledger", "risk"], "timeout": 10},
        "risk": {"command": ["risk"], "protocol": "grpc"},
    },
    "databases": {"ledger": {}},
}


def instance(workload: str, number: int, node: str, *, netns: str | None = None) -> list[Resource]:
    host, base = "127.0.0.1", 20_000 + 100 * number

    def at(offset: int, *, inside: bool = True) -> Address:
        return Address(host=host, port=base + offset, netns=netns if inside else None)

    uses = BANK["workloads"][workload].get("uses", [])
    ids: dict[str, Any] = {"app": "bank", "workload": workload, "name": f"i{number}", "node": node}
    plumbing = Plumbing(
        app=at(0),
        inbound=at(1, inside=False),
        outbound=at(2),
        services={name: at(3 + i) for i, name in enumerate(uses) if name != "ledger"},
        databases={"ledger": at(9)} if netns and "ledger" in uses else {},
        telemetry=at(8),
        credential=None if netns else "Basic dXNlcjpzZWNyZXQ=",
    )
    status = InstanceStatus(**ids, revision="r1", phase=Phase.READY, plumbing=plumbing)
    return [Instance(**ids, revision="r1"), status]


def cooperative() -> Mesh:
    """One node without privileges: credentials, gateway, calls."""
    mesh = Mesh("bank.internal")
    mesh.apply(
        [
            App(name="bank", spec=AppSpec.model_validate(BANK)),
            Node(name="n1", address="127.0.0.1", calls="/run/bedstone/calls"),
            Presence(node="n1"),
            *instance("web", 1, "n1"),
            *instance("accounts", 2, "n1"),
            *instance("risk", 3, "n1"),
            *instance("risk", 4, "n1"),
        ]
    )
    return mesh


def enforced() -> Mesh:
    """Two nodes with namespaces; the database is on one, its user on the other."""
    mesh = Mesh("bank.internal")
    mesh.apply(
        [
            App(name="bank", spec=AppSpec.model_validate({**BANK, "gateway": None})),
            Node(name="n1", address="127.0.0.1", enforced=True, gateway=False),
            Presence(node="n1"),
            Presence(node="n2"),
            DatabaseStatus(
                app="bank",
                name="ledger",
                node="n2",
                phase=Phase.READY,
                address=Address(host="127.0.0.1", port=5432),
            ),
            *instance("accounts", 2, "n1", netns=NETNS),
            *instance("risk", 3, "n2", netns=NETNS),
        ]
    )
    return mesh


def large() -> Mesh:
    """A service with more endpoints than the threshold."""
    mesh = Mesh("bank.internal", leds_threshold=1)
    mesh.apply(
        [
            App(name="bank", spec=AppSpec.model_validate({**BANK, "gateway": None})),
            Presence(node="n1"),
            Presence(node="n2"),
            *instance("accounts", 2, "n1"),
            *instance("risk", 3, "n2"),
            *instance("risk", 4, "n2"),
        ]
    )
    return mesh


CASES: dict[str, tuple[Mesh, Proxy]] = {
    "cooperative": (cooperative(), NodeProxy("n1")),
    "enforced": (enforced(), NodeProxy("n1")),
    "large": (large(), NodeProxy("n1")),
    "proxyless": (cooperative(), GrpcClient("bank", "accounts")),
}


def described(mesh: Mesh, proxy: Proxy) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in (Type.LDS, Type.RDS, Type.CDS, Type.EDS):
        for name in sorted(mesh.names(proxy, kind)):
            key = mesh.key(proxy, kind, name)
            assert key is not None
            made = mesh.get(key)
            assert made is not None
            message = AnyMessage.FromString(made.data)
            found[f"{kind.name} {name}"] = json_format.MessageToDict(
                message, preserving_proto_field_name=True
            )
    if isinstance(proxy, NodeProxy):
        for service in sorted(mesh.names(proxy, Type.EDS)):
            glob = f"xdstp://bank.internal/envoy.config.endpoint.v3.LbEndpoint/{service}/*"
            for name, made in sorted(mesh.collection(proxy, glob).items()):
                message = AnyMessage.FromString(made.data)
                found[f"LEDS {name}"] = json_format.MessageToDict(
                    message, preserving_proto_field_name=True
                )
    return found


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    found = json.dumps(described(*CASES[case]), indent=1, sort_keys=True) + "\n"
    path = FILES / f"{case}.json"
    if os.environ.get("BEDSTONE_GOLDEN") == "write":
        FILES.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text(), "regenerate with BEDSTONE_GOLDEN=write, and read the diff"


def test_versions_do_not_depend_on_the_process_or_the_order() -> None:
    """A server that restarts, or learns things in another order, sends nothing anew."""
    first, second = cooperative(), Mesh("bank.internal")
    resources: list[Resource] = [
        *instance("risk", 4, "n1"),
        *instance("risk", 3, "n1"),
        Presence(node="n1"),
        *instance("accounts", 2, "n1"),
        *instance("web", 1, "n1"),
        App(name="bank", spec=AppSpec.model_validate(BANK)),
        Node(name="n1", address="127.0.0.1", calls="/run/bedstone/calls"),
    ]
    for resource in resources:
        second.apply([resource])
    assert first.digests("n1") == second.digests("n1")
    assert len(first.digests("n1")) > 20
