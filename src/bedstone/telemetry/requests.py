"""A request as one proxy saw it: how the proxy is told to write it down, and how that is read.

Rules:
- Each listener through which requests pass is a *hop*; its filter chain has the listener's name, so
  that one and the same configuration of spans and records serves all of them.
- Neither queries nor credentials are written down: of a target its path alone.
- A hop is named by its own configuration, so nobody outside has a say in whose request it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import unquote

from bedstone.telemetry.names import ERROR_KINDS

Side = Literal["gateway", "outbound", "inbound"]

SLOW_KEY = "bedstone.slow_ms"
"""Runtime key of the proxy: milliseconds from which a request is written down, whatever came."""
SLOW_MILLISECONDS = 500
KEPT_KEY = "bedstone.kept"
"""Runtime key: the share of failed and slow requests that are written down, 100 % unless there are
more than the collector takes."""
TAP_KEY = "bedstone.tap"
"""Runtime key: the share of all requests that are written down for who looks on; 0 % by itself."""
SAMPLING_KEY = "tracing.random_sampling"
"""Runtime key: the share of requests, of those not part of a trace yet, whose spans are made."""

HOP_TAG = "bedstone.hop"
CALLER_TAG = "bedstone.caller"
ROUTE_TAG = "bedstone.route"
"""Attributes of a proxy's spans, as they come from it."""

_FIELDS = (
    "%FILTER_CHAIN_NAME%",
    "%REQ(:METHOD)%",
    "%RESPONSE_CODE%",
    "%RESPONSE_FLAGS%",
    "%GRPC_STATUS_NUMBER%",
    "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
    "%DURATION%",
    "%BYTES_RECEIVED%",
    "%BYTES_SENT%",
    "%UPSTREAM_CLUSTER_RAW%",
    "%DOWNSTREAM_PEER_URI_SAN%",
    "%ROUTE_NAME%",
    "%RESPONSE_CODE_DETAILS%",
    "%PATH(NQ)%",
)
RECORD = "\t".join(_FIELDS)
"""Envoy's format of a record. The path comes last, and no field of another's making before it: a
path that has a tab in it cannot shift the others."""

_TIMED_OUT = frozenset({"UT", "SI", "DT", "UMSDR"})
_FLAG_KINDS = {
    **dict.fromkeys(_TIMED_OUT, "timeout"),
    "UF": "connect",
    **dict.fromkeys(("UC", "UR", "LR", "UPE"), "reset"),
    "UO": "overflow",
    **dict.fromkeys(("UH", "NR", "NC"), "unavailable"),
    "UAEX": "denied",
    **dict.fromkeys(("DC", "DR"), "cancelled"),
}
_GRPC_FAILURES = frozenset({2, 4, 12, 13, 14, 15})
"""Statuses that are a server's failure, as OpenTelemetry's conventions for RPC have it."""
_NONE = "-"


class Hop(NamedTuple):
    """Which listener a request passed.

    `identity` is the workload whose proxy it is, or `gateway` or `operator`; `instance` is empty
    where the listener is not one instance's; `target` is the callee where the listener fixes it.
    """

    side: Side
    app: str
    cell: str
    identity: str
    instance: str = ""
    target: str = ""


def hop(name: str) -> Hop | None:
    """The hop that is a listener's name; None if it is of another kind."""
    match name.split("/"):
        case ["gateway", app]:
            return Hop("gateway", app, "default", "gateway")
        case ["inbound", app, cell, workload, instance]:
            return Hop("inbound", app, cell, workload, instance)
        case ["outbound", app, cell, workload, instance]:
            return Hop("outbound", app, cell, workload, instance)
        case ["service", app, cell, workload, instance, callee]:
            return Hop("outbound", app, cell, workload, instance, callee)
        case ["connect", app, cell, identity] | ["call", _, app, cell, identity]:
            return Hop("outbound", app, cell, identity)
        case _:
            return None


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """One request at one hop.

    Args:
        hop: where.
        source: the caller: a workload, `gateway`, `operator`; empty if unknown.
        target: the callee; empty where the request was refused before one was known.
        method: of HTTP.
        path: without its query.
        route: the gateway's, as host and path.
        status: of HTTP; 0 if there was no answer.
        flags: the proxy's response flags, separated by commas.
        grpc: the status of a gRPC call.
        details: why the proxy answered as it did.
        start: seconds since the epoch.
        seconds: until the answer's last byte, or the end.
        bytes_in: of the request's body.
        bytes_out: of the answer's.
        trace: 32 hexadecimal digits; empty if the request has no trace.
        span: 16 hexadecimal digits: the proxy's own span, made or not.
    """

    hop: Hop
    source: str
    target: str
    method: str
    path: str
    route: str
    status: int
    flags: str
    grpc: int | None
    details: str
    start: float
    seconds: float
    bytes_in: int
    bytes_out: int
    trace: str
    span: str

    @property
    def kind(self) -> str:
        """Which of `ERROR_KINDS` it is; empty for a success."""
        return error_kind(self.status, self.flags, self.details, self.grpc)


def parse(text: str, *, start: float, trace: str, span: str) -> ProxyRequest | None:
    """What a proxy wrote down as `RECORD`; None if it is none of ours."""
    parts = text.split("\t", len(_FIELDS) - 1)
    if len(parts) != len(_FIELDS):
        return None
    name, method, status, flags, grpc, micros, millis, taken, sent, cluster, peer, *rest = (
        "" if part == _NONE else part for part in parts
    )
    named, details, path = rest
    where = hop(name)
    if where is None or not status.isdigit():
        return None
    seconds = int(micros) / 1e6 if micros.isdigit() else _number(millis) / 1e3
    source, target = ends(where, cluster, peer)
    return ProxyRequest(
        where,
        source,
        target,
        method,
        path,
        route(named),
        int(status),
        flags,
        int(grpc) if grpc.isdigit() else None,
        details,
        start,
        seconds,
        _number(taken),
        _number(sent),
        trace,
        span,
    )


def route(name: str) -> str:
    """The host and path of a route of the gateway, from its name (`APP/WORKLOAD/WHERE`, quoted)."""
    return unquote(name.rpartition("/")[2])


def ends(where: Hop, cluster: str, peer: str) -> tuple[str, str]:
    """Who called whom, of a request at a hop.

    Args:
        where: the hop.
        cluster: to which it went (`to/APP/CELL/CALLER/CALLEE` from a caller's).
        peer: the SPIFFE id of who came, at an inbound hop.
    """
    if where.side == "inbound":
        return peer.rpartition("/")[2], where.identity
    called = cluster.split("/")
    target = called[4] if len(called) == 5 and called[0] == "to" else where.target
    return where.identity, target


def error_kind(status: int, flags: str, details: str, grpc: int | None = None) -> str:
    """Why a request failed, one of `ERROR_KINDS`; empty for one that did not.

    A caller that goes away after an answer has begun (a browser that leaves a stream of events) is
    no failure.
    """
    for flag in flags.split(","):
        kind = _FLAG_KINDS.get(flag, "")
        if kind == "cancelled" and 0 < status < 500:
            continue
        if kind:
            return kind
    if status >= 500 or status == 0 or (grpc is not None and grpc in _GRPC_FAILURES):
        return "answer" if status else "reset"
    if status == 403 and details.startswith("rbac_access_denied"):
        return "denied"
    return ""


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


assert {*_FLAG_KINDS.values(), "answer"} <= {*ERROR_KINDS}  # noqa: S101 - of this file alone
