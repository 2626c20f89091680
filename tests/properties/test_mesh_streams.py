"""Whatever happens in whatever order, a client of a delta stream ends up with exactly its view.

The client here is a model of the protocol: it acknowledges or rejects at will, late, and may come
back with what it has.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.control.mesh.delta import DeltaStream
from bedstone.control.mesh.mesh import Changes, Mesh
from bedstone.control.mesh.names import Key, Type
from bedstone.control.mesh.streams import Interest, Request, Response
from bedstone.control.mesh.views import NodeProxy
from bedstone.model.resources import (
    Address,
    App,
    Desired,
    Instance,
    InstanceStatus,
    Node,
    Phase,
    Plumbing,
    Presence,
    Resource,
)
from bedstone.model.spec import AppSpec, Gateway, Route, WorkloadSpec

WORKLOADS = ("web", "risk", "ledger")
PROXY = NodeProxy("n1")


@dataclass
class Client:
    """An Envoy: clusters and listeners by wildcard, the rest by the names it needs."""

    stream: DeltaStream
    interest: Interest
    have: dict[Type, dict[str, str]] = field(default_factory=lambda: {kind: {} for kind in Type})
    wanted: dict[Type, set[str]] = field(default_factory=lambda: {kind: set() for kind in Type})
    unanswered: list[Response] = field(default_factory=list)
    now: float = 0.0

    def begin(self) -> None:
        for kind in (Type.CDS, Type.LDS):
            self.stream.receive(Request(kind, initial=dict(self.have[kind])), self.now)
        for kind in (Type.EDS, Type.RDS):
            if self.wanted[kind]:
                names = tuple(sorted(self.wanted[kind]))
                request = Request(kind, subscribe=names, initial=dict(self.have[kind]))
                self.stream.receive(request, self.now)

    def pull(self) -> None:
        self.unanswered += self.stream.poll(self.now)

    def accept(self) -> None:
        response = self.unanswered.pop(0)
        have = self.have[response.kind]
        by_name = response.kind in (Type.EDS, Type.RDS)
        for name, encoded in response.resources:
            # An answer that was under way when the client let go of the name; Envoy drops it.
            if not by_name or name in self.wanted[response.kind]:
                have[name] = encoded.version
        for name in response.removed:
            have.pop(name, None)
        self._follow()
        self.stream.receive(Request(response.kind, nonce=response.nonce), self.now)

    def reject(self, *, say_which: bool) -> None:
        response = self.unanswered.pop(0)
        names = [name for name, _ in response.resources]
        culprit = names[len(names) // 2] if names else ""
        message = f"Error adding/updating {culprit}: no" if say_which else "no"
        request = Request(response.kind, nonce=response.nonce, error=message)
        self.stream.receive(request, self.now)

    def _follow(self) -> None:
        """Subscribe to what clusters and listeners refer to, as Envoy does."""
        clusters = self.have[Type.CDS]
        endpoints = {
            "/".join((*name.split("/")[1:3], name.split("/")[4]))
            for name in clusters
            if name.startswith("to/")
        }
        routes = set()
        for name in self.have[Type.LDS]:
            kind, _, path = name.partition("/")
            match kind:
                case "outbound":
                    routes.add(f"outbound/{path.rpartition('/')[0]}")
                case "connect":
                    routes.add(f"outbound/{path}")
                case "inbound" | "gateway":
                    routes.add(name)
                case _:
                    pass
        for type_, names in ((Type.EDS, endpoints), (Type.RDS, routes)):
            new, old = names - self.wanted[type_], self.wanted[type_] - names
            self.wanted[type_] = names
            for name in old:
                self.have[type_].pop(name, None)
            if new or old:
                request = Request(
                    type_, subscribe=tuple(sorted(new)), unsubscribe=tuple(sorted(old))
                )
                self.stream.receive(request, self.now)


def app(uses: dict[str, set[str]], *, gateway: bool) -> App:
    spec = AppSpec(
        app="bank",
        gateway=Gateway(routes=(Route(to="web"),)) if gateway else None,
        workloads={
            name: WorkloadSpec(command=("x",), uses=tuple(sorted(targets)))
            for name, targets in uses.items()
        },
    )
    return App(name="bank", spec=spec)


def instance(workload: str, number: int, desired: Desired) -> Instance:
    return Instance(
        app="bank",
        workload=workload,
        name=str(number),
        revision="r",
        node="n1" if number % 2 else "n2",
        desired=desired,
    )


def status(workload: str, number: int, phase: Phase, port: int) -> InstanceStatus:
    def at(offset: int) -> Address:
        return Address(host="127.0.0.1", port=port + offset)

    return InstanceStatus(
        app="bank",
        workload=workload,
        name=str(number),
        node="n1" if number % 2 else "n2",
        revision="r",
        phase=phase,
        plumbing=Plumbing(app=at(0), inbound=at(1), outbound=at(2)),
    )


workloads = st.sampled_from(WORKLOADS)
numbers = st.integers(0, 3)
Step = tuple[list[Resource], list[str]]


def apps(uses: st.SearchStrategy[dict[str, set[str]]]) -> st.SearchStrategy[Step]:
    return st.builds(lambda u, gateway: ([app(u, gateway=gateway)], []), uses, st.booleans())


observed: st.SearchStrategy[Step] = st.one_of(
    st.builds(
        lambda w, n, d: ([instance(w, n, d)], []), workloads, numbers, st.sampled_from(Desired)
    ),
    st.builds(
        lambda w, n, p, port: ([status(w, n, p, port)], []),
        workloads,
        numbers,
        st.sampled_from([Phase.READY, Phase.READY, Phase.STARTING, Phase.STOPPED]),
        st.sampled_from([1000, 2000]),
    ),
    st.builds(lambda w, n: ([], [f"status/instances/bank/default/{w}/{n}"]), workloads, numbers),
    st.builds(lambda w, n: ([], [f"instances/bank/default/{w}/{n}"]), workloads, numbers),
    st.builds(lambda n: ([Presence(node=n)], []), st.sampled_from(["n1", "n2"])),
    st.builds(lambda n: ([], [f"presence/{n}"]), st.sampled_from(["n1", "n2"])),
    st.just(([], ["apps/bank"])),
)
changes = observed | apps(st.dictionaries(workloads, st.sets(workloads), min_size=1))
# a workload that left the manifest is served until its instances end, which only history tells
lasting = observed | apps(st.fixed_dictionaries({w: st.sets(workloads) for w in WORKLOADS}))
acts = st.sampled_from(["pull", "accept", "accept", "reject", "name", "back", "later"])
events = st.lists(st.booleans().flatmap(lambda act: acts if act else changes), max_size=40)


@given(events)
@settings(max_examples=300, deadline=None)
def test_client_ends_up_with_its_view(events: list[Step | str]) -> None:  # noqa: C901 - a table
    mesh = Mesh("d.internal")
    mesh.apply([Node(name="n1", address="127.0.0.1"), Presence(node="n1"), Presence(node="n2")])
    mesh.apply([app({"web": {"risk"}, "risk": set()}, gateway=True)])
    interest = Interest()
    client = Client(DeltaStream(PROXY, mesh, interest), interest)

    def changed(changes: Changes) -> None:
        # as the server does
        for key in changes.keys:
            for stream in interest.of(key):
                stream.mark(key.type, key.name)
        for kind, name in changes.views.get("n1", ()):
            client.stream.mark(kind, name)

    mesh.watch(changed)
    client.begin()
    for event in events:
        match event:
            case (upserts, deletes):
                mesh.apply(upserts, deletes)
            case "accept" if client.unanswered:
                client.accept()
            case "reject" | "name" if client.unanswered and client.unanswered[0].resources:
                client.reject(say_which=event == "name")
            case "later":
                client.now += 0.4
            case "back":
                client.stream.close()
                client.stream = DeltaStream(PROXY, mesh, interest)
                client.unanswered.clear()
                client.begin()
            case _:
                pass
        if event != "later":
            client.pull()
    for _ in range(60):
        client.now += 31.0  # every back-off and every wait has run out
        client.pull()
        while client.unanswered:
            client.accept()
    for kind in (Type.CDS, Type.LDS):
        assert client.have[kind] == truth(mesh, kind, mesh.names(PROXY, kind))
    for kind in (Type.EDS, Type.RDS):
        assert client.wanted[kind] <= mesh.names(PROXY, kind)
        assert client.have[kind] == truth(mesh, kind, client.wanted[kind])
    assert not client.stream.rejections()
    assert not any(client.stream.pending(kind) for kind in Type)
    assert client.stream.poll(client.now) == []


def truth(mesh: Mesh, kind: Type, names: object) -> dict[str, str]:
    assert isinstance(names, set | frozenset)
    found = {}
    for name in names:
        key = mesh.key(PROXY, kind, name)
        assert key is not None
        made = mesh.get(key)
        assert made is not None, f"{kind.name} {name} is in the view and cannot be made"
        found[name] = made.version
    return found


@given(st.lists(lasting, max_size=30))
@settings(max_examples=200, deadline=None)
def test_incremental_equals_from_scratch(batches: list[Step]) -> None:
    """A mesh that saw every change has what a mesh that sees only the outcome has."""
    step = Mesh("d.internal")
    latest: dict[str, Resource] = {}
    base = [Node(name="n1", address="127.0.0.1"), Node(name="n2", address="127.0.0.1")]
    step.apply(base)
    for upserts, deletes in batches:
        step.apply(upserts, deletes)
        latest |= {resource.key: resource for resource in upserts}
        for key in deletes:
            latest.pop(key, None)
        contents(step)  # so that it has something to forget
    once = Mesh("d.internal")
    once.apply([*base, *latest.values()])
    assert contents(step) == contents(once)


def contents(mesh: Mesh) -> dict[Key, str]:
    found = {}
    for node in ("n1", "n2"):
        for kind in Type:
            for name in mesh.names(NodeProxy(node), kind):
                key = mesh.key(NodeProxy(node), kind, name)
                assert key is not None
                made = mesh.get(key)
                assert made is not None, key
                found[key] = made.version
    return found
