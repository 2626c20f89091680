"""What the API gives of an app's health: seconds, golden signals, the graph, changes and taps.

Rates are per second; durations are seconds; shares are 0 to 1. None means "no value": nothing was
measured, which is not zero.

Paths (all under `/v1`, JSON unless said otherwise), beside those of `bedstone.model.api`:

| method and path | role | takes | gives |
|---|---|---|---|
| GET `/ticks` | reader | | NDJSON: `Tick` as each second ends |
| GET `/seconds?start&end` | reader | | `Seconds` |
| GET `/overview` | reader | | `Overview` |
| GET `/workloads?app&search` | reader | | `WorkloadList`, without the lists of each |
| GET `/apps/APP/workloads/W` | reader | | `WorkloadLine`, whole |
| POST `/apps/APP/workloads/W/scale` | operator | `ScaleRequest` | `ApplyResult` |
| POST `/apps/APP/workloads/W/rollback` | operator | `RollbackRequest` | `ApplyResult` |
| GET `/apps/APP/graph?at&window` | reader | | `Graph` |
| GET `/apps/APP/traffic` | reader | | `Traffic` |
| GET `/apps/APP/tap?workload&errors&share` | operator | | NDJSON: `TapRecord` |
| GET `/changes?app&before&limit` | reader | | `ChangeList` |
| POST `/apps/APP/undo` | operator | `UndoRequest` | `ApplyResult` |
| GET `/traces?app&service&name&errors&min&max&start&end&before&limit` | reader | | `TraceList` |
| GET `/traces/ID` | reader | | `TraceDetail` |
| PUT `/sampling` | operator | `SamplingRequest` | the same |
| GET `/apps/APP/lines?workload&trace&level&text&since&until&limit` | reader | | `LogPage` |
| GET `/alerts` | reader | | `AlertList` |
| GET `/alerts/history?app&rule&limit` | reader | | `AlertHistory` |
| GET `/alerts/test?rule&app` | reader | | `AlertTest` |
| GET `/silences` | reader | | `SilenceList` |
| POST `/silences` | operator | `SilenceRequest` | `Silence` |
| DELETE `/silences/ID` | operator | | `{"deleted": ID}` |
| POST `/console/links` | operator | `ConsoleLinkRequest` | `ConsoleLink` |
| POST `/console/login` (console only) | none | `ConsoleLogin` | `ConsoleSession`, and a cookie |
| POST `/console/logout` (console only) | reader | | `{"deleted": ID}` |
| GET `/console/session` | reader | | `ConsoleSession` |
| GET `/console/sessions` | operator | | list of `ConsoleSignIn` |
| DELETE `/console/sessions/ID` | operator | | `{"deleted": ID}` |
| any `/prometheus/api/v1/…` (no `/v1` before it) | reader | | as Prometheus's HTTP API |
| GET `/metrics` (no `/v1`) | reader | | every series' last value (OpenMetrics text) |
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bedstone.model.api import Change
from bedstone.model.resources import Frozen

Health = Literal["ok", "warning", "error", "unknown"]


class Tick(Frozen):
    """One second that was finished; the stream `/v1/ticks` gives one as each ends."""

    second: int
    complete: bool
    missing: dict[str, str] = Field(default_factory=dict)
    """`NODE` or `NODE/SOURCE`, with why it did not answer."""


class Seconds(Frozen):
    """Completeness over a span: every second in it that is not named was complete."""

    start: int
    end: int
    incomplete: dict[int, dict[str, str]] = Field(default_factory=dict)


class Signals(Frozen):
    """The golden signals of something, averaged over a window.

    `errors` is the share of requests that failed. Quantiles are of the merged histograms.
    `saturation` is the share of the narrowest limit in use (CPU, memory), where there is one.
    """

    rate: float | None = None
    errors: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    p999: float | None = None
    cpu: float | None = None
    """Cores in use."""
    memory: float | None = None
    """Bytes."""
    saturation: float | None = None
    error_kinds: dict[str, float] = Field(default_factory=dict)
    """Failures a second, by kind."""


class GraphNode(Frozen):
    """One thing on the map; `id` is `KIND:NAME` and unique."""

    id: str
    kind: Literal["gateway", "workload", "database", "external"]
    name: str
    cell: str = "default"
    health: Health = "unknown"
    reason: str = ""
    ready: int = 0
    wanted: int = 0
    signals: Signals = Signals()


class GraphEdge(Frozen):
    """Who calls whom; `allowed` without traffic is shown too."""

    source: str
    target: str
    declared: bool = True
    """The manifest's `uses` or route says so."""
    signals: Signals = Signals()
    connections: float | None = None
    """Open connections, to a database."""


class Graph(Frozen):
    """The map of an app over the `window` seconds that end at `second`."""

    app: str
    second: int
    window: int
    complete: bool
    missing: dict[str, str] = Field(default_factory=dict)
    nodes: tuple[GraphNode, ...] = ()
    edges: tuple[GraphEdge, ...] = ()


class Finding(Frozen):
    """Something that is not well; `page` is the console's path that shows the cause."""

    severity: Literal["warning", "error"]
    app: str
    subject: str
    message: str
    hint: str = ""
    since: float | None = None
    page: str = ""


class AppLine(Frozen):
    """One app in one line."""

    app: str
    health: Health
    generation: int
    ready: int
    wanted: int
    gateway: str | None = None
    signals: Signals = Signals()
    rates: tuple[float | None, ...] = ()
    """Requests a second of the last 60 seconds, oldest first; None for a second without data."""


class ChangeRecord(Frozen):
    """Who changed what, and when."""

    at: float
    who: str
    action: str
    target: str
    detail: str = ""
    app: str = ""
    generation: int | None = None
    """The generation that it made; None where it made none."""
    changes: tuple[Change, ...] = ()
    undo: bool = False
    """It can be undone: what was before is kept."""


class ChangeList(Frozen):
    """Changes, newest first."""

    items: tuple[ChangeRecord, ...] = ()


class Overview(Frozen):
    """The whole installation at one glance."""

    domain: str
    second: int
    complete: bool
    missing: dict[str, str] = Field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    apps: tuple[AppLine, ...] = ()
    nodes: tuple[NodeLine, ...] = ()
    changes: tuple[ChangeRecord, ...] = ()
    """Of the last hour."""


class NodeLine(Frozen):
    """One machine in one line."""

    node: str
    health: Health
    reason: str = ""
    instances: int = 0
    enforced: bool = False
    """The operating system keeps all of its instances apart."""
    cores: float | None = None
    cpu: float | None = None
    memory: float | None = None
    memory_total: float | None = None


class InstanceLine(Frozen):
    """One instance in one line."""

    name: str
    cell: str
    node: str
    revision: str
    phase: str
    reason: str = ""
    pid: int | None = None
    restarts: int = 0
    started_at: float | None = None
    ready_at: float | None = None
    enforced: bool = False
    current: bool = True
    signals: Signals = Signals()


class RevisionLine(Frozen):
    """One revision of a workload; `current` is what is declared now."""

    name: str
    generation: int
    current: bool
    instances: int
    can_roll_back: bool
    """Its declaration is kept, and differs from the current one."""


class WorkloadLine(Frozen):
    """One workload in one line; the lists are filled where one workload is asked for."""

    app: str
    name: str
    health: Health
    reason: str = ""
    declared: int
    """Replicas that the manifest says."""
    wanted: int
    """Replicas that are wanted now: the manifest's, or what it was scaled to."""
    ready: int
    restarts: int = 0
    signals: Signals = Signals()
    revisions: tuple[RevisionLine, ...] = ()
    instances: tuple[InstanceLine, ...] = ()
    environment: tuple[str, ...] = ()
    """Names only: values may be secrets."""
    uses: tuple[str, ...] = ()
    used_by: tuple[str, ...] = ()


class WorkloadList(Frozen):
    """The workloads of all apps, or of one, by name."""

    second: int
    items: tuple[WorkloadLine, ...] = ()


class ScaleRequest(Frozen):
    """How many instances shall run, until the manifest is applied with another number."""

    replicas: int = Field(ge=0, le=1000)


class RollbackRequest(Frozen):
    """Declare a workload again as an earlier generation of the app did.

    None: as the latest generation whose declaration of it differs from the present one.
    """

    generation: int | None = Field(default=None, ge=1)


class UndoRequest(Frozen):
    """Declare the app again as it was before a generation."""

    generation: int = Field(ge=1)


class RouteLine(Frozen):
    """One route of the gateway, with its traffic."""

    route: str
    """Host and path."""
    to: str
    timeout: float | None = None
    strip: bool = False
    signals: Signals = Signals()


class PolicyLine(Frozen):
    """Who may call a workload, and what was refused."""

    workload: str
    allowed: tuple[str, ...] = ()
    denied: float | None = None
    """Refused requests a second."""


class Traffic(Frozen):
    """The routes and policies of an app."""

    app: str
    second: int
    gateway: str | None = None
    routes: tuple[RouteLine, ...] = ()
    policies: tuple[PolicyLine, ...] = ()


class TapRecord(Frozen):
    """One request as a proxy saw it; without bodies, queries and credentials."""

    time: float
    node: str
    side: Literal["gateway", "outbound", "inbound"]
    app: str
    source: str
    """The caller: a workload, `gateway`, `operator`; empty if unknown."""
    target: str
    """The callee; empty where the request was refused before one was known."""
    instance: str = ""
    method: str
    path: str
    status: int
    kind: str = ""
    """Of `bedstone.telemetry.names.ERROR_KINDS`; empty for a success."""
    flags: str = ""
    """The proxy's response flags."""
    seconds: float
    bytes_in: int = 0
    bytes_out: int = 0
    trace: str = ""
    left_out: int = 0
    """Requests before this one that came faster than they were read, and are not told."""


class ConsoleLink(Frozen):
    """A one-time link to sign in to the console."""

    url: str
    role: Literal["reader", "operator"]
    expires_at: float


class ConsoleLinkRequest(Frozen):
    """Ask for a link."""

    role: Literal["reader", "operator"] = "operator"


class ConsoleLogin(Frozen):
    """The code of a one-time link."""

    code: str = Field(min_length=1, max_length=200)


class ConsoleSignIn(Frozen):
    """One who is signed in to the console."""

    id: str
    who: str
    role: Literal["reader", "operator"]
    created_at: float
    seen_at: float
    expires_at: float
    agent: str = ""
    """What its browser calls itself."""


class ConsoleSession(Frozen):
    """Who is signed in; `csrf` goes into the header `x-bedstone-csrf` of every change."""

    who: str
    role: Literal["reader", "operator"]
    domain: str
    version: str
    csrf: str


Overview.model_rebuild()
