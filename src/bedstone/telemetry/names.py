"""Names of the metrics that Bedstone itself makes, their kinds, units and labels.

Names follow Prometheus's rules (base unit last, `_total` for counters). A histogram `NAME` is the
series `NAME_bucket` (cumulative, label `le`), `NAME_sum` and `NAME_count`.

Rule: every series of an instance carries `SCOPE`; a metric that an application exports itself keeps
its own name and labels, and gets `SCOPE` too, from its proxy and never from its own word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedstone.telemetry.frames import Series

SCOPE = ("app", "cell", "workload", "revision", "instance", "node")
"""Labels that say whose a series is."""
EDGE = ("app", "cell", "caller", "callee", "node")

NO_ANSWER = "none"
"""The `code` of a request that got no answer, because its caller went away before."""
CODES = ("1xx", "2xx", "3xx", "4xx", "5xx", NO_ANSWER)
"""Values of the label `code`."""
ERROR_KINDS = (
    "answer",  # the program answered 5xx
    "timeout",
    "connect",  # no connection could be made
    "reset",  # the connection broke under the request
    "overflow",  # a circuit breaker or a pool was full
    "unavailable",  # no healthy endpoint
    "denied",  # a policy refused
    "cancelled",  # the caller went away
)
"""Values of the label `kind`."""

BUCKETS = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 22, 30, 40, 55, 75, 100, 150, 200, 300, 400, 600),
    *(800, 1_000, 1_500, 2_000, 3_000, 5_000, 10_000, 30_000, 60_000),
)
"""Upper bounds of the buckets of request durations, in milliseconds, as proxies count them."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of Bedstone's own."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    help: str

    def series(self, source: str, **labels: str) -> Series:
        """One series of this counter or gauge (of a histogram: the labels of its parts).

        Args:
            source: what counts it.
            labels: exactly those of the metric.
        """
        pairs = tuple((name, labels[name]) for name in sorted(self.labels))
        if len(pairs) != len(labels):
            raise KeyError(*(labels.keys() - set(self.labels)))
        return Series(self.name, pairs, "gauge" if self.kind == "gauge" else "counter", source)


REQUESTS = Metric(
    "bedstone_requests_total",
    "counter",
    "requests",
    (*SCOPE, "code"),
    "Requests that an instance's proxy has answered, by class of status.",
)
REQUEST_ERRORS = Metric(
    "bedstone_request_errors_total",
    "counter",
    "requests",
    (*SCOPE, "kind"),
    "Requests to an instance that failed, by kind.",
)
REQUEST_SECONDS = Metric(
    "bedstone_request_seconds",
    "histogram",
    "seconds",
    SCOPE,
    "How long requests to an instance took, at its proxy.",
)
REQUESTS_ACTIVE = Metric(
    "bedstone_requests_active",
    "gauge",
    "requests",
    SCOPE,
    "Requests to an instance that are being served.",
)
GATEWAY_REQUESTS = Metric(
    "bedstone_gateway_requests_total",
    "counter",
    "requests",
    ("app", "node", "code"),
    "Requests from outside that a gateway has answered.",
)
GATEWAY_SECONDS = Metric(
    "bedstone_gateway_request_seconds",
    "histogram",
    "seconds",
    ("app", "node"),
    "How long requests from outside took, at the gateway.",
)
ROUTE_REQUESTS = Metric(
    "bedstone_route_requests_total",
    "counter",
    "requests",
    ("app", "route", "to", "node", "code"),
    "Requests that a route of the gateway has sent on; `route` is its host and path.",
)
ROUTE_SECONDS = Metric(
    "bedstone_route_request_seconds",
    "histogram",
    "seconds",
    ("app", "route", "to", "node"),
    "How long requests of a route took, at the gateway.",
)
EDGE_REQUESTS = Metric(
    "bedstone_edge_requests_total",
    "counter",
    "requests",
    (*EDGE, "code"),
    "Requests from one workload (or `gateway`, `operator`) to another, at the caller's proxy.",
)
EDGE_ERRORS = Metric(
    "bedstone_edge_errors_total",
    "counter",
    "requests",
    (*EDGE, "kind"),
    "Requests from one workload to another that failed, by kind.",
)
EDGE_RETRIES = Metric(
    "bedstone_edge_retries_total",
    "counter",
    "requests",
    EDGE,
    "Requests from one workload to another that were sent again.",
)
EDGE_SECONDS = Metric(
    "bedstone_edge_request_seconds",
    "histogram",
    "seconds",
    EDGE,
    "How long requests from one workload to another took, at the caller's proxy.",
)
INSTANCE_UP = Metric(
    "bedstone_instance_up", "gauge", "", SCOPE, "1 while the instance is ready, else 0."
)
INSTANCE_CPU = Metric(
    "bedstone_instance_cpu_seconds_total",
    "counter",
    "seconds",
    SCOPE,
    "Processor time of an instance, all of its processes.",
)
INSTANCE_MEMORY = Metric(
    "bedstone_instance_memory_bytes",
    "gauge",
    "bytes",
    SCOPE,
    "Resident memory of an instance, all of its processes.",
)
INSTANCE_RESTARTS = Metric(
    "bedstone_instance_restarts_total",
    "counter",
    "restarts",
    SCOPE,
    "How often an instance was started again.",
)
ENGINE_CPU = Metric(
    "bedstone_engine_cpu_seconds_total",
    "counter",
    "seconds",
    ("engine", "node"),
    "Processor time of an engine (`envoy`, `postgres-…`, `server`, `node`), all of its processes.",
)
ENGINE_MEMORY = Metric(
    "bedstone_engine_memory_bytes",
    "gauge",
    "bytes",
    ("engine", "node"),
    "Resident memory of an engine, all of its processes.",
)
ENGINE_RESTARTS = Metric(
    "bedstone_engine_restarts_total",
    "counter",
    "restarts",
    ("engine", "node"),
    "How often an engine was started again.",
)
NODE_CPU = Metric(
    "bedstone_node_cpu_seconds_total",
    "counter",
    "seconds",
    ("node", "mode"),
    "Processor time of the machine, by mode (`user`, `system`, `iowait`, `idle`).",
)
NODE_CORES = Metric(
    "bedstone_node_cores", "gauge", "cores", ("node",), "Processors of the machine."
)
NODE_MEMORY = Metric(
    "bedstone_node_memory_bytes",
    "gauge",
    "bytes",
    ("node", "state"),
    "Memory of the machine, by state (`total`, `available`).",
)
NODE_DISK = Metric(
    "bedstone_node_disk_bytes",
    "gauge",
    "bytes",
    ("node", "state"),
    "Disk of the node's state, by state (`total`, `available`).",
)
DATABASE_CONNECTIONS = Metric(
    "bedstone_database_connections",
    "gauge",
    "connections",
    ("app", "cell", "database", "workload", "state", "node"),
    "Connections to a database by workload and state (`active`, `idle`, `idle in transaction`).",
)
DATABASE_TRANSACTIONS = Metric(
    "bedstone_database_transactions_total",
    "counter",
    "transactions",
    ("app", "cell", "database", "outcome", "node"),
    "Local transactions that a database has ended (`commit`, `rollback`).",
)
DATABASE_BYTES = Metric(
    "bedstone_database_size_bytes",
    "gauge",
    "bytes",
    ("app", "cell", "database", "node"),
    "Size of a database on disk.",
)
TRANSACTIONS = Metric(
    "bedstone_transactions_total",
    "counter",
    "transactions",
    ("app", "event"),
    "Distributed transactions, by event: `begun`, `committed`, `cancelled`; counted by their log.",
)
TRANSACTIONS_OPEN = Metric(
    "bedstone_transactions_open",
    "gauge",
    "transactions",
    ("app", "state"),
    "Distributed transactions that have not ended, by state.",
)
TRANSACTIONS_STUCK = Metric(
    "bedstone_transactions_stuck",
    "gauge",
    "transactions",
    ("app",),
    "Distributed transactions that wait for a person.",
)
MONITORING_SERIES = Metric(
    "bedstone_monitoring_series", "gauge", "series", (), "Series that the monitoring holds."
)
MONITORING_DISK = Metric(
    "bedstone_monitoring_disk_bytes", "gauge", "bytes", (), "Size of the series' file."
)
MONITORING_UNWRITTEN = Metric(
    "bedstone_monitoring_unwritten_seconds",
    "gauge",
    "seconds",
    (),
    "Finished seconds that are not on disk; about 10, unless the disk refuses.",
)
MONITORING_DROPPED = Metric(
    "bedstone_monitoring_dropped_series_total",
    "counter",
    "series",
    ("reason",),
    "Series that were refused, by reason: `series` (the cap on their number), `share` (of an app's"
    " own), `duplicate`, `kind`.",
)
MONITORING_DROPPED_SPANS = Metric(
    "bedstone_monitoring_dropped_spans_total",
    "counter",
    "spans",
    ("reason",),
    "Spans that were dropped, by reason: `room` (too many waited, on a node or at the server), "
    "`trace` (their trace had too many), `export` (a system that traces are sent to).",
)
MONITORING_SECONDS = Metric(
    "bedstone_monitoring_seconds_total",
    "counter",
    "seconds",
    ("state",),
    "Seconds collected, by state (`complete`, `incomplete`).",
)
REMOTE_WRITE_SAMPLES = Metric(
    "bedstone_remote_write_samples_total",
    "counter",
    "samples",
    ("target", "state"),
    "Samples for a remote-write target, by state (`sent`, `dropped`).",
)
REMOTE_WRITE_BEHIND = Metric(
    "bedstone_remote_write_behind_seconds",
    "gauge",
    "seconds",
    ("target",),
    "How many finished seconds a remote-write target has not acknowledged.",
)

CATALOGUE: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
"""Every metric of Bedstone's own."""
