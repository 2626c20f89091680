"""What a manifest declares, as types; the published JSON Schema is generated from them.

Rules:
- Unknown keys are errors. Keys that this version has not built yet are known, so that they can be
  refused by name (`UNBUILT`), never ignored.
- Descriptions are for users: they are shown by editors through the JSON Schema.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from bedstone.model.fields import (
    IMAGE_PATTERN,
    KIND_TAG,
    MODULE_PATTERN,
    RUN_PATTERN,
    Duration,
    Failures,
    Flag,
    Name,
    Path,
    Port,
    Size,
    Spec,
)
from bedstone.model.monitoring_spec import AlertsByName, MonitoringSpec, ReceiversByName


class Route(Spec):
    """Requests whose path starts with `path` go to workload `to`; the longest path wins."""

    path: Path = "/"
    to: Name
    strip: Flag = Field(
        default=False, description="Remove `path` from the request before it is sent on."
    )
    host: str | None = Field(default=None, description="Only requests for this host name.")
    timeout: Duration | None = Field(default=None, description="Deadline for the whole request.")


class Gateway(Spec):
    """Where requests from outside enter."""

    port: Port = 8080
    address: str = Field(default="127.0.0.1", description="The IP address to listen on.")
    routes: tuple[Route, ...] = Field(min_length=1, description="Which workload gets a request.")


class HttpProbe(Spec):
    """Ready when a GET of `path` answers with a status below 400."""

    path: Path
    interval: Duration = 1.0
    timeout: Duration = 1.0
    failures: Failures = 3


class TcpProbe(Spec):
    """Ready when `$PORT` accepts a connection."""

    tcp: Literal[True] = Field(default=True, description="Ready when `$PORT` is open.")
    interval: Duration = 1.0
    timeout: Duration = 1.0
    failures: Failures = 3


class ExecProbe(Spec):
    """Ready when a command exits with 0."""

    command: tuple[str, ...] = Field(
        min_length=1, description="Run in the environment of the workload."
    )
    interval: Duration = 2.0
    timeout: Duration = 5.0
    failures: Failures = 3


def expand_probe(value: Any) -> Any:
    """Write a probe's short form (`/healthz`, `tcp`) in full; anything else is left alone.

    Raises:
        ValueError: the string is neither.
    """
    match value:
        case "tcp":
            return {"tcp": True}
        case str() if value.startswith("/"):
            return {"path": value}
        case str():
            raise ValueError("neither a path nor 'tcp'")
        case _:
            return value


def probe_kind(value: Any) -> str | None:
    """The tag of the probe that a value in full form declares, or None."""
    match value:
        case HttpProbe() | {"path": _}:
            return KIND_TAG + "http"
        case ExecProbe() | {"command": _}:
            return KIND_TAG + "exec"
        case TcpProbe() | {}:
            return KIND_TAG + "tcp"
        case _:
            return None


Probe = Annotated[
    Annotated[HttpProbe, Tag(KIND_TAG + "http")]
    | Annotated[TcpProbe, Tag(KIND_TAG + "tcp")]
    | Annotated[ExecProbe, Tag(KIND_TAG + "exec")],
    Discriminator(probe_kind),
    BeforeValidator(expand_probe),
]


class Limits(Spec):
    """What one instance may use at most, where the operating system can limit it."""

    memory: Size | None = Field(default=None, description="Bytes, or a size as 256MiB.")
    cpu: float | None = Field(default=None, gt=0, strict=True, description="Cores.")
    files: int | None = Field(default=None, gt=0, strict=True, description="Open file descriptors.")
    processes: int | None = Field(
        default=None, gt=0, strict=True, description="Processes and threads."
    )


Module = Annotated[str, StringConstraints(pattern=MODULE_PATTERN)]


class WorkloadSpec(Spec):
    """A service: how to run it and what it may reach."""

    run: Annotated[str, StringConstraints(pattern=RUN_PATTERN)] | None = Field(
        default=None, description="An ASGI application, as `module:attribute`."
    )
    command: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="A program that listens on `$PORT`."
    )
    image: Annotated[str, StringConstraints(pattern=IMAGE_PATTERN)] | None = Field(
        default=None, description="An OCI image to run: its own command, or `command` in it."
    )
    path: str = Field(default=".", description="Its source directory, relative to the manifest.")
    python: str | None = Field(
        default=None,
        description="Its interpreter; default: the nearest `.venv`, else Bedstone's own.",
    )
    warm: tuple[Module, ...] | None = Field(
        default=None,
        description="Modules to load once; instances are forked from that. Python only.",
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        description="Environment; `${databases.NAME.url}` and `${env.NAME}` are replaced.",
    )
    writes: tuple[Annotated[str, StringConstraints(min_length=1)], ...] = Field(
        default=(),
        description="Files and folders that it may write to, beside its source directory and "
        "temporary ones; relative to the manifest, or `~/…`.",
    )
    prepare: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="A command run once per revision before it starts."
    )
    replicas: int = Field(
        default=1, ge=0, le=1000, strict=True, description="How many instances run."
    )
    isolation: Literal["process", "container", "gvisor", "microvm", "enclave"] = Field(
        default="process",
        description="What separates it from the rest of the machine; `container` for an image.",
    )
    protocol: Literal["http", "http2", "grpc"] = Field(
        default="http",
        description="What the program speaks on `$PORT`: HTTP/1.1, or HTTP/2 without TLS.",
    )
    uses: tuple[Name, ...] = Field(
        default=(),
        description="All that it may reach: workloads and databases. All else is denied.",
    )
    ready: Probe | None = Field(
        default=None, description="Readiness probe; default: `$PORT` accepts a connection."
    )
    live: Probe | None = Field(
        default=None, description="Liveness probe; a failing instance is restarted."
    )
    start_timeout: Duration = Field(
        default=60.0, description="How long it may take to become ready."
    )
    stop_timeout: Duration = Field(default=10.0, description="From SIGTERM to SIGKILL.")
    timeout: Duration | None = Field(
        default=None, description="Deadline of requests to it; default 60 s."
    )
    limits: Limits | None = Field(default=None, description="What one instance may use at most.")
    per_cell: Flag = False

    @model_validator(mode="before")
    @classmethod
    def _image_is_contained(cls, value: Any) -> Any:
        """An image runs in a container, unless something else is said."""
        if isinstance(value, dict) and value.get("image") and "isolation" not in value:
            return {**value, "isolation": "container"}
        return value


class DatabaseSpec(Spec):
    """A database: an embedded engine, or any server by URL."""

    engine: Literal["postgres"] = Field(
        default="postgres", description="What kind of database it is."
    )
    url: str | None = Field(
        default=None,
        description="Use this server instead of the embedded engine; `${env.NAME}` is replaced.",
    )
    per_cell: Flag = False
    standby: Literal["sync", "async"] | None = None


class TransactionsSpec(Spec):
    """Distributed transactions: where their log is, and who may repair one that is stuck."""

    database: Name = Field(
        description="The database that holds the log. Workloads that use it find the log in "
        "`BEDSTONE_TRANSACTIONS_URL`."
    )
    second_person: Flag = Field(
        default=False, description="A repair needs the approval of a second person."
    )


class AppSpec(Spec):
    """A manifest."""

    app: Name
    gateway: Gateway | None = Field(default=None, description="Where requests from outside enter.")
    workloads: dict[Name, WorkloadSpec] = Field(min_length=1, description="The services, by name.")
    databases: dict[Name, DatabaseSpec] = Field(
        default_factory=dict, description="The databases, by name."
    )
    transactions: TransactionsSpec | None = Field(
        default=None, description="Distributed transactions across databases and services."
    )
    monitoring: MonitoringSpec | None = Field(
        default=None, description="What is kept of traces, and what is sent to others."
    )
    alerts: AlertsByName = Field(
        default_factory=dict, description="What somebody should be told of, by name."
    )
    receivers: ReceiversByName = Field(
        default_factory=dict, description="Who is told of alerts, by name."
    )


UNBUILT: dict[tuple[str, ...], str] = {
    ("cells",): "cells are not built yet",
    ("secrets",): "secrets are not built yet",
    ("workloads", "*", "per_cell"): "cells are not built yet",
    ("databases", "*", "per_cell"): "cells are not built yet",
    ("databases", "*", "standby"): "standby databases are not built yet",
}
"""Keys of the design that this version refuses, with the reason. `isolation: enclave` is refused
likewise."""
