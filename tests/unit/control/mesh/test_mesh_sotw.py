"""The state-of-the-world stream, as a gRPC client uses it."""

from __future__ import annotations

from bedstone.control.mesh.mesh import Mesh
from bedstone.control.mesh.names import Type
from bedstone.control.mesh.sotw import SotwStream
from bedstone.control.mesh.streams import Interest, Request
from bedstone.control.mesh.views import GrpcClient
from bedstone.model.resources import App
from bedstone.model.spec import AppSpec, WorkloadSpec


def declared(*uses: str) -> App:
    workloads = {
        "web": WorkloadSpec(command=("x",), uses=uses),
        "risk": WorkloadSpec(command=("x",), protocol="grpc"),
    }
    return App(name="bank", spec=AppSpec(app="bank", workloads=workloads))


def stream(mesh: Mesh) -> SotwStream:
    return SotwStream(GrpcClient("bank", "web"), mesh, Interest())


def test_answer_repeats_only_when_something_changed() -> None:
    mesh = Mesh("d.internal")
    mesh.apply([declared("risk")])
    client = stream(mesh)
    client.receive(Request(Type.LDS, subscribe=("risk",)), 0)
    (first,) = client.poll(0)
    assert [name for name, _ in first.resources] == ["risk"]
    assert client.poll(0) == []
    client.receive(
        Request(Type.LDS, subscribe=("risk",), nonce=first.nonce, version=first.version), 0
    )
    client.mark_all()
    assert client.poll(0) == []
    assert client.current(Type.LDS, "risk")
    mesh.apply([declared()])
    client.mark_all()
    (second,) = client.poll(0)
    assert second.version != first.version
    assert not client.current(Type.LDS, "risk")


def test_rejected_answer_is_not_repeated_and_is_reported() -> None:
    mesh = Mesh("d.internal")
    mesh.apply([declared("risk")])
    client = stream(mesh)
    name = "bank/default/risk"
    client.receive(Request(Type.CDS, subscribe=(name,)), 0)
    (first,) = client.poll(0)
    rejected = Request(Type.CDS, subscribe=(name,), nonce=first.nonce, error="unsupported")
    client.receive(rejected, 0)
    client.mark_all()
    assert client.poll(0) == []
    (rejection,) = client.rejections()
    assert (rejection.app, rejection.subject) == ("bank", "workloads.risk")
    assert rejection.message == "unsupported"


def test_stale_nonce_is_ignored() -> None:
    mesh = Mesh("d.internal")
    mesh.apply([declared("risk")])
    client = stream(mesh)
    client.receive(Request(Type.LDS, subscribe=("risk",)), 0)
    (first,) = client.poll(0)
    client.receive(Request(Type.LDS, subscribe=(), nonce="old"), 0)
    assert client.wants(Type.LDS) == 1
    assert client.pending(Type.LDS) == 1
    client.receive(Request(Type.LDS, subscribe=("risk",), nonce=first.nonce), 0)
    assert client.pending(Type.LDS) == 0


def test_endpoints_of_what_is_not_declared_are_not_given() -> None:
    mesh = Mesh("d.internal")
    mesh.apply([declared()])
    client = stream(mesh)
    for kind in (Type.CDS, Type.EDS):
        client.receive(Request(kind, subscribe=("bank/default/risk",)), 0)
    assert [r.resources for r in client.poll(0)] == [(), ()]


def test_names_that_a_client_makes_up_are_not_remembered() -> None:
    """It is told that it may not have them, and asks for others: nothing of the former stays."""
    mesh, interest = Mesh("d.internal"), Interest()
    mesh.apply([declared("risk")])
    client = SotwStream(GrpcClient("bank", "web"), mesh, interest)
    nonce = ""
    keys = []
    for batch in range(3):
        asked = tuple(f"x{batch}-{number}" for number in range(10))
        client.receive(Request(Type.LDS, subscribe=asked, nonce=nonce), 0)
        (response,) = client.poll(0)
        assert [name for name, _ in response.resources] == sorted(asked)
        nonce = response.nonce
        keys.append([mesh.key(client.proxy, Type.LDS, name) for name in asked])
    assert [sum(client in interest.of(key) for key in group if key) for group in keys] == [0, 0, 10]
    changed = mesh.apply([declared()]).keys
    assert not [key for key in changed if key.name.startswith("denied/")]
    client.close()
    assert not any(interest.of(key) for key in keys[-1] if key)
