"""The scheduler against a simulated node: whatever happens, it converges and never drops below."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.control import scheduling
from bedstone.control.snapshot import Snapshot
from bedstone.model.resources import (
    App,
    Database,
    Desired,
    Instance,
    InstanceStatus,
    Node,
    Phase,
    Presence,
    Resource,
)
from bedstone.model.spec import AppSpec, DatabaseSpec, WorkloadSpec
from bedstone.store import Delete, Entry, Event, Operation, Put


class World:
    """A store, and a node that does one thing at a time when told to."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.revision = 0
        self.broken: set[str] = set()
        for node in ("a", "b"):
            self.write(Node(name=node, address="127.0.0.1"), Presence(node=node))

    def write(self, *resources: Resource) -> None:
        self.commit([Put(resource.key, resource.encode()) for resource in resources])

    def commit(self, operations: Sequence[Operation]) -> None:
        self.revision += 1
        events = []
        for operation in operations:
            match operation:
                case Put(key, value, expected):
                    assert expected in {-1, self.snapshot.revision_of(key)}
                    entry = Entry(key, value, self.revision, self.revision)
                    events.append(Event(key, self.revision, entry))
                case Delete(key):
                    events.append(Event(key, self.revision, None))
        self.snapshot.apply(events)

    def declare(self, replicas: int, source: str, *, deleting: bool = False) -> None:
        spec = AppSpec(
            app="shop", workloads={"web": WorkloadSpec(command=("web",), replicas=replicas)}
        )
        self.write(App(name="shop", spec=spec, sources={"web": source}, deleting=deleting))

    def plan(self) -> bool:
        operations = scheduling.plan(self.snapshot, "shop")
        if operations:
            self.commit(operations)
        return bool(operations)

    def instances(self) -> Sequence[Instance]:
        return self.snapshot.of(Instance, "shop")

    def ready(self) -> int:
        return sum(self.snapshot.ready(instance) for instance in self.instances())

    def act(self, choice: int) -> bool:
        """Let one instance make its next step; False if none has one."""
        pending = [step for instance in self.instances() if (step := self.step(instance))]
        if pending:
            self.write(*pending[choice % len(pending)])
        return bool(pending)

    def step(self, instance: Instance) -> list[Resource]:
        status = self.snapshot.status(instance)
        phase = status.phase if status else None
        after = {None: Phase.STARTING, Phase.STARTING: Phase.READY}.get(phase)
        if instance.revision in self.broken and after is Phase.READY:
            after = None
        if instance.desired is Desired.DRAINED:
            if not instance.released:
                return [instance.model_copy(update={"released": True})]
            after = None if phase is Phase.STOPPED else Phase.STOPPED
        if after is None or not self.snapshot.present(instance.node):
            return []
        return [
            InstanceStatus(
                app="shop",
                workload="web",
                name=instance.name,
                node=instance.node,
                revision=instance.revision,
                phase=after,
            )
        ]

    def settle(self) -> None:
        for _ in range(500):
            if not self.plan() and not self.act(0):
                return
        raise AssertionError("does not converge")


@settings(deadline=None, max_examples=60)
@given(
    versions=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["one", "two", "three"])),
        min_size=1,
        max_size=4,
    ),
    choices=st.lists(st.integers(0, 10), max_size=40),
)
def test_whatever_the_order_of_events_it_converges(
    versions: list[tuple[int, str]], choices: list[int]
) -> None:
    world = World()
    steps = iter(choices)
    for replicas, source in versions:
        world.declare(replicas, source)
        for choice in [c for c, _ in zip(steps, range(10), strict=False)]:
            if choice % 2:
                world.plan()
            else:
                world.act(choice)
    world.settle()
    replicas, source = versions[-1]
    app = world.snapshot.apps()["shop"]
    assert [i.revision for i in world.instances()] == [
        scheduling.revision_name(app, "web")
    ] * replicas
    assert world.ready() == replicas
    assert app.sources["web"] == source


@settings(deadline=None, max_examples=60)
@given(replicas=st.integers(1, 9), choices=st.lists(st.integers(0, 10), max_size=80))
def test_a_rollout_never_leaves_fewer_ready_than_were_asked_for(
    replicas: int, choices: list[int]
) -> None:
    world = World()
    world.declare(replicas, "one")
    world.settle()
    world.declare(replicas, "two")
    for choice in choices:
        world.plan()
        assert world.ready() >= replicas
        world.act(choice)
        assert world.ready() >= replicas
    world.settle()
    assert world.ready() == replicas


def test_a_revision_that_never_becomes_ready_replaces_nothing() -> None:
    world = World()
    world.declare(3, "good")
    world.settle()
    good = {instance.name for instance in world.instances()}
    world.declare(3, "bad")
    world.broken.add(scheduling.revision_name(world.snapshot.apps()["shop"], "web"))
    world.settle()
    assert world.ready() == 3
    assert good <= {i.name for i in world.instances() if i.desired is Desired.RUNNING}
    world.declare(3, "good")
    world.settle()
    assert {instance.name for instance in world.instances()} == good


def test_deleting_an_app_leaves_nothing() -> None:
    world = World()
    world.declare(3, "one")
    world.settle()
    world.declare(3, "one", deleting=True)
    world.settle()
    assert {key for key in world.snapshot.all_keys() if "shop" in key} == set()


def test_instances_spread_over_the_nodes() -> None:
    world = World()
    world.declare(4, "one")
    world.settle()
    assert sorted(instance.node for instance in world.instances()) == ["a", "a", "b", "b"]


def test_instances_of_a_lost_node_are_replaced_on_another() -> None:
    world = World()
    world.declare(2, "one")
    world.settle()
    world.commit([Delete("presence/b")])
    world.settle()
    running = [i for i in world.instances() if i.desired is Desired.RUNNING]
    assert [instance.node for instance in running] == ["a", "a"]
    assert world.ready() == 2


def test_after_a_failed_revision_the_copies_that_serve_are_kept() -> None:
    """A failed revision's copies must not be counted for those of the one before."""
    world = World()
    world.declare(2, "good")
    world.settle()
    good = {instance.name for instance in world.instances()}
    for source in ("bad", "worse"):
        world.declare(2, source)
        world.broken.add(scheduling.revision_name(world.snapshot.apps()["shop"], "web"))
        world.settle()
        assert world.ready() == 2
        assert good <= {i.name for i in world.instances() if i.desired is Desired.RUNNING}


def test_fewer_replicas_keep_the_copies_that_serve() -> None:
    """The lowest ordinals need not be the ones that are ready."""
    world = World()
    world.declare(2, "one")
    world.plan()
    while world.ready() == 0:
        world.act(1)  # the second one starts first
    world.declare(1, "one")
    world.plan()
    assert world.ready() == 1
    world.settle()
    assert [i.name.rpartition("-")[2] for i in world.instances()] == ["1"]


def test_fewer_replicas_in_the_middle_of_a_rollout_leave_one_that_serves() -> None:
    world = World()
    world.declare(2, "one")
    world.settle()
    world.declare(2, "two")
    world.plan()
    new = scheduling.revision_name(world.snapshot.apps()["shop"], "web")
    second = next(i for i in world.instances() if i.name == f"web-{new}-1")
    while not world.snapshot.ready(second):
        world.write(*world.step(second))
    world.declare(1, "two")
    while world.plan():
        assert world.ready() >= 1


def test_a_copy_that_leaves_keeps_its_database_until_it_has_gone() -> None:
    def declare(*uses: str) -> None:
        web = WorkloadSpec(command=("web",), uses=uses)
        spec = AppSpec(app="shop", workloads={"web": web}, databases={"ledger": DatabaseSpec()})
        world.write(App(name="shop", spec=spec))

    def users() -> list[str]:
        return [user for database in world.snapshot.of(Database, "shop") for user in database.users]

    world = World()
    declare("ledger")
    world.settle()
    old = world.instances()[0].name
    declare()
    while old in {instance.name for instance in world.instances()}:
        assert users() == ["web"]
        assert world.plan() or world.act(0)
    world.settle()
    assert users() == []
    assert world.ready() == 1
