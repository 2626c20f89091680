"""A trace as a whole: its spans, each once and each below its parent, and what is said of it.

Pure. Two rules beyond OpenTelemetry's:
- A proxy that makes no span of a request may still write it down, since it failed or was slow
  (origin `access-log`). Where both came, the span stays.
- Such a request has no parent of its own. The parent is then the hop that led to it: of a call that
  comes in, the call that went out from its caller to it at that time; of a call that goes out, the
  request that its instance was serving at that time. Where several might be, the shortest one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from bedstone.control.monitoring.traces.spans import Span
from bedstone.model.traces import TraceSummary

Kept = Literal["error", "slow", "sampled"]
_TOLERANCE = 5_000_000
"""Nanoseconds by which the clocks of two nodes may make a call begin before its cause."""
_RANK = {"access-log": 0, "proxy": 1, "application": 2}


def whole(spans: Iterable[Span]) -> list[Span]:
    """The spans of one trace by start, each once, what was written down below its parent."""
    once: dict[bytes, Span] = {}
    for span in spans:
        known = once.get(span.span)
        if known is None or _RANK[span.whose.origin] > _RANK[known.whose.origin]:
            once[span.span] = span
    ordered = sorted(once.values(), key=lambda span: (span.start, -span.end))
    hops = [span for span in ordered if span.whose.origin != "application"]
    return [_placed(span, ordered, hops) for span in ordered]


def _placed(span: Span, spans: Sequence[Span], hops: Sequence[Span]) -> Span:
    if span.whose.origin != "access-log" or span.parent:
        return span
    said = _texts(span)
    match said.get("bedstone.side"):
        case "inbound":
            causes = [
                hop
                for hop in hops
                if _calls(hop, said.get("bedstone.caller", ""), span.whose.service)
            ]
        case "outbound":
            causes = [
                other
                for other in spans
                if other.kind == _SERVER
                and (other.whose.app, other.whose.service) == (span.whose.app, span.whose.service)
                and span.whose.instance in ("", other.whose.instance)
            ]
        case _:
            return span
    around = [
        cause
        for cause in causes
        if cause.span != span.span
        and cause.start - _TOLERANCE <= span.start
        and span.end <= cause.end + _TOLERANCE
    ]
    if not around:
        return span
    return span.below(min(around, key=lambda cause: cause.end - cause.start).span)


_SERVER = 2


def _calls(hop: Span, caller: str, callee: str) -> bool:
    said = _texts(hop)
    return (
        said.get("bedstone.side") in ("gateway", "outbound")
        and hop.whose.service == caller
        and said.get("bedstone.callee") == callee
    )


def _texts(span: Span) -> dict[str, Any]:
    return {item.key: item.value.string_value for item in span.data.attributes}


def root(spans: Sequence[Span]) -> Span:
    """The first span: the one whose parent is not there; the earliest, should there be several."""
    known = {span.span for span in spans}
    tops = [span for span in spans if span.parent not in known]
    # a gateway's is the first of what we see, also where the trace goes on from outside
    return min(tops or spans, key=lambda span: (span.whose.service != "gateway", span.start))


def summary(spans: Sequence[Span], kept: Kept) -> TraceSummary:
    """What is said of a trace in one line."""
    first = root(spans)
    start = min(span.start for span in spans)
    names = sorted({span.whose.service for span in spans if span.whose.service})
    return TraceSummary(
        trace=first.trace.hex(),
        app=first.whose.app,
        name=first.name,
        services=tuple(names),
        start=start / 1e9,
        seconds=(max(span.end for span in spans) - start) / 1e9,
        spans=len(spans),
        errors=sum(span.error for span in spans),
        status=first.status,
        kept=kept,
    )
