"""What the HTTP API takes and gives; the server and the typed client share these types.

Paths (all under `/v1`, JSON unless said otherwise; errors are `Problem` with the status of
`bedstone.errors.HTTP_STATUS`):

| method and path | role | takes | gives |
|---|---|---|---|
| GET `/healthz` (no `/v1`, no credential) | none | | `{"status": "ok"}` |
| GET `/openapi.json` | reader | | OpenAPI 3.1 |
| GET `/status` | reader | | `DomainStatus` |
| GET `/apps/APP/status` | reader | | `AppStatus` |
| GET `/apps/APP/watch` | reader | | NDJSON: `AppStatus` now and at every change |
| POST `/apps/APP/plan` | reader | `ApplyRequest` | `ApplyResult` (nothing is changed) |
| PUT `/apps/APP` | operator | `ApplyRequest` | `ApplyResult` |
| DELETE `/apps/APP` | operator | | `ApplyResult` |
| POST `/apps/APP/workloads/W/restart` | operator | | `ApplyResult` |
| GET `/apps/APP/workloads/W/logs?follow&since&tail` | reader | | NDJSON: `LogLine` |
| GET `/engines/NAME/logs?…` | operator | | NDJSON: `LogLine` |
| POST `/apps/APP/workloads/W/call` | operator | `CallRequest` | `CallResult` |
| GET `/apps/APP/transactions?state&stuck&after&limit` | reader | | `TransactionList` |
| GET `/apps/APP/transactions/ID` | reader | | `TransactionDetail` |
| POST `/apps/APP/transactions/ID/retry` | operator | `RetryRequest` | `TransactionDetail` |
| POST `/apps/APP/transactions/ID/repair` | operator | `RepairRequest` | `RepairResult` |
| GET `/resources/KIND?prefix=` | reader | | `ResourceList` |
| GET `/resources/KIND/NAME` | reader | | `ResourceEntry` |
| DELETE `/resources/KIND/NAME` | operator | | `ApplyResult` |
| GET `/tokens`, POST `/tokens`, DELETE `/tokens/NAME` | operator | `TokenRequest` | `TokenGrant` |
| GET `/audit?limit=` | operator | | list of `AuditRecord` |
| POST `/nodes/NODE/join` | local, or join token | `JoinRequest` | `JoinGrant` |

KIND is one of `app`, `workload`, `revision`, `instance`, `database`, `node`, `route`, `condition`;
NAME is the resource's path (`bank`, `bank/accounts`, `bank/default/accounts/accounts-3fa9c-0`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bedstone.model.resources import Condition, Frozen
from bedstone.model.spec import AppSpec


class Problem(Frozen):
    """A failure: `code` is one of `bedstone.errors`."""

    code: str
    message: str
    hint: str | None = None


class ApplyRequest(Frozen):
    """A manifest to apply, already parsed; see `bedstone.model.resources.App`."""

    spec: AppSpec
    root: str = ""
    sources: dict[str, str] = Field(default_factory=dict)
    generation: int | None = None
    """Apply only if the app is still at this generation; None: whatever it is at."""


class Change(Frozen):
    """One line of what an apply does, in the manifest's terms."""

    op: Literal["+", "~", "-"]
    subject: str
    before: str = ""
    after: str = ""
    effect: str = ""


class ApplyResult(Frozen):
    """What an apply changed, or would change; no changes: it was already so."""

    app: str
    generation: int
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    """What a person should know of it besides, a sentence each."""


class Part(Frozen):
    """One thing that becomes ready: an engine, a certificate, an instance, a route, a workload.

    `state` is a `Phase` value; `name` is unique within its kind. Order of parts is the order in
    which they can become ready.
    """

    kind: Literal["proxy", "engine", "certificate", "instance", "route"]
    name: str
    state: str
    detail: str = ""
    since: float | None = None
    restarts: int = 0
    pid: int | None = None
    revision: str = ""
    workload: str = ""
    current: bool = True
    """It belongs to the applied generation (False: an older revision being replaced)."""
    shared_user: str = ""
    """As whom an instance runs and why (`as root, since …`), where it has no user of its own though
    its node gives instances one."""
    enforced: bool = False
    """The operating system enforces an instance's identity."""
    cold_start: str = ""
    """Why an instance was started cold, where its workload declares `warm`."""
    isolation: str = ""
    """What an instance is separated by, once it runs: `process`, `container`, …"""
    unapplied: tuple[str, ...] = ()
    """What of its isolation and limits could not be applied, and why."""


class AppStatus(Frozen):
    """An app at one glance.

    `ready`: every part of the applied generation is ready, and no older revision is left.
    """

    app: str
    generation: int
    ready: bool
    waiting_for: tuple[str, ...] = ()
    gateway: str | None = None
    """URL of the gateway."""
    enforced: bool = False
    """The operating system enforces the identity of every instance on every node: none is only
    cooperative."""
    parts: tuple[Part, ...] = ()
    conditions: tuple[Condition, ...] = ()
    scaled: dict[str, int] = Field(default_factory=dict)
    """The replicas of workloads that were scaled to another number than the manifest says."""


class DomainStatus(Frozen):
    """The whole installation."""

    domain: str
    version: str
    started_at: float
    complete: bool
    """Whether the server has rebuilt its view since its start."""
    nodes: tuple[Part, ...] = ()
    apps: tuple[AppStatus, ...] = ()


class CallRequest(Frozen):
    """One HTTP request to a workload through the mesh; `body` is base64."""

    path: str = "/"
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    identity: str = "operator"
    timeout: float = 60.0


class CallResult(Frozen):
    """The answer; `body` is base64."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""


class ResourceEntry(Frozen):
    """One resource as it is at a revision of the store."""

    kind: str
    name: str
    revision: int
    value: dict[str, Any]


class ResourceList(Frozen):
    """The resources of a kind, sorted by name, as of a revision of the store."""

    revision: int
    items: tuple[ResourceEntry, ...]


class TokenRequest(Frozen):
    """A credential to make."""

    name: str = Field(pattern=r"^[a-z][-a-z0-9]{0,39}$")
    role: Literal["reader", "operator"] = "reader"


class TokenGrant(Frozen):
    """A new credential; the secret is shown once and kept nowhere."""

    name: str
    role: Literal["reader", "operator"]
    secret: str | None = None


class JoinRequest(Frozen):
    """A node's certificate signing request (PEM)."""

    request: str
    address: str = "127.0.0.1"


class JoinGrant(Frozen):
    """A node's first certificate, the trust bundle, and where to open its session."""

    domain: str
    chain: str
    bundle: str
    session: str


class TransactionSummary(Frozen):
    """A distributed transaction at one glance; times are seconds since the epoch.

    `trouble` is what its last failed attempt said; `stuck`: only a person can go on.
    """

    xid: str
    name: str
    state: str
    stuck: bool
    created: float
    deadline: float
    owner: str
    epoch: int
    next_attempt: float
    branches: int
    attempts: int
    trouble: str = ""


class TransactionList(Frozen):
    """Some of an app's transactions by id; `next` is the `after` of those that follow."""

    app: str
    items: tuple[TransactionSummary, ...] = ()
    next: str | None = None


class BranchDetail(Frozen):
    """One branch of a transaction.

    Its payload may hold what is private, so only the payload's SHA-256 is given. `stuck` is the
    report for a person: `resource`, `table`, `key`, the images `before`, `after` and `now`, and
    `repair`, the statements that would set it right.
    """

    number: int
    mode: str
    resource: str
    state: str
    attempts: int
    payload_digest: str
    locks: tuple[str, ...] = ()
    error: str | None = None
    stuck: dict[str, Any] | None = None


class TransactionEvent(Frozen):
    """One line of a transaction's history."""

    at: float
    kind: str
    branch: int | None = None
    detail: dict[str, Any] = Field(default_factory=dict)


class TransactionDetail(Frozen):
    """All that is known of one transaction."""

    app: str
    transaction: TransactionSummary
    branches: tuple[BranchDetail, ...] = ()
    events: tuple[TransactionEvent, ...] = ()


class RetryRequest(Frozen):
    """Try again at once, also what is stuck."""

    why: str = Field(min_length=1, max_length=1000)


class RepairRequest(Frozen):
    """Say that a person has brought a stuck branch to the decided end."""

    branch: int = Field(ge=1)
    why: str = Field(min_length=1, max_length=1000)


class RepairResult(Frozen):
    """What a repair came to: `proposed` where a second person has to ask for the same."""

    outcome: Literal["repaired", "proposed"]
    detail: TransactionDetail
