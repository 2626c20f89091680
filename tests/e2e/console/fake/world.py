"""A pretended installation: apps whose figures are functions of the second. Nothing is measured.

So a test can say what a page has to show, and see more on a page than this machine could run.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Literal

from bedstone.model.api import Change
from bedstone.model.monitoring import (
    AppLine,
    ChangeRecord,
    Finding,
    Graph,
    GraphEdge,
    GraphNode,
    Health,
    InstanceLine,
    NodeLine,
    Overview,
    PolicyLine,
    RevisionLine,
    RouteLine,
    Signals,
    Traffic,
    WorkloadLine,
    WorkloadList,
)

USES = {
    "bank": {
        "gateway": ["web"],
        "web": ["accounts", "risk"],
        "accounts": ["ledger", "savings"],
        "risk": [],
    },
    "shop": {
        "gateway": ["front", "api"],
        "front": ["api"],
        "api": ["catalogue", "orders", "users"],
        "catalogue": ["items", "search"],
        "search": ["items"],
        "orders": ["payments", "stock", "sales"],
        "payments": ["sales", "fraud"],
        "fraud": [],
        "stock": ["items"],
        "users": ["people"],
        "mailer": ["users"],
    },
}
DATABASES = {"ledger", "savings", "items", "sales", "people"}
BASE = {
    "gateway": 240.0,
    "web": 240.0,
    "accounts": 180.0,
    "risk": 90.0,
    "front": 310.0,
    "api": 620.0,
}
SICK = {"risk": 0.034, "payments": 0.0041}
MIB = 1 << 20


def noise(name: str, second: float) -> float:
    """A number between 0 and 1 that a name and a second always give."""
    digest = hashlib.blake2b(f"{name}/{int(second)}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32


def signals(name: str, second: float, *, usage: bool = True) -> Signals:
    base = BASE.get(
        name.rsplit(">", maxsplit=1)[-1].split("-", maxsplit=1)[0], 40 + 120 * noise(name, 0)
    )
    rate = base * (
        1 + 0.22 * math.sin(second / 41 + noise(name, 1) * 6) + 0.16 * noise(name, second)
    )
    sick = next(
        (share for part, share in SICK.items() if part in name.rsplit(">", maxsplit=1)[-1]), 0.0
    )
    errors = sick * (0.6 + 0.8 * noise(name + "e", second))
    p50 = 0.002 + 0.02 * noise(name, 2) * (1 + 0.2 * noise(name, second))
    kinds = {"timeout": rate * errors * 0.75, "answer": rate * errors * 0.25} if errors else {}
    return Signals(
        rate=rate,
        errors=errors,
        p50=p50,
        p90=p50 * 2.1,
        p99=p50 * (4.4 + noise(name, second)),
        p999=p50 * 11,
        cpu=rate / 900 if usage else None,
        memory=(84 + 60 * noise(name, 3)) * MIB if usage else None,
        saturation=rate / 900 / 1.0 if usage else None,
        error_kinds=kinds,
    )


@dataclass
class World:
    """What the pretended server knows; tests change it.

    Args:
        workloads: of a further app, `many`, to see a page with a lot on it.
        incomplete: seconds whose last digit is one of these lack a node.
    """

    workloads: int = 0
    incomplete: frozenset[int] = frozenset({7})
    well: bool = False
    empty: bool = False
    changed: list[ChangeRecord] = field(default_factory=list)

    def apps(self) -> dict[str, dict[str, list[str]]]:
        if self.empty:
            return {}
        apps = dict(USES)
        if self.workloads:
            names = [f"service-{index:03}" for index in range(self.workloads)]
            apps["many"] = {
                "gateway": names[:3],
                **{
                    name: [n for n in names[3 * i + 1 : 3 * i + 4] if n]
                    for i, name in enumerate(names)
                },
            }
        return apps

    def missing(self, second: int) -> dict[str, str]:
        return {"edge-2": "did not answer in time"} if second % 10 in self.incomplete else {}

    def health(self, name: str) -> tuple[Health, str]:
        if self.well or (self.workloads and name.startswith("service") and name[-1] != "7"):
            return "ok", ""
        if name == "risk":
            return "error", "3.4% of its requests fail: timeout"
        if name == "payments":
            return "warning", "1 of 3 instances is not ready"
        if name == "mailer":
            return "unknown", "nothing was measured in the last minute"
        return "ok", ""

    def instances(self, app: str, name: str, second: float) -> tuple[InstanceLine, ...]:
        lines = []
        for index in range(3 if name in {"payments", "accounts", "api"} else 2):
            starting = name == "payments" and index == 2 and not self.well
            lines.append(
                InstanceLine(
                    name=f"{name}-{hashlib.sha256(name.encode()).hexdigest()[:8]}-{index}",
                    cell="default",
                    node=("edge-1", "edge-2", "local")[index % 3],
                    revision=hashlib.sha256(name.encode()).hexdigest()[:8],
                    phase="backoff" if starting else "ready",
                    reason="exit status 1: cannot reach sales; started again in 8 s"
                    if starting
                    else "",
                    pid=4000 + index + len(name) * 10,
                    restarts=7 if starting else 0,
                    started_at=second - (12 if starting else 8000 + 777 * index),
                    ready_at=None if starting else second - 7990,
                    enforced=True,
                    signals=Signals() if starting else signals(f"{name}-{index}", second),
                )
            )
        return tuple(lines)

    def workload(self, app: str, name: str, second: float, *, whole: bool = False) -> WorkloadLine:
        health, reason = self.health(name)
        instances = self.instances(app, name, second)
        revision = hashlib.sha256(name.encode()).hexdigest()[:8]
        uses = self.apps()[app]
        return WorkloadLine(
            app=app,
            name=name,
            health=health,
            reason=reason,
            declared=len(instances),
            wanted=len(instances),
            ready=sum(i.phase == "ready" for i in instances),
            restarts=sum(i.restarts for i in instances),
            signals=Signals() if name == "mailer" else signals(name, second),
            revisions=(
                RevisionLine(
                    name=revision,
                    generation=14,
                    current=True,
                    instances=len(instances),
                    can_roll_back=False,
                ),
                RevisionLine(
                    name="7c19ab02", generation=11, current=False, instances=0, can_roll_back=True
                ),
                RevisionLine(
                    name="03fe77d1", generation=9, current=False, instances=0, can_roll_back=True
                ),
            )
            if whole
            else (),
            instances=instances if whole else (),
            environment=("DATABASE_POOL", "FEATURE_NEW_LIMITS", "LOG_LEVEL", "PAYMENT_API_KEY")
            if whole
            else (),
            uses=tuple(uses.get(name, ())) if whole else (),
            used_by=tuple(n for n, used in uses.items() if name in used) if whole else (),
        )

    def listed(self, second: int, app: str = "", search: str = "") -> WorkloadList:
        return WorkloadList(
            second=second,
            items=tuple(
                self.workload(each, name, second)
                for each, uses in self.apps().items()
                if not app or each == app
                for name in sorted(uses)
                if name != "gateway" and search in name
            ),
        )

    def overview(self, second: int) -> Overview:
        missing = self.missing(second)
        findings = () if self.well or self.empty else (
            Finding(severity="error", app="bank", subject="risk", message="3.4% of its requests fail: timeout", hint="its slowest answers come from risk-0; see its traces", since=second - 340, page="/workloads/bank/risk"),
            Finding(severity="error", app="bank", subject="transactions", message="1 transaction waits for a person", hint="compare its rows before, after and now", since=second - 1900, page="/transactions/bank?stuck=1"),
            Finding(severity="warning", app="shop", subject="payments", message="1 of 3 instances is not ready: exit status 1: cannot reach sales; started again in 8 s", hint="see its logs", since=second - 95, page="/workloads/shop/payments?tab=logs"),
        )  # fmt: skip
        apps = []
        for app, uses in self.apps().items():
            names = [name for name in uses if name != "gateway"]
            lines = [self.workload(app, name, second) for name in names]
            worst: Health = next(
                (h for h in ("error", "warning") if any(each.health == h for each in lines)), "ok"
            )
            apps.append(
                AppLine(
                    app=app,
                    health=worst,
                    generation=14,
                    ready=sum(line.ready for line in lines),
                    wanted=sum(line.wanted for line in lines),
                    gateway="http://127.0.0.1:8080" if app == "bank" else "http://127.0.0.1:8081",
                    signals=signals(f"gateway-{app}", second),
                    rates=tuple(
                        None
                        if self.missing(second - 59 + i)
                        else signals(f"gateway-{app}", second - 59 + i).rate
                        for i in range(60)
                    ),
                )
            )
        return Overview(
            domain="bank.local",
            second=second,
            complete=not missing,
            missing=missing,
            findings=findings,
            apps=tuple(apps),
            nodes=()
            if self.empty
            else tuple(
                NodeLine(
                    node=name,
                    health="warning" if name in missing else "ok",
                    reason=missing.get(name, ""),
                    instances=9 + index,
                    enforced=name != "local",
                    cores=8,
                    cpu=2.1 + noise(name, second),
                    memory=(9 + noise(name, second / 10)) * 1024 * MIB,
                    memory_total=32 * 1024 * MIB,
                )
                for index, name in enumerate(("edge-1", "edge-2", "local"))
            ),
            changes=tuple(c for c in self.changes(second) if second - c.at < 3600),
        )

    def changes(self, second: int) -> list[ChangeRecord]:
        if self.empty:
            return []
        day = second // 86400 * 86400
        made = [
            ChangeRecord(at=second - 412, who="local:ann", action="apply", target="app bank", app="bank", generation=14, undo=True, changes=(
                Change(op="~", subject="workloads.risk", before="timeout 2s", after="timeout 800ms", effect="new revision, 2 instances replaced"),
                Change(op="+", subject="gateway.routes[1]", after="/internal → risk"),
            )),
            ChangeRecord(at=second - 1210, who="token:ci", action="restart", target="workload accounts", detail="2 instances", app="bank", generation=13),
            ChangeRecord(at=second - 2955, who="console:bo", action="scale", target="workload payments", detail="2 → 3", app="shop"),
            ChangeRecord(at=second - 3400, who="console:bo", action="retry", target="transaction 1a20fab69fa5e9f6a5f05bfae60624e1", detail="row set by hand", app="bank"),
            ChangeRecord(at=day - 7000, who="token:ci", action="apply", target="app shop", app="shop", generation=21, undo=True, changes=(
                Change(op="+", subject="workloads.fraud", effect="2 instances start"),
                Change(op="~", subject="workloads.payments.uses", before="[sales]", after="[sales, fraud]"),
                Change(op="-", subject="workloads.payments.env.LEGACY", before="1"),
            )),
        ]  # fmt: skip
        return [*reversed(self.changed), *made]

    def graph(self, app: str, second: int, window: int) -> Graph:
        uses = self.apps()[app]
        missing = self.missing(second)
        nodes, edges = [], list[GraphEdge]()
        used = {name for names in uses.values() for name in names}
        for name in dict.fromkeys([*uses, *sorted(used)]):
            kind: Literal["gateway", "workload", "database"] = (
                "gateway" if name == "gateway" else "database" if name in DATABASES else "workload"
            )
            health, reason = self.health(name)
            line = self.workload(app, name, second) if kind == "workload" else None
            nodes.append(
                GraphNode(
                    id=f"{kind}:{name}", kind=kind, name=name, health=health, reason=reason,
                    ready=line.ready if line else 1, wanted=line.wanted if line else 1,
                    signals=signals(name, second) if name != "mailer" else Signals(),
                )
            )  # fmt: skip
        ids = {node.name: node.id for node in nodes}
        for name, targets in uses.items():
            for target in targets:
                database = target in DATABASES
                quiet = name == "mailer"
                edges.append(
                    GraphEdge(
                        source=ids[name],
                        target=ids[target],
                        declared=not (name == "gateway" and target == "api"),
                        signals=Signals()
                        if quiet or database
                        else signals(f"{name}>{target}", second, usage=False),
                        connections=4 + round(8 * noise(name + target, second))
                        if database
                        else None,
                    )
                )
        return Graph(
            app=app,
            second=second,
            window=window,
            complete=not missing,
            missing=missing,
            nodes=tuple(nodes),
            edges=tuple(edges),
        )

    def traffic(self, app: str, second: int) -> Traffic:
        uses = self.apps()[app]
        return Traffic(
            app=app,
            second=second,
            gateway="http://127.0.0.1:8080",
            routes=tuple(
                RouteLine(
                    route="/" if index == 0 else f"/{name}",
                    to=name,
                    timeout=15,
                    strip=index > 0,
                    signals=signals(f"route>{name}", second, usage=False),
                )
                for index, name in enumerate(uses["gateway"])
            ),
            policies=tuple(
                PolicyLine(
                    workload=name,
                    allowed=tuple(n for n, used in uses.items() if name in used),
                    denied=0.4 + noise("denied", second) if name == "accounts" else 0.0,
                )
                for name in uses
                if name != "gateway"
            ),
        )
