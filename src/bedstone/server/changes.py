"""What operators change: each change is one atomic commit together with its audit record.

Invariants:
- A change and the record of who made it stand or fall together.
- A change is computed from the picture and committed against the revisions it was computed from;
  a conflict computes it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from bedstone.control import declaring
from bedstone.control.loop import ControlLoop
from bedstone.control.monitoring.promql import check
from bedstone.control.snapshot import Snapshot
from bedstone.errors import ConflictError, Error, InvalidError, NotFoundError
from bedstone.model.api import ApplyRequest, ApplyResult, Change, TokenGrant, TokenRequest
from bedstone.model.database_url import check_url
from bedstone.model.diff import diff
from bedstone.model.resolving import refuse_unresolved
from bedstone.model.resources import (
    App,
    AuditRecord,
    Condition,
    Desired,
    Instance,
    Resource,
    Token,
)
from bedstone.model.rules import RESERVED_APPS, RESERVED_NAMES
from bedstone.model.spec import AppSpec
from bedstone.server.history import History, recorded
from bedstone.store import ABSENT, Delete, Operation, Put, Store

_ATTEMPTS = 20
AUDIT_KEPT = 10_000
Declared = tuple[list[Operation], ApplyResult]
"""What to commit, and what to answer."""
_DECLARES = frozenset({"apply", "rollback", "undo"})
"""Actions that make a generation."""
_AUDIT_SLACK = 100
_COMINGS = frozenset({"call", "link", "sign-in", "sign-out", "tap"})
"""Actions that change nothing declared; the audit has them, and the list of changes has not."""
_UNIT = 10**9
_DIGITS = 7


class Changes:
    """Applies operators' changes to the store."""

    def __init__(
        self, store: Store, loop: ControlLoop, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._loop = loop
        self._clock = clock
        self._audited: int | None = None
        self.history = History(store)

    @property
    def _snapshot(self) -> Snapshot:
        return self._loop.snapshot

    async def plan(self, name: str, request: ApplyRequest) -> ApplyResult:
        """What `apply` would change.

        Raises:
            InvalidError: the manifest declares another app, or its gateway's port is another app's.
            ConflictError: the app is being deleted, or is past `request.generation`.
        """
        await asyncio.to_thread(_refuse_expressions, request)
        return self._applied(name, request)[1]

    async def apply(self, name: str, request: ApplyRequest, who: str) -> ApplyResult:
        """Make an app's declaration what the request says; no change, no new generation."""

        def change() -> tuple[list[Operation], ApplyResult]:
            app, result = self._applied(name, request)
            if not result.changes:
                return [], result
            return [self.put(app), *recorded(app, self._clock())], result

        await asyncio.to_thread(_refuse_expressions, request)
        return await self.commit(who, "apply", f"app {name}", change)

    async def restart(self, name: str, workload: str, who: str) -> ApplyResult:
        """Replace every instance of a workload by a new one, rolling."""

        def change() -> tuple[list[Operation], ApplyResult]:
            app = self.app(name)
            declaring.known(app, workload)
            counts = {**app.restarts, workload: app.restarts.get(workload, 0) + 1}
            after = app.model_copy(update={"restarts": counts})
            subject = f"workload {workload}"
            line = Change(op="~", subject=subject, after="restart", effect="rolls out")
            result = ApplyResult(app=name, generation=app.generation, changes=(line,))
            return [self.put(after)], result

        return await self.commit(who, "restart", f"{name}/{workload}", change)

    async def delete(self, name: str, who: str) -> ApplyResult:
        """Drain and remove an app; its databases' data is kept on disk."""
        gone = [Delete(key) for key in await self.history.keys(name)]

        def change() -> tuple[list[Operation], ApplyResult]:
            app = self.app(name)
            lines = diff(app.spec, None, app.sources, {})
            result = ApplyResult(app=name, generation=app.generation, changes=tuple(lines))
            return [self.put(app.model_copy(update={"deleting": True})), *gone], result

        return await self.commit(who, "delete", f"app {name}", change)

    async def delete_instance(self, path: str, who: str) -> ApplyResult:
        """Drain one instance; another takes its place if the declaration still wants it."""

        def change() -> tuple[list[Operation], ApplyResult]:
            instance = self._snapshot.get(Instance, f"instances/{path}")
            if instance is None:
                raise NotFoundError(f"there is no instance {path}", hint="see bedstone ps")
            line = Change(op="-", subject=f"instance {path}", effect="drains, and is replaced")
            result = ApplyResult(app=instance.app, generation=0, changes=(line,))
            drained = instance.model_copy(update={"desired": Desired.DRAINED})
            return [self.put(drained)], result

        return await self.commit(who, "delete", f"instance {path}", change)

    async def grant(self, request: TokenRequest, who: str) -> TokenGrant:
        """Make a credential for the API; only its digest is kept.

        Raises:
            ConflictError: a token of that name exists.
        """
        secret = f"bst_{secrets.token_urlsafe(32)}"
        token = Token(
            name=request.name, role=request.role, digest=digest(secret), created_at=self._clock()
        )
        try:
            await self._store.commit(
                [
                    Put(token.key, token.encode(), expected=ABSENT),
                    self._audit(who, "grant", f"token {token.name}", token.role),
                ]
            )
        except ConflictError as error:
            raise ConflictError(
                f"a token named {request.name} exists", hint="choose another name, or delete it"
            ) from error
        return TokenGrant(name=token.name, role=token.role, secret=secret)

    async def revoke(self, name: str, who: str) -> None:
        """Delete a credential."""
        entry = await self._store.get(f"tokens/{name}")
        if entry is None:
            raise NotFoundError(f"there is no token named {name}", hint="see bedstone token list")
        await self._store.commit(
            [Delete(entry.key, entry.revision), self._audit(who, "revoke", f"token {name}")]
        )

    async def tokens(self) -> list[Token]:
        """All credentials, without secrets, sorted by name."""
        listing = await self._store.list("tokens/")
        return [Token.decode(entry.value) for entry in listing.entries]

    async def joined(self, node: str, address: str, who: str) -> None:
        """Record who made a node part of the domain; not before that is it given its identity."""
        await self._store.commit([self._audit(who, "join", f"node {node}", address[:1000])])

    async def recorded(
        self, who: str, action: str, target: str, detail: str, operations: Sequence[Operation]
    ) -> None:
        """Make a change of the store that is no app's, with the record of who made it.

        Raises:
            ConflictError: a key is not at the revision that is expected.
        """
        await self._store.commit([*operations, self._audit(who, action, target, detail[:1000])])
        with contextlib.suppress(Error):
            await self.trim_audit()

    async def noted(self, who: str, action: str, target: str, detail: str) -> None:
        """Record what was done elsewhere than in the store."""
        await self._store.commit([self._audit(who, action, target, detail[:1000])])
        with contextlib.suppress(Error):
            await self.trim_audit()

    async def audit(self, limit: int) -> list[AuditRecord]:
        """The latest changes, newest first."""
        listing = await self._store.list("audit/")
        return [AuditRecord.decode(e.value) for e in reversed(listing.entries[-limit:])]

    async def listed(self, app: str, before: float | None, limit: int) -> list[AuditRecord]:
        """The latest changes, newest first: of one app, and made before a time, if given.

        Unlike `audit`, without who came and went.
        """
        entries = (await self._store.list("audit/")).entries
        found: list[AuditRecord] = []
        named = f'"{app}"'.encode()
        for entry in reversed(entries):
            if app and named not in entry.value:
                continue  # most are told without being decoded
            record = AuditRecord.decode(entry.value)
            if record.action in _COMINGS:
                continue
            if (not app or record.app == app) and (before is None or record.at < before):
                found.append(record)
                if len(found) == limit:
                    break
        return found

    async def recent(self, since: float, limit: int) -> list[AuditRecord]:
        """The changes since a time, newest first; reads no more of the audit than those."""
        found: list[AuditRecord] = []
        # The first digits of a key are its time in units of 1000 seconds.
        for unit in range(int(self._clock() * 1e6) // _UNIT, int(since * 1e6) // _UNIT - 1, -1):
            entries = (await self._store.list(f"audit/{unit:0{_DIGITS}d}")).entries
            found += [AuditRecord.decode(entry.value) for entry in reversed(entries)]
            if len(found) >= limit:
                break
        changes = [r for r in found if r.at >= since and r.action not in _COMINGS]
        return changes[:limit]

    async def set_conditions(self, app: str, conditions: Sequence[Condition]) -> None:
        """Make exactly these the conditions of an app."""
        held = {c.key: c for c in self._snapshot.of(Condition, app)}
        wanted = {c.key: c for c in conditions}
        operations: list[Operation] = [Delete(key) for key in held.keys() - wanted.keys()]
        for key, condition in wanted.items():
            before = held.get(key)
            if before is None or before.message != condition.message:
                operations.append(Put(key, condition.encode()))
        if operations:
            await self._store.commit(operations)

    def _applied(self, name: str, request: ApplyRequest) -> tuple[App, ApplyResult]:
        if request.spec.app != name:
            raise InvalidError(f"the manifest declares app {request.spec.app}, expected {name}")
        _refuse_reserved(request)
        _refuse_urls(request)
        refuse_unresolved(request.spec)
        before = self._snapshot.get(App, f"apps/{name}")
        if before and before.deleting:
            raise ConflictError(f"app {name} is being deleted", hint="wait until it is gone")
        generation = before.generation if before else 0
        if request.generation is not None and request.generation != generation:
            raise ConflictError(
                f"app {name} is at generation {generation}, expected {request.generation}",
                hint="read it again, and apply to what is there now",
            )
        self._refuse_shared_port(name, request.spec)
        app, lines = declaring.declared(before, name, request.spec, request.root, request.sources)
        number = app.generation if lines else generation
        return app, ApplyResult(app=name, generation=number, changes=tuple(lines))

    def declare_again(self, app: App, spec: AppSpec, sources: Mapping[str, str]) -> Declared:
        """What to commit for an app to be declared as it once was.

        Raises:
            ConflictError: it is being deleted.
            InvalidError: its gateway's port is another app's by now.
        """
        if app.deleting:
            raise ConflictError(f"app {app.name} is being deleted", hint="wait until it is gone")
        self._refuse_shared_port(app.name, spec)
        after, lines = declaring.declared(app, app.name, spec, app.root, sources)
        if not lines:
            return [], ApplyResult(app=app.name, generation=app.generation)
        notes = (declaring.FILE_WINS, declaring.NO_SOURCE)
        result = ApplyResult(
            app=app.name, generation=after.generation, changes=tuple(lines), notes=notes
        )
        return [self.put(after), *recorded(after, self._clock())], result

    def _refuse_shared_port(self, name: str, spec: AppSpec) -> None:
        gateway = spec.gateway
        for other in self._snapshot.apps().values():
            theirs = other.spec.gateway
            if other.name != name and gateway and theirs and gateway.port == theirs.port:
                raise InvalidError(
                    f"port {gateway.port} is the gateway of app {other.name}",
                    hint="choose another gateway.port",
                )

    def app(self, name: str) -> App:
        """An app as it is now; NotFoundError if there is none."""
        app = self._snapshot.get(App, f"apps/{name}")
        if app is None:
            known = ", ".join(sorted(self._snapshot.apps())) or "none"
            raise NotFoundError(f"there is no app {name}, there is {known}", hint="see bedstone ps")
        return app

    def put(self, resource: Resource) -> Put:
        """Write a resource, if it is still what the picture shows."""
        return Put(
            resource.key, resource.encode(), expected=self._snapshot.revision_of(resource.key)
        )

    async def trim_audit(self, kept: int = AUDIT_KEPT) -> None:
        """Forget the oldest records beyond `kept`; looks again only after a hundred more."""
        if self._audited is not None and self._audited < _AUDIT_SLACK:
            self._audited += 1
            return
        self._audited = 0
        entries = (await self._store.list("audit/")).entries
        old = entries[: max(0, len(entries) - kept)]
        if old:
            await self._store.commit([Delete(entry.key) for entry in old])

    def _audit(
        self,
        who: str,
        action: str,
        target: str,
        detail: str = "",
        result: ApplyResult | None = None,
    ) -> Put:
        now = self._clock()
        record = AuditRecord(
            at=now,
            who=who,
            action=action,
            target=target,
            detail=detail,
            sequence=f"{int(now * 1e6):016d}-{secrets.token_hex(4)}",
            app=result.app if result else "",
            generation=result.generation if result and action in _DECLARES else None,
        )
        return Put(record.key, record.encode(), expected=ABSENT)

    async def commit(
        self, who: str, action: str, target: str, change: Callable[[], Declared]
    ) -> ApplyResult:
        """Make a change together with its audit record.

        Args:
            who: makes it.
            action: what it is.
            target: of what.
            change: computes it from the picture; called again if that has changed meanwhile. With
                no operations there is nothing to change, and nothing is recorded.
        """
        for _ in range(_ATTEMPTS):
            operations, result = change()
            if not operations:
                return result
            detail = "; ".join(map(_detail, result.changes))
            version = self._loop.version
            try:
                revision = await self._store.commit(
                    [*operations, self._audit(who, action, target, detail[:1000], result)]
                )
            except ConflictError:
                await self._loop.changed(version)
                continue
            await self._loop.reached(revision)
            # The change is made; what is too old can as well go with the next one.
            with contextlib.suppress(Error):
                await self.trim_audit()
            return result
        raise ConflictError(f"{target} keeps changing", hint="try again")


def _detail(line: Change) -> str:
    words = f"{line.op} {line.subject}"
    numbers = line.subject.endswith(": replicas") and line.before
    return f"{words} {line.before} → {line.after}" if numbers else words


def _refuse_reserved(request: ApplyRequest) -> None:
    """Whoever applies need not have checked the manifest; these would be others' SPIFFE ids."""
    taken = RESERVED_NAMES & request.spec.workloads.keys()
    if request.spec.app in RESERVED_APPS or taken:
        name = next(iter(taken), request.spec.app)
        raise InvalidError(f"the name {name!r} is reserved", hint="choose another")


def _refuse_urls(request: ApplyRequest) -> None:
    for name, database in request.spec.databases.items():
        if database.url is not None:
            try:
                check_url(database.url)
            except InvalidError as error:
                raise InvalidError(
                    f"databases.{name}.url: {error.message}",
                    hint="whoever applies a manifest replaces ${env.…} in it",
                ) from error


def _refuse_expressions(request: ApplyRequest) -> None:
    """Refuse PromQL that is well-formed, but asks for what is not understood here.

    In a thread: readers plan, too, and a short expression can take seconds to look at.
    """
    for name, alert in request.spec.alerts.items():
        for key in ("when", "series", "expects"):
            text = getattr(alert, key, None)
            if text is None or (key == "expects" and text in request.spec.workloads):
                continue
            try:
                check(text)
            except InvalidError as error:
                raise InvalidError(
                    f"alerts.{name}.{key}: {error.message}", hint=error.hint
                ) from error


def digest(secret: str) -> str:
    """The digest of a credential that is kept: SHA-256 of 256 random bits needs no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()
