"""What a server says of a small app, for tests of those who read it."""

from __future__ import annotations

from bedstone.model.api import (
    ApplyResult,
    AppStatus,
    Change,
    DomainStatus,
    Part,
)

READY = AppStatus(
    app="bank",
    generation=2,
    ready=True,
    gateway="http://localhost:8080",
    parts=(
        Part(kind="proxy", name="local", state="ready", pid=11),
        Part(kind="instance", name="web-1-0", state="ready", workload="web", revision="1", pid=12),
    ),
)
DOMAIN = DomainStatus(domain="d", version="0.1.0", started_at=1.0, complete=True, apps=(READY,))
CHANGED = ApplyResult(
    app="bank",
    generation=2,
    changes=(
        Change(op="~", subject="workloads.web.replicas", before="1", after="2", effect="starts 1"),
        Change(op="-", subject="workloads.old"),
    ),
)
