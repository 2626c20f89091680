"""What a node and the server say to each other, on one stream that the node opens.

The stream is the gRPC method `/bedstone.node.v1.Node/Session` (bidirectional), over mutual TLS with
the node's identity; each message is one JSON object. The node speaks first with `Hello`.

Invariants:
- After `Hello`, the server sends one `Assignments` with `complete` set: exactly what the node
  shall run. Later ones carry changes only.
- `Report` is last-writer-wins per key; after a reconnect, `Hello` carries everything again, and
  what it does not carry the server removes.
- A `Command` has an `id`; every `Reply` to it carries that id, the last one has `final` set.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from bedstone.model.resources import (
    App,
    Database,
    DatabaseStatus,
    Frozen,
    Instance,
    InstanceStatus,
    Node,
    Preparation,
    Revision,
)

SESSION_METHOD = "/bedstone.node.v1.Node/Session"


class Hello(Frozen):
    """The node's first message: who it is and all that it runs."""

    type: Literal["hello"] = "hello"
    node: Node
    instances: tuple[InstanceStatus, ...] = ()
    databases: tuple[DatabaseStatus, ...] = ()
    preparations: tuple[Preparation, ...] = ()


class Report(Frozen):
    """What changed on the node. Also the sign of life: sent empty when nothing changes."""

    type: Literal["report"] = "report"
    node: Node | None = None
    instances: tuple[InstanceStatus, ...] = ()
    databases: tuple[DatabaseStatus, ...] = ()
    preparations: tuple[Preparation, ...] = ()
    removed: tuple[str, ...] = ()
    """Keys of statuses that exist no more."""


class Digests(Frozen):
    """Digests of what the node's proxy really has, by `type/name`, for comparison and repair."""

    type: Literal["digests"] = "digests"
    digests: dict[str, str]


class CertificateRequest(Frozen):
    """A certificate signing request (PEM, RFC 2986) for a SPIFFE id placed on this node."""

    type: Literal["certificate-request"] = "certificate-request"
    id: str
    spiffe_id: str
    request: str


class Reply(Frozen):
    """A part of the answer to a `Command`.

    For `logs`: `lines` (each `time`, `instance`, `text`). For `call`: `status`, `headers`, `body`
    (base64). For `database`: `body`, the URL. For `metrics`: `body`, base64 of a frame
    (`bedstone.telemetry.frames`). For `tap`: `body`, a JSON array of
    `bedstone.model.monitoring.TapRecord`. For failures: `error` (a code of `bedstone.errors`)
    and `message`.
    """

    type: Literal["reply"] = "reply"
    id: str
    final: bool = False
    lines: tuple[LogLine, ...] = ()
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    error: str | None = None
    message: str = ""


class Spans(Frozen):
    """Spans that the node's collector got, as they come.

    `body` is base64 of an OTLP `ExportTraceServiceRequest`, deflated (RFC 1951 in zlib's form).
    `dropped` spans found no room since the message before.
    """

    type: Literal["spans"] = "spans"
    body: str
    dropped: int = 0


class LogLine(Frozen):
    """One line of an instance's or engine's output; `time` is seconds since the epoch."""

    time: float
    source: str
    text: str


class Assignments(Frozen):
    """What the node shall run: `complete` replaces everything, otherwise these are changes."""

    type: Literal["assignments"] = "assignments"
    complete: bool = False
    domain: str
    apps: tuple[App, ...] = ()
    revisions: tuple[Revision, ...] = ()
    instances: tuple[Instance, ...] = ()
    databases: tuple[Database, ...] = ()
    preparations: tuple[Preparation, ...] = ()
    removed: tuple[str, ...] = ()
    available: dict[str, bool] = Field(default_factory=dict)
    """For each `APP/CELL/WORKLOAD` in the domain whose availability changed: has it a ready
    instance? A node starts an instance only when what it uses is available (or forms a cycle
    with it)."""


class Certificate(Frozen):
    """The answer to a `CertificateRequest`: a chain (PEM, leaf first) and the trust bundle."""

    type: Literal["certificate"] = "certificate"
    id: str
    chain: str = ""
    bundle: str = ""
    error: str | None = None
    message: str = ""


class Command(Frozen):
    """Something to do on the node now.

    `logs`: of `subject` (a prefix of `APP/CELL/WORKLOAD/INSTANCE`, or `engine:NAME`), from `since`
    (seconds since the epoch) until `until`, at most the last `tail` lines, going on when `follow`;
    only those that name `trace`, are of `level` or above, and contain `text` (of
    `bedstone.telemetry.lines.Filter`). Where the subject names no workload, a line's source is
    `WORKLOAD/INSTANCE`.
    `call`: one HTTP request into the mesh as `identity`, to `url` (`http://WORKLOAD/PATH`).
    `database`: the URL of database `subject` (`APP/CELL/NAME`), for the user `identity` of it.
    `metrics`: one frame of series for the second `since`; with `full`, a complete one.
    `tap`: requests of `app`, as they are answered, until it is cancelled: of `share` (0 to 1) of
    them those from or to the workload `subject`, of all if that is empty; with `errors` only those
    that failed.
    `sampling`: begin traces of the share `subject` (0 to 1) of requests; empty: by their rate.
    `cancel`: stop answering command `subject`.
    """

    type: Literal["command"] = "command"
    id: str
    action: Literal["logs", "call", "database", "metrics", "tap", "sampling", "cancel"]
    subject: str = ""
    full: bool = False
    since: float | None = None
    until: float | None = None
    tail: int | None = None
    follow: bool = False
    trace: str = ""
    level: str = ""
    text: str = ""
    errors: bool = False
    share: float = 1.0
    app: str = ""
    identity: str = "operator"
    method: str = "GET"
    url: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    timeout: float = 60.0


class ProxyState(Frozen):
    """What the server knows of the node's proxy: tells the node when an instance may start.

    `listening` names the instances (by path) whose listeners the proxy has acknowledged.
    """

    type: Literal["proxy-state"] = "proxy-state"
    acknowledged: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    complete: bool = False


FromNode = Annotated[
    Hello | Report | Digests | CertificateRequest | Reply | Spans, Field(discriminator="type")
]
FromServer = Annotated[
    Assignments | Certificate | Command | ProxyState, Field(discriminator="type")
]

Reply.model_rebuild()

_FROM_NODE: TypeAdapter[FromNode] = TypeAdapter(FromNode)
_FROM_SERVER: TypeAdapter[FromServer] = TypeAdapter(FromServer)


def encode(message: FromNode | FromServer) -> bytes:
    """One message as JSON, UTF-8."""
    return message.model_dump_json(exclude_defaults=False).encode()


def decode_from_node(data: bytes) -> FromNode:
    """Parse what a node sent; raises `pydantic.ValidationError`."""
    return _FROM_NODE.validate_json(data)


def decode_from_server(data: bytes) -> FromServer:
    """Parse what the server sent; raises `pydantic.ValidationError`."""
    return _FROM_SERVER.validate_json(data)
