"""What an app's status says, and when it may say ready."""

from collections.abc import Sequence

from bedstone.cli.ps import isolations
from bedstone.control.overview import app_status
from bedstone.control.scheduling import revision_name
from bedstone.control.snapshot import Snapshot
from bedstone.model.api import AppStatus
from bedstone.model.resources import (
    App,
    Condition,
    Database,
    DatabaseStatus,
    Desired,
    Instance,
    InstanceStatus,
    Node,
    Phase,
    Presence,
    Resource,
)
from bedstone.model.spec import AppSpec
from bedstone.store import Entry, Event

APP = App(
    name="shop",
    spec=AppSpec.model_validate(
        {
            "app": "shop",
            "gateway": {"port": 8080, "routes": [{"path": "/", "to": "web"}]},
            "workloads": {"web": {"command": ["web"]}},
            "databases": {"db": {}},
        }
    ),
)
REVISION = revision_name(APP, "web")
INSTANCE = Instance(
    app="shop", workload="web", name=f"web-{REVISION}-0", revision=REVISION, node="n"
)
STATUS = InstanceStatus(
    app="shop",
    workload="web",
    name=INSTANCE.name,
    node="n",
    revision=REVISION,
    phase=Phase.READY,
    certificate_until=2e9,
    enforced=True,
)
READY: tuple[Resource, ...] = (
    APP,
    INSTANCE,
    STATUS,
    Node(name="n", address="127.0.0.1", proxy=Phase.READY, enforced=True),
    Presence(node="n"),
    Database(app="shop", name="db", node="n"),
    DatabaseStatus(app="shop", name="db", node="n", phase=Phase.READY),
)


def status(
    *resources: Resource, programmed: bool = True, heard: Sequence[str] = ("n",)
) -> AppStatus:
    snapshot = Snapshot()
    for number, resource in enumerate((*READY, *resources), 1):
        entry = Entry(resource.key, resource.encode(), number, number)
        snapshot.apply([Event(resource.key, number, entry)])
    return app_status(snapshot, APP, programmed=programmed, heard=heard)


def test_ready_when_every_part_is() -> None:
    found = status()
    assert found.ready
    assert found.waiting_for == ()
    assert found.enforced
    assert found.gateway == "http://localhost:8080"


def test_an_instance_without_a_user_of_its_own_is_told_with_the_reason() -> None:
    limits = ["memory: 1 GiB", "user: runs as root, since /root is not open to others"]
    found = status(STATUS.model_copy(update={"limits": limits}))
    shared = {part.kind: part.shared_user for part in found.parts}
    assert shared["instance"] == "as root, since /root is not open to others"
    assert {part.shared_user for part in status().parts} == {""}


def test_a_cold_start_is_told_with_the_reason() -> None:
    limits = ["own network namespace", "cold start: after its import, grpc has 2 thread(s)"]
    found = status(STATUS.model_copy(update={"limits": limits}))
    cold = {part.kind: part.cold_start for part in found.parts}
    assert cold["instance"] == "after its import, grpc has 2 thread(s)"
    assert {part.cold_start for part in status().parts} == {""}


def test_a_box_is_told_with_what_it_has_not() -> None:
    limits = ["isolation: gvisor", "box: cpu limit not applied", "user: 64000 of the box"]
    found = status(STATUS.model_copy(update={"limits": limits, "isolation": "gvisor"}))
    part = next(part for part in found.parts if part.kind == "instance")
    assert (part.isolation, part.unapplied) == ("gvisor", ("cpu limit not applied",))
    assert isolations(found) == ["isolation gvisor: web", "web: cpu limit not applied"]
    assert isolations(status(STATUS)) == [], "of processes that have it all nothing is said"


def test_what_a_process_is_not_kept_from_is_told() -> None:
    limits = ["system calls filtered", "not confined: it writes wherever its user may: old kernel"]
    found = status(STATUS.model_copy(update={"limits": limits}))
    assert isolations(found) == ["web: it writes wherever its user may: old kernel"]


def test_an_app_is_enforced_only_if_each_of_its_instances_is() -> None:
    """One that runs as root could take the credentials of all."""
    other = INSTANCE.model_copy(update={"name": f"web-{REVISION}-1"})
    loose = STATUS.model_copy(update={"name": other.name, "enforced": False})
    found = status(other, loose)
    assert not found.enforced
    told = {part.name: part.enforced for part in found.parts if part.kind == "instance"}
    assert told == {INSTANCE.name: True, other.name: False}


def test_nothing_is_claimed_of_an_instance_that_has_not_been_started() -> None:
    assert not status(INSTANCE.model_copy(update={"name": f"web-{REVISION}-1"})).enforced


def test_an_app_is_not_enforced_where_one_of_its_nodes_is_not() -> None:
    other = Node(name="m", address="127.0.0.2", proxy=Phase.READY, enforced=False)
    assert not status(other, Presence(node="m"), heard=("n", "m")).enforced


def test_what_the_store_remembers_of_a_silent_node_is_not_called_ready() -> None:
    """After everything was killed, the store still holds the statuses of the run before."""
    found = status(heard=())
    assert not found.ready
    assert {part.state for part in found.parts} == {Phase.PENDING}
    assert found.waiting_for[0] == "node n, not heard from yet"


def test_a_route_needs_its_proxy_and_a_ready_instance() -> None:
    waiting = status(programmed=False)
    assert waiting.waiting_for == ("route / → web",)
    unready = status(STATUS.model_copy(update={"phase": Phase.UNREADY, "reason": "probe failed"}))
    route = unready.parts[-1]
    assert (route.state, route.detail) == (Phase.PENDING, "web has no ready instance")
    assert not unready.ready


def test_a_rejected_gateway_is_shown_at_its_routes() -> None:
    condition = Condition(app="shop", subject="gateway", message="another program has its port")
    found = status(condition)
    assert found.parts[-1].state == Phase.FAILED
    assert found.parts[-1].detail == "another program has its port"
    assert found.conditions == (condition,)


def test_an_old_revision_that_makes_way_keeps_the_app_from_being_ready() -> None:
    old = INSTANCE.model_copy(
        update={"name": "web-old-0", "revision": "old", "desired": Desired.DRAINED}
    )
    old_status = STATUS.model_copy(update={"name": "web-old-0", "revision": "old"})
    found = status(old, old_status)
    part = next(part for part in found.parts if part.name == "web-old-0")
    assert (part.state, part.current) == (Phase.DRAINING, False)
    assert found.waiting_for == ("instance web-old-0",)


def test_what_has_no_record_yet_is_waited_for() -> None:
    snapshot = Snapshot()
    snapshot.apply([Event(APP.key, 1, Entry(APP.key, APP.encode(), 1, 1))])
    found = app_status(snapshot, APP, programmed=False, heard=())
    assert "workload web, not yet placed on a node" in found.waiting_for
    assert "database db, not yet placed on a node" in found.waiting_for


def test_a_node_that_is_silent_for_a_while_still_enforces_identities() -> None:
    snapshot = Snapshot()
    for number, resource in enumerate(READY, 1):
        entry = Entry(resource.key, resource.encode(), number, number)
        snapshot.apply([Event(resource.key, number, entry)])
    snapshot.apply([Event("presence/n", 99, None)])
    found = app_status(snapshot, APP, programmed=True, heard=("n",))
    assert not found.ready
    assert found.enforced


def test_an_external_database_is_ready_once_its_node_says_so() -> None:
    url = "postgresql://shop:topsecret@db.example:5433/shop"
    database = Database(app="shop", name="db", node="n", url=url)
    reason = "cannot connect to db.example:5433: Connection refused"
    away = DatabaseStatus(app="shop", name="db", node="n", phase=Phase.PENDING, reason=reason)
    there = DatabaseStatus(app="shop", name="db", node="n", phase=Phase.READY)

    for told, ready, detail in (
        (away, False, reason),
        (there, True, "external, at db.example:5433"),
    ):
        seen = status(database, told)
        (part,) = [part for part in seen.parts if part.kind == "engine"]
        assert seen.ready is ready
        assert part.detail == detail
