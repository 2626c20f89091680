"""The resources that the store holds, and their keys.

A resource is a frozen record. What people declare (`App`), what controllers decide (`Revision`,
`Instance`, `Database`) and what nodes observe (`…Status`, `Presence`) are separate keys, so that
each key has one writer: the API, a controller, or a node.

Keys are paths; a name never contains a slash, so a prefix ending in one selects exactly a scope.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from bedstone.model.spec import AppSpec, WorkloadSpec

DEFAULT_CELL = "default"
SHARED_USER = "user: runs "
"""How an entry of `InstanceStatus.limits` begins that says why an instance has no user of its own,
where it could have one: `user: runs as root, since /root is not open to others`."""


UNAPPLIED = "box: "
"""How an entry of `InstanceStatus.limits` begins that says what its box has not, and why."""


class Frozen(BaseModel):
    """An immutable record that refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Resource(Frozen):
    """A record with a key in the store."""

    kind: ClassVar[str]

    @property
    def key(self) -> str:
        """The store's key."""
        raise NotImplementedError

    def encode(self) -> bytes:
        """The store's value: canonical JSON, UTF-8."""
        return self.model_dump_json(exclude_defaults=True).encode()

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Inverse of `encode`."""
        return cls.model_validate_json(value)


class App(Resource):
    """What one manifest declares, as last applied.

    `root` is the directory of the manifest on the node that runs it; `sources` gives each
    workload's source digest, `restarts` counts the restarts asked for. Both enter the revision.
    `scaled` holds the replicas of workloads that were scaled since they were declared; a manifest
    that declares another number of them takes its place.
    """

    kind: ClassVar[str] = "app"

    name: str
    spec: AppSpec
    root: str = ""
    generation: int = 1
    sources: dict[str, str] = Field(default_factory=dict)
    restarts: dict[str, int] = Field(default_factory=dict)
    scaled: dict[str, int] = Field(default_factory=dict)
    deleting: bool = False

    @property
    def key(self) -> str:
        """`apps/APP`."""
        return f"apps/{self.name}"

    def replicas(self, workload: str) -> int:
        """How many instances of a declared workload are wanted now."""
        return self.scaled.get(workload, self.spec.workloads[workload].replicas)


class Declaration(Resource):
    """What an app was declared to be at one generation; secrets are in it as they are in `App`.

    `at` tells it from the same generation of an app of that name that was deleted.
    """

    kind: ClassVar[str] = "declaration"

    app: str
    generation: int
    spec: AppSpec
    at: float = 0.0
    root: str = ""
    sources: dict[str, str] = Field(default_factory=dict)

    @property
    def key(self) -> str:
        """`history/APP/GENERATION`; they sort by generation."""
        return declaration_key(self.app, self.generation)


def declaration_key(app: str, generation: int) -> str:
    """The key of a `Declaration`."""
    return f"history/{app}/{generation:08d}"


class Revision(Resource):
    """One immutable version of a workload: its specification and the digest of its source.

    `prepared` is the outcome of `prepare:`, run once per revision.
    """

    kind: ClassVar[str] = "revision"

    app: str
    workload: str
    name: str
    spec: WorkloadSpec
    root: str = ""
    source: str = ""
    generation: int = 1

    @property
    def key(self) -> str:
        """`revisions/APP/WORKLOAD/REVISION`."""
        return f"revisions/{self.app}/{self.workload}/{self.name}"


class Desired(StrEnum):
    """What a controller wants of an instance."""

    RUNNING = "running"
    DRAINED = "drained"
    """Out of the endpoints, to be stopped by the node once `Instance.released` is set."""


class Instance(Resource):
    """One running copy of a revision, placed on a node by the scheduler.

    `released` is set by the server once every proxy has acknowledged endpoints without it (or the
    wait for that has run out); only then does the node stop a drained instance.
    """

    kind: ClassVar[str] = "instance"

    app: str
    cell: str = DEFAULT_CELL
    workload: str
    name: str
    revision: str
    node: str
    desired: Desired = Desired.RUNNING
    released: bool = False

    @property
    def path(self) -> str:
        """`APP/CELL/WORKLOAD/INSTANCE`, which is also what nodes and proxies call it."""
        return f"{self.app}/{self.cell}/{self.workload}/{self.name}"

    @property
    def key(self) -> str:
        """`instances/APP/CELL/WORKLOAD/INSTANCE`."""
        return f"instances/{self.path}"


class Phase(StrEnum):
    """Where an instance or a database is in its life, as its node sees it."""

    PENDING = "pending"
    """Accepted by the node; `reason` says what it waits for."""
    PREPARING = "preparing"
    STARTING = "starting"
    """The process runs; its readiness probe has not passed."""
    READY = "ready"
    UNREADY = "unready"
    """It was ready; a probe fails now."""
    BACKOFF = "backoff"
    """It ended or never became ready; it is started again after a delay."""
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"
    """It cannot go on without a change of the manifest; `reason` says why."""


class Address(Frozen):
    """A TCP address, and the network namespace it is in (None: the node's own)."""

    host: str
    port: int
    netns: str | None = None


class Plumbing(Frozen):
    """The addresses that a node allotted to an instance; the mesh configures proxies from them.

    Attributes:
        app: where the program listens (`$PORT`), dialled by the proxy.
        inbound: where the node's proxy accepts mutual TLS for the instance, dialled by other nodes.
        outbound: the instance's HTTP proxy (`HTTP_PROXY`).
        services: for each name in `uses` that is a workload, an address that goes to it without
            proxy support (`RISK_URL`).
        databases: for each database in `uses`, the address the instance dials, when it is
            not the database's own (inside a network namespace).
        telemetry: where the instance's traces, metrics and logs are taken (OTLP over HTTP or gRPC).
        credential: the value of `Proxy-Authorization` that the outbound listener demands where
            the caller cannot be told by its network namespace; its SHA-256 digest is not enough
            for Envoy, so it is kept here, readable to operators only.
    """

    app: Address
    inbound: Address
    outbound: Address
    services: dict[str, Address] = Field(default_factory=dict)
    databases: dict[str, Address] = Field(default_factory=dict)
    telemetry: Address | None = None
    credential: str | None = None


class InstanceStatus(Resource):
    """What a node says of an instance. Written by that node only."""

    kind: ClassVar[str] = "instancestatus"

    app: str
    cell: str = DEFAULT_CELL
    workload: str
    name: str
    node: str
    revision: str
    isolation: str = "process"
    phase: Phase
    reason: str = ""
    plumbing: Plumbing | None = None
    pid: int | None = None
    started_at: float | None = None
    ready_at: float | None = None
    restarts: int = 0
    exit_status: str | None = None
    enforced: bool = False
    """Its identity is enforced by a network namespace and a user of its own, not only by a
    credential, nor by a namespace that root or others of the same user could enter."""
    limits: list[str] = Field(default_factory=list)
    certificate_until: float | None = None

    @property
    def path(self) -> str:
        """`APP/CELL/WORKLOAD/INSTANCE`."""
        return f"{self.app}/{self.cell}/{self.workload}/{self.name}"

    @property
    def key(self) -> str:
        """`status/instances/APP/CELL/WORKLOAD/INSTANCE`."""
        return f"status/instances/{self.path}"


class Database(Resource):
    """A database that an app declares, placed on a node.

    With a `url` it is external, and its node only says whether it can be reached.
    """

    kind: ClassVar[str] = "database"

    app: str
    cell: str = DEFAULT_CELL
    name: str
    engine: Literal["postgres"] = "postgres"
    url: str | None = None
    node: str | None = None
    users: list[str] = Field(default_factory=list)
    """The workloads that use it: one role each."""

    @property
    def path(self) -> str:
        """`APP/CELL/DATABASE`."""
        return f"{self.app}/{self.cell}/{self.name}"

    @property
    def key(self) -> str:
        """`databases/APP/CELL/DATABASE`."""
        return f"databases/{self.path}"


class DatabaseStatus(Resource):
    """What a node says of a database that it runs, or looks at."""

    kind: ClassVar[str] = "databasestatus"

    app: str
    cell: str = DEFAULT_CELL
    name: str
    node: str
    phase: Phase
    reason: str = ""
    address: Address | None = None
    pid: int | None = None
    started_at: float | None = None
    restarts: int = 0

    @property
    def path(self) -> str:
        """`APP/CELL/DATABASE`."""
        return f"{self.app}/{self.cell}/{self.name}"

    @property
    def key(self) -> str:
        """`status/databases/APP/CELL/DATABASE`."""
        return f"status/databases/{self.path}"


class Preparation(Resource):
    """The outcome of a revision's `prepare:` in one cell."""

    kind: ClassVar[str] = "preparation"

    app: str
    cell: str = DEFAULT_CELL
    workload: str
    revision: str
    node: str
    state: Literal["running", "done", "failed"]
    reason: str = ""

    @property
    def key(self) -> str:
        """`preparations/APP/CELL/WORKLOAD/REVISION`."""
        return f"preparations/{self.app}/{self.cell}/{self.workload}/{self.revision}"


class Node(Resource):
    """A machine running the node agent.

    `enforced` says whether it gives instances their own network namespaces.
    """

    kind: ClassVar[str] = "node"

    name: str
    address: str
    enforced: bool = False
    run_id: str = ""
    gateway: bool = True
    """Whether its proxy opens gateway listeners."""
    calls: str | None = None
    """Path of the directory of Unix sockets through which `bedstone call` enters the mesh."""
    proxy: Phase = Phase.PENDING
    proxy_reason: str = ""
    pid: int | None = None
    proxy_pid: int | None = None
    proxy_restarts: int = 0

    @property
    def key(self) -> str:
        """`nodes/NODE`."""
        return f"nodes/{self.name}"


class Presence(Resource):
    """A node's sign of life; its key is bound to the node's lease."""

    kind: ClassVar[str] = "presence"

    node: str

    @property
    def key(self) -> str:
        """`presence/NODE`."""
        return f"presence/{self.node}"


class Condition(Resource):
    """Something a user should know of a part of an app, such as configuration a proxy rejected."""

    kind: ClassVar[str] = "condition"

    app: str
    subject: str
    """In the manifest's terms: `gateway`, `gateway.routes[0]`, `workloads.risk`, …"""
    severity: Literal["warning", "error"] = "error"
    message: str = ""
    hint: str = ""
    since: float = 0.0

    @property
    def key(self) -> str:
        """`conditions/APP/SUBJECT`."""
        return f"conditions/{self.app}/{self.subject}"


class AuditRecord(Resource):
    """One change, with who made it and when (seconds since the epoch).

    `generation` is the one that it made of `app`, if it made one.
    """

    kind: ClassVar[str] = "audit"

    at: float
    who: str
    action: str
    target: str
    detail: str = ""
    sequence: str = ""
    app: str = ""
    generation: int | None = None

    @property
    def key(self) -> str:
        """`audit/SEQUENCE`; sequences sort by time."""
        return f"audit/{self.sequence}"


class Token(Resource):
    """A credential for the API; only its SHA-256 digest is kept."""

    kind: ClassVar[str] = "token"

    name: str
    role: Literal["reader", "operator"]
    digest: str
    created_at: float

    @property
    def key(self) -> str:
        """`tokens/NAME`."""
        return f"tokens/{self.name}"


class SignIn(Resource):
    """A session of the web console; of its cookie only the SHA-256 digest is kept.

    `via` is who asked for the link (`local:USER`, `token:NAME`): the session ends with that token.
    """

    kind: ClassVar[str] = "signin"

    digest: str
    who: str
    role: Literal["reader", "operator"]
    via: str
    created_at: float
    seen_at: float
    agent: str = ""

    @property
    def key(self) -> str:
        """`signins/DIGEST`."""
        return f"signins/{self.digest}"


KINDS: dict[str, type[Resource]] = {
    kind.kind: kind
    for kind in (
        App,
        Revision,
        Instance,
        InstanceStatus,
        Database,
        DatabaseStatus,
        Preparation,
        Node,
        Presence,
        Condition,
        AuditRecord,
        Token,
        SignIn,
        Declaration,
    )
}
