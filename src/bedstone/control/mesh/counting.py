"""What proxies count beyond Envoy's own statistics, and the names that the collector reads back.

Envoy's own counters tell the answers by class, exactly and for nothing. What they do not tell is
which requests got no answer because the caller went away, which ended with 101, and why one failed.
These are few, so an access logger that counts looks at them alone: every other request pays for one
look at its flags and status.

Invariants:
- A request is counted once in each place that it passes: when its answer begins, by class, or when
  it ends without one.
- What stands in the names is bounded: paths of ours, three-digit statuses, Envoy's response flags.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, unquote

from bedstone.control.mesh.protos import StatsLogger, typed
from bedstone.control.mesh.replies import NOT_APPLIED, UNKNOWN
from bedstone.telemetry.context import OUTCOME as OUTCOME_HEADER

PREFIX = "bedstone"
"""The beginning of the names of these statistics."""
ENDED = "ended"
"""Requests at a listener that ended in another way than by a whole answer below 500."""
LISTENER, CLUSTER, ROUTE = "listener", "cluster", "route"
CODE, FLAGS, OUTCOME = "code", "flags", "outcome"
"""The tags of `ENDED`."""

_CANCELLED = {"DC", "DR", "DPE"}
_KINDS: tuple[tuple[str, set[str]], ...] = (
    ("unavailable", {"UH", "NC", "NR", "LH"}),
    ("overflow", {"UO", "OM", "DO"}),
    ("connect", {"UF"}),
    ("timeout", {"UT", "SI", "DT", "UMSDR"}),
    ("reset", {"UC", "UR", "LR", "UPE", "UDO"}),
    ("denied", {"UAEX", "RL", "RLSE"}),
)


def _status(op: str, status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": "bedstone.unset"}
    return {"status_code_filter": {"comparison": {"op": op, "value": value}}}


def exceptional(listener: str) -> dict[str, Any]:
    """The access logger that counts what Envoy's own statistics of a listener do not tell."""
    tags = {
        LISTENER: listener,
        CLUSTER: "%UPSTREAM_CLUSTER%",
        CODE: "%RESPONSE_CODE%",
        FLAGS: "%RESPONSE_FLAGS%",
        ROUTE: "%ROUTE_NAME%",
        # only the mesh sets it: an inbound proxy removes a program's own
        OUTCOME: f"%RESP({OUTCOME_HEADER})%",
    }
    counter = {
        "stat": {
            "name": ENDED,
            "tags": [{"name": name, "value_format": text} for name, text in tags.items()],
        },
        "value_fixed": {"value": 1},
    }
    unusual = [{"response_flag_filter": {}}, _status("GE", 500), _status("LE", 199)]
    return {
        **typed("envoy.access_loggers.stats", StatsLogger(stat_prefix=PREFIX, counters=[counter])),
        "filter": {"or_filter": {"filters": unusual}},
    }


def error_kind(code: int, flags: str, outcome: str) -> str | None:
    """How a request failed (`bedstone.telemetry.names.ERROR_KINDS`); None if it did not.

    Args:
        code: the status that was sent; 0 for none.
        flags: Envoy's response flags, with commas between.
        outcome: what a proxy further on said of it, in `x-bedstone-outcome`; empty for nothing.

    A connection that was upgraded (101) ends when either side likes.
    """
    found = set(flags.split(","))
    for kind, signs in _KINDS:
        if found & signs and (code == 0 or code >= 500 or kind != "unavailable"):
            return kind
    if code < 500:
        return "cancelled" if found & _CANCELLED and code != 101 else None
    match outcome:
        case o if o == NOT_APPLIED:
            return "connect"
        case o if o == UNKNOWN:
            return "timeout" if code == 504 else "reset"
        case _:
            return "answer"


def route_prefix(app: str, to: str, where: str) -> str:
    """The name of a gateway route's statistics; `where` is its host and path.

    A dot would end a part of a statistic's name.
    """
    return f"{app}/{to}/{quote(where, safe='').replace('.', '%2E')}"


def route_of(prefix: str) -> tuple[str, str, str] | None:
    """The app, the workload and the host and path that `route_prefix` was made from."""
    match prefix.split("/"):
        case [app, to, where]:
            return app, to, unquote(where)
        case _:
            return None
