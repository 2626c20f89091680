"""What a node is told of an app: what it needs, and no credential that it does not."""

from __future__ import annotations

from bedstone.control.assignment import assignment
from bedstone.control.snapshot import Snapshot
from bedstone.model.manifest import parse_manifest
from bedstone.model.resources import App, Instance
from bedstone.store import Entry, Event

TEXT = """\
app: shop
workloads: {web: {command: [x], env: {A: b}}}
monitoring:
  traces: {slow: 200ms}
  remote_write: [{url: "http://hush/", bearer: "${env.HUSH}"}]
  otlp: [{url: "http://hush/", headers: {a: hush}}]
alerts: {slow: {when: x > 5}}
receivers: {people: {webhook: "http://hush/", secret: "${env.HUSH}"}}
"""


def test_a_node_is_not_told_whom_the_server_tells() -> None:
    snapshot = Snapshot()
    app = App(name="shop", spec=parse_manifest(TEXT).spec)
    instance = Instance(app="shop", workload="web", name="web-0", revision="r", node="n")
    snapshot.apply(
        Event(one.key, number, Entry(one.key, one.encode(), number, number))
        for number, one in enumerate((app, instance), 1)
    )
    resources = assignment(snapshot, "n", ["shop"]).resources
    revision, told = resources["apps/shop"]
    assert revision == 1
    assert isinstance(told, App)
    assert "hush" not in told.encode().decode().lower()
    assert told.spec.workloads == app.spec.workloads
    assert told.spec.monitoring is not None
    assert told.spec.monitoring.traces.slow == 0.2
