"""Where a database inside a network namespace leads: the engine here, or any server by URL."""

from __future__ import annotations

from google.protobuf.any_pb2 import Any

from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.names import Flavour, Key, Type
from bedstone.control.mesh.protos import Cluster
from bedstone.control.mesh.views import NodeProxy
from bedstone.model.resources import (
    Address,
    App,
    Database,
    DatabaseStatus,
    InstanceStatus,
    Node,
    Phase,
    Plumbing,
    Presence,
)
from bedstone.model.spec import AppSpec

CLUSTER = "database/bank/default/ledger"
LISTENER = "database/bank/default/web/w1/ledger"


def mesh() -> Mesh:
    """An app whose instance dials a database inside its namespace."""
    made = Mesh("d.internal")
    web = {"run": "web:app", "uses": ["ledger"]}
    spec = AppSpec.model_validate({"app": "bank", "workloads": {"web": web}, "databases": {}})
    inside = Address(host="127.0.0.1", port=5432, netns="/run/ns/w1")
    plumbing = Plumbing(app=inside, inbound=inside, outbound=inside, databases={"ledger": inside})
    status = InstanceStatus(
        app="bank",
        workload="web",
        name="w1",
        node="n1",
        revision="r1",
        phase=Phase.PENDING,
        plumbing=plumbing,
    )
    made.apply([Node(name="n1", address="127.0.0.1"), Presence(node="n1")])
    made.apply([App(name="bank", spec=spec), status])
    return made


def cluster(made: Mesh) -> tuple[str, str, int] | None:
    """The type and the address of the database's cluster."""
    listeners = made.names(NodeProxy("n1"), Type.LDS)
    clusters = made.names(NodeProxy("n1"), Type.CDS)
    assert (LISTENER in listeners) == (CLUSTER in clusters)
    encoded = made.get(Key(Flavour.ENVOY, Type.CDS, CLUSTER))
    assert (encoded is not None) == (CLUSTER in clusters)
    if encoded is None:
        return None
    held = Any()
    held.ParseFromString(encoded.data)
    found = Cluster()
    found.ParseFromString(held.value)
    address = found.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address
    kind = found.DiscoveryType.Name(found.type)
    return kind, address.address, address.port_value


def external(url: str | None) -> Database:
    return Database(app="bank", name="ledger", url=url, node="n1", users=["web"])


def test_a_database_by_url_is_dialled_where_the_url_leads() -> None:
    made = mesh()
    assert cluster(made) is None

    made.apply([external("postgresql://u:secret@10.0.0.7:5444/bank")])
    assert cluster(made) == ("STATIC", "10.0.0.7", 5444)

    made.apply([external("postgresql://u:secret@db.example.org/bank?sslmode=require")])
    assert cluster(made) == ("LOGICAL_DNS", "db.example.org", 5432)


def test_an_external_database_becomes_embedded_and_goes() -> None:
    made = mesh()
    status = DatabaseStatus(
        app="bank",
        name="ledger",
        node="n1",
        phase=Phase.READY,
        address=Address(host="127.0.0.1", port=6000),
    )
    made.apply([external("postgresql://db.example.org/bank"), status])
    assert cluster(made) == ("LOGICAL_DNS", "db.example.org", 5432)

    made.apply([external(None)])
    assert cluster(made) == ("STATIC", "127.0.0.1", 6000)

    made.apply(deletes=["databases/bank/default/ledger", status.key])
    assert cluster(made) is None


def test_a_url_that_leads_to_no_port_makes_no_cluster() -> None:
    made = mesh()
    for url in ("postgresql:///bank?host=/run/pg", "postgresql://db:port/bank"):
        made.apply([external(url)])
        assert cluster(made) is None
