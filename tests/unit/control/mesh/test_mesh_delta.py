"""The delta stream: holding, ordering, rejections, repair. Virtual time throughout."""

from __future__ import annotations

from bedstone.control.mesh import queries
from bedstone.control.mesh.delta import PATIENCE, DeltaStream
from bedstone.control.mesh.mesh import Changes, Mesh
from bedstone.control.mesh.names import Flavour, Key, Service, Type, leds_collection
from bedstone.control.mesh.streams import Interest, Request, Response
from bedstone.control.mesh.views import NodeProxy
from bedstone.model.resources import (
    Address,
    App,
    Instance,
    InstanceStatus,
    Node,
    Phase,
    Plumbing,
    Presence,
    Resource,
    Revision,
)
from bedstone.model.spec import AppSpec, Gateway, Route, WorkloadSpec

EDS = "bank/default/risk"


NODE_WITH_CALLS = Node(name="n1", address="127.0.0.1", calls="/run/calls")
"""Its view keeps every workload of the app, for the operator."""


def bank(*uses: str, port: int = 8080) -> App:
    workloads = {
        "web": WorkloadSpec(command=("x",), uses=uses),
        "risk": WorkloadSpec(command=("x",)),
    }
    gateway = Gateway(port=port, routes=(Route(to="web"),))
    return App(name="bank", spec=AppSpec(app="bank", gateway=gateway, workloads=workloads))


def running(workload: str, name: str, phase: Phase = Phase.READY) -> list[Resource]:
    number = int(name[1:])

    def at(offset: int) -> Address:
        return Address(host="127.0.0.1", port=1000 + 10 * number + offset)

    status = InstanceStatus(
        app="bank",
        workload=workload,
        name=name,
        node="n1",
        revision="r",
        phase=phase,
        plumbing=Plumbing(app=at(0), inbound=at(1), outbound=at(2)),
    )
    instance = Instance(app="bank", workload=workload, name=name, revision="r", node="n1")
    return [instance, status]


class Rig:
    """A mesh and one stream of it, wired as the server does."""

    def __init__(self, *, leds_threshold: int = 1000) -> None:
        self.mesh = Mesh("d.internal", leds_threshold=leds_threshold)
        self.mesh.apply([Node(name="n1", address="127.0.0.1"), Presence(node="n1"), bank("risk")])
        self.interest = Interest()
        self.stream = DeltaStream(NodeProxy("n1"), self.mesh, self.interest)
        self.now = 0.0
        self.mesh.watch(self._changed)

    def _changed(self, changes: Changes) -> None:
        for key in changes.keys:
            for stream in self.interest.of(key):
                stream.mark(key.type, key.name)
        for kind, name in changes.views.get("n1", ()):
            self.stream.mark(kind, name)

    def ask(self, kind: Type, *names: str, **more: object) -> None:
        self.stream.receive(Request(kind, subscribe=names, **more), self.now)  # type: ignore[arg-type]

    def poll(self) -> list[Response]:
        return self.stream.poll(self.now)

    def one(self) -> Response:
        (response,) = self.poll()
        return response

    def ack(self, response: Response) -> None:
        self.stream.receive(Request(response.kind, nonce=response.nonce), self.now)

    def nack(self, response: Response, message: str) -> None:
        self.stream.receive(Request(response.kind, nonce=response.nonce, error=message), self.now)


def names(response: Response) -> list[str]:
    return [name for name, _ in response.resources]


def test_held_view_sends_nothing_then_everything() -> None:
    rig = Rig()
    rig.mesh.hold()
    rig.ask(Type.CDS)
    assert rig.poll() == []
    rig.mesh.release()
    assert names(rig.one()) == ["to/bank/default/gateway/web"]


def test_first_answer_is_sent_even_when_empty() -> None:
    rig = Rig()
    rig.mesh.apply([], ["apps/bank"])
    rig.ask(Type.LDS)
    assert rig.one().resources == ()
    assert rig.poll() == []


def test_slow_client_gets_the_latest_once() -> None:
    rig = Rig()
    rig.mesh.apply(running("web", "w1"))
    rig.ask(Type.EDS, EDS)
    first = rig.one()
    for i in range(50):
        rig.mesh.apply(running("risk", f"r{i}"))
    assert rig.poll() == [], "one response is unanswered"
    rig.ack(first)
    second = rig.one()
    assert names(second) == [EDS]
    rig.ack(second)
    assert rig.poll() == []


def test_name_outside_of_the_view_does_not_exist() -> None:
    rig = Rig()
    rig.ask(Type.EDS, "other/default/secret", EDS)
    response = rig.one()
    assert response.resources == ()
    assert response.removed == (EDS, "other/default/secret")
    rig.ack(response)
    rig.mesh.apply(running("web", "w1"))
    assert names(rig.one()) == [EDS], "it entered the view"


def test_routes_wait_for_clusters_and_endpoints_but_not_for_ever() -> None:
    rig = Rig()
    rig.ask(Type.CDS)
    rig.ask(Type.LDS)
    clusters = rig.one()
    assert clusters.kind is Type.CDS
    rig.ack(clusters)
    assert rig.poll() == [], "the cluster's endpoints are not yet asked for"
    rig.ask(Type.EDS, "bank/default/web")
    endpoints = rig.one()
    assert endpoints.kind is Type.EDS
    assert rig.poll() == []
    rig.ack(endpoints)
    listeners = rig.one()
    assert names(listeners) == ["gateway/bank"]
    rig.ack(listeners)
    rig.mesh.apply(running("web", "w1"))
    assert {r.kind for r in rig.poll()} == {Type.CDS, Type.EDS}
    rig.now += PATIENCE / 2
    assert rig.poll() == []
    wake = rig.stream.wake_at(rig.now)
    assert wake is not None
    rig.now = wake
    assert [r.kind for r in rig.poll()] == [Type.LDS]


def test_clusters_are_removed_after_the_routes_that_use_them() -> None:
    rig = Rig()
    rig.mesh.apply(running("web", "w1"))
    rig.ask(Type.CDS)
    clusters = rig.one()
    rig.ack(clusters)
    rig.ask(Type.EDS, EDS, "bank/default/web")
    rig.ack(rig.one())
    rig.ask(Type.RDS, "outbound/bank/default/web")
    rig.ack(rig.one())
    rig.mesh.apply([bank()])  # web uses nothing any more
    (routes,) = [r for r in rig.poll() if r.kind is Type.RDS]
    assert rig.poll() == [], "the cluster stays while the routes are unanswered"
    rig.ack(routes)
    gone, endpoints = rig.poll()
    assert gone.removed == ("to/bank/default/web/risk",)
    assert endpoints.removed == (EDS,)


def test_rejected_resource_is_left_out_and_offered_again() -> None:
    rig = Rig()
    rig.mesh.apply(running("web", "w1"))
    rig.ask(Type.LDS)
    first = rig.one()
    assert "gateway/bank" in names(first)
    rig.nack(first, "Error adding/updating listener(s) gateway/bank: cannot bind '127.0.0.1:8080'")
    rest = rig.one()
    assert sorted(names(rest)) == sorted(set(names(first)) - {"gateway/bank"})
    rig.ack(rest)
    (rejection,) = rig.stream.rejections()
    assert (rejection.app, rejection.subject, rejection.type) == ("bank", "gateway", "LDS")
    assert "cannot bind" in rejection.message
    assert rig.poll() == []
    wake = rig.stream.wake_at(rig.now)
    assert wake == 1.0
    rig.now = wake
    again = rig.one()
    assert names(again) == ["gateway/bank"]
    rig.nack(again, "no")
    assert rig.stream.wake_at(rig.now) == rig.now + 2.0, "the wait grows"
    rig.mesh.apply([bank("risk", port=9090)])
    changed = rig.one()
    assert names(changed) == ["gateway/bank"], "a change is offered at once"
    rig.ack(changed)
    assert rig.stream.rejections() == []


def test_unnamed_culprit_is_found_by_halving() -> None:
    rig = Rig()
    rig.mesh.apply([r for i in range(6) for r in running("web", f"w{i}")])
    rig.ask(Type.LDS)
    bad = "inbound/bank/default/web/w3"
    pending, accepted = rig.poll(), set()
    for _ in range(40):
        for response in pending:
            if bad in names(response):
                rig.nack(response, "something is wrong")
            else:
                accepted |= set(names(response))
                rig.ack(response)
        pending = rig.poll()
    assert [r.name for r in rig.stream.rejections()] == [bad]
    assert accepted == rig.mesh.names(NodeProxy("n1"), Type.LDS) - {bad}


def test_returning_client_gets_the_difference() -> None:
    rig = Rig()
    rig.mesh.apply(running("web", "w1"))
    rig.ask(Type.LDS)
    have = {name: made.version for name, made in rig.one().resources}
    rig.stream.close()
    rig.mesh.apply([bank("risk", port=9090)])
    rig.stream = DeltaStream(NodeProxy("n1"), rig.mesh, rig.interest)
    rig.ask(Type.LDS, initial={**have, "gateway/gone": "1"})
    response = rig.one()
    assert names(response) == ["gateway/bank"]
    assert response.removed == ("gateway/gone",)


def test_collection_sends_one_endpoint_for_one_change() -> None:
    rig = Rig(leds_threshold=2)
    rig.mesh.apply(running("web", "w1"))
    rig.mesh.apply([r for i in range(4) for r in running("risk", f"r{i}")])
    glob = leds_collection("d.internal", Service("bank", "default", "risk"))
    rig.ask(Type.LEDS, glob)
    first = rig.one()
    assert len(first.resources) == 4
    rig.ack(first)
    rig.mesh.apply(running("risk", "r9"))
    added = rig.one()
    assert [name.rpartition("/")[2] for name in names(added)] == ["r9"]
    rig.ack(added)
    rig.mesh.apply(running("risk", "r0", Phase.UNREADY))
    gone = rig.one()
    assert gone.resources == ()
    assert [name.rpartition("/")[2] for name in gone.removed] == ["r0"]
    rig.ack(gone)
    rig.stream.close()
    rig.stream = DeltaStream(NodeProxy("n1"), rig.mesh, rig.interest)
    have = {name: made.version for name, made in (*first.resources, *added.resources)}
    del have[names(first)[1]]
    rig.ask(Type.LEDS, glob, initial=have)
    back = rig.one()
    assert names(back) == [names(first)[1]]
    assert back.removed == (names(first)[0],), "r0 went while the client was away"


def test_repair_sends_again_what_differs() -> None:
    rig = Rig()
    rig.ask(Type.LDS)
    rig.ack(rig.one())
    expected = rig.mesh.digests("n1")
    reported = {
        **{k: v for k, v in expected.items() if not k.startswith("LDS/gateway")},
        "LDS/forged": "1",
    }
    repaired = queries.repair([rig.stream], rig.mesh, "n1", reported)
    assert "LDS/gateway/bank" in repaired
    assert "LDS/forged" in repaired
    response = rig.one()
    assert names(response) == ["gateway/bank"]
    assert response.removed == ("forged",)
    assert queries.repair([rig.stream], rig.mesh, "n2", reported) == []


def test_closed_stream_hears_nothing() -> None:
    rig = Rig()
    rig.mesh.apply(running("web", "w1"))
    rig.ask(Type.EDS, EDS)
    rig.ack(rig.one())
    rig.stream.close()
    changes = rig.mesh.apply(running("risk", "r1"))
    assert not any(rig.interest.of(key) for key in changes.keys)


def test_what_an_old_revision_uses_stays_while_it_runs() -> None:
    rig = Rig()
    old = WorkloadSpec(command=("x",), uses=("risk",))
    new = WorkloadSpec(command=("x",))
    revisions = [
        Revision(app="bank", workload="web", name=name, spec=spec)
        for name, spec in (("r", old), ("r2", new))
    ]
    rig.mesh.apply([*revisions, *running("web", "w1"), bank()])
    view = rig.mesh.names(NodeProxy("n1"), Type.CDS)
    assert "to/bank/default/web/risk" in view
    instance, status = running("web", "w2")
    assert isinstance(status, InstanceStatus)
    rig.mesh.apply([instance, status.model_copy(update={"revision": "r2"})])
    assert "to/bank/default/web/risk" in view
    rig.mesh.apply([], ["status/instances/bank/default/web/w1"])
    assert "to/bank/default/web/risk" not in view


def test_a_repeated_version_that_is_rejected_is_offered_again() -> None:
    """Endpoints are sent again for a new cluster; a rejection of that must not stay for ever."""
    rig = Rig()
    web = "bank/default/web"
    rig.mesh.apply(running("web", "w1"))
    rig.ask(Type.EDS, web)
    rig.ack(rig.one())
    rig.ask(Type.CDS)
    responses = {response.kind: response for response in rig.poll()}
    rig.ack(responses[Type.CDS])
    again = responses[Type.EDS]
    assert names(again) == [web], "a new cluster shares these endpoints"
    rig.nack(again, f"{web}: no")
    assert [rejection.name for rejection in rig.stream.rejections()] == [web]
    assert web not in [name for response in rig.poll() for name in names(response)], "not at once"
    rig.now += 31.0
    for response in rig.poll():
        rig.ack(response)
    assert rig.stream.rejections() == []


def test_a_grpc_client_inside_a_namespace_gets_the_addresses_of_endpoints() -> None:
    """They come and go with the endpoints, and with the declaration."""
    mesh = Mesh("d.internal", control=Address(host="127.0.0.1", port=9))
    spec = bank("risk").spec
    grpc = spec.workloads["risk"].model_copy(update={"protocol": "grpc"})
    spec = spec.model_copy(update={"workloads": {**spec.workloads, "risk": grpc}})
    mesh.apply([Node(name="n1", address="127.0.0.1"), Presence(node="n1")])
    mesh.apply([App(name="bank", spec=spec)])
    instance, status = running("web", "w1")
    assert isinstance(status, InstanceStatus)
    inside = Address(host="127.0.0.1", port=8080, netns="/run/ns/w1")
    plumbing = Plumbing(app=inside, inbound=inside, outbound=inside)
    mesh.apply([instance, status.model_copy(update={"plumbing": plumbing})])

    def direct() -> set[str]:
        return {n for n in mesh.names(NodeProxy("n1"), Type.LDS) if n.startswith("direct/")}

    assert "control/bank/default/web/w1" in mesh.names(NodeProxy("n1"), Type.LDS)
    assert direct() == set()
    mesh.apply([*running("risk", "r2"), *running("risk", "r3")])
    name = "direct/bank/default/web/w1/risk"
    assert direct() == {f"{name}/r2", f"{name}/r3"}
    made = mesh.get(Key(Flavour.ENVOY, Type.LDS, f"{name}/r2"))
    assert made is not None
    assert b"/run/ns/w1" in made.data
    mesh.apply(running("risk", "r2", Phase.UNREADY))
    assert direct() == {f"{name}/r3"}
    mesh.apply([bank()])
    assert direct() == set()


def test_a_route_stays_with_its_old_target_until_the_new_one_has_an_endpoint() -> None:
    """A workload that takes another's place must leave no request without an endpoint."""
    mesh = Mesh("d.internal")
    mesh.apply([Node(name="n1", address="127.0.0.1"), Presence(node="n1"), bank()])
    mesh.apply(running("web", "w1"))
    routes = Key(Flavour.ENVOY, Type.RDS, "gateway/bank")

    def target() -> str:
        made = mesh.get(routes)
        assert made is not None
        (found,) = {n for n in ("web", "shop") if f"/{n}".encode() in made.data}
        return found

    assert target() == "web"
    gateway = Gateway(port=8080, routes=(Route(to="shop"),))
    workloads = {"shop": WorkloadSpec(command=("x",)), "risk": WorkloadSpec(command=("x",))}
    mesh.apply([App(name="bank", spec=AppSpec(app="bank", gateway=gateway, workloads=workloads))])
    assert target() == "web"
    names_of = mesh.names(NodeProxy("n1"), Type.CDS)
    assert {"to/bank/default/gateway/web", "to/bank/default/gateway/shop"} <= names_of
    mesh.apply(running("shop", "s2"))
    assert target() == "shop"
    assert "to/bank/default/gateway/web" not in mesh.names(NodeProxy("n1"), Type.CDS)


def test_endpoints_that_are_none_any_more_wait_for_the_routes_that_leave_them() -> None:
    rig = Rig()
    rig.mesh.apply([NODE_WITH_CALLS, *running("web", "w1"), *running("risk", "r2")])
    for kind, asked in ((Type.CDS, ()), (Type.LDS, ()), (Type.RDS, ("gateway/bank",))):
        rig.ask(kind, *asked)
    rig.ask(Type.EDS, "bank/default/web", EDS)
    while responses := rig.poll():
        for response in responses:
            rig.ack(response)
    gateway = Gateway(port=8080, routes=(Route(to="risk"),))
    spec = bank("risk").spec.model_copy(update={"gateway": gateway})
    rig.mesh.apply([App(name="bank", spec=spec)])
    rig.mesh.apply(running("web", "w1", Phase.UNREADY))
    order: list[str] = []
    while responses := rig.poll():
        for response in responses:
            order += [*names(response), *response.removed]
            rig.ack(response)
    assert order.index("gateway/bank") < order.index("bank/default/web"), order
