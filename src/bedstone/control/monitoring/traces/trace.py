"""A trace as a whole: its spans, each once and each below its parent, and what is said of it.

Pure. Two rules beyond OpenTelemetry's:
- A proxy that makes no span of a request may still write it down, since it failed or was slow
  (origin `access-log`). Where both came, the span stays.
- Such a request has no parent of its own. The parent is then the hop that led to it: of a call that
  comes in, the call that went out from its caller to it at that time; of a call that goes out, the
  request that its instance was serving at that time. Where several might be, the shortest one.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from bedstone.control.monitoring.traces.spans import Span
from bedstone.model.traces import TraceSummary

Kept = Literal["error", "slow", "sampled"]
_TOLERANCE = 5_000_000
"""Nanoseconds by which the clocks of two nodes may make a call begin before its cause."""
_NEAR = 200
_SERVER = 2
_RANK = {"access-log": 0, "proxy": 1, "application": 2}


def whole(spans: Iterable[Span]) -> list[Span]:
    """The spans of one trace by start, each once, what was written down below its parent."""
    once: dict[bytes, Span] = {}
    for span in spans:
        known = once.get(span.span)
        if known is None or _RANK[span.whose.origin] > _RANK[known.whose.origin]:
            once[span.span] = span
    ordered = sorted(once.values(), key=lambda span: (span.start, -span.end))
    above = {span.span: span.parent for span in ordered}
    causes = _Causes(ordered)
    placed = []
    for span in ordered:
        found = causes.of(span, above) if _parentless(span) else None
        if found is not None:
            above[span.span] = found
            span = span.below(found)  # noqa: PLW2901 - the same span
        placed.append(span)
    return placed


def _parentless(span: Span) -> bool:
    return span.whose.origin == "access-log" and not span.parent


class _Causes:
    """What may have led to what, of the spans of one trace.

    Whoever calls chooses the trace, so that one may have thousands of calls of the same kind: of
    these, the last `_NEAR` that began before a request are looked at.
    """

    def __init__(self, ordered: Sequence[Span]) -> None:
        self._said = {
            span.span: _texts(span) for span in ordered if span.whose.origin != "application"
        }
        self._found: defaultdict[tuple[str, ...], list[Span]] = defaultdict(list)
        for span in ordered:
            whose = span.whose
            said = self._said.get(span.span, {})
            if said.get("bedstone.side") in ("gateway", "outbound"):
                callee = said.get("bedstone.callee", "")
                self._found["calls", whose.service, callee].append(span)
            if span.kind == _SERVER:
                self._found["serves", whose.app, whose.service].append(span)
                if whose.instance:
                    self._found["serves", whose.app, whose.service, whose.instance].append(span)
        self._starts = {key: [span.start for span in found] for key, found in self._found.items()}

    def of(self, span: Span, above: Mapping[bytes, bytes]) -> bytes | None:
        """The span that led to a request that was written down; None where none is known."""
        whose = span.whose
        said = self._said[span.span]
        key: tuple[str, ...]
        match said.get("bedstone.side"):
            case "inbound":
                key = ("calls", said.get("bedstone.caller", ""), whose.service)
            case "outbound":
                key = ("serves", whose.app, whose.service, whose.instance)[
                    : 4 if whose.instance else 3
                ]
            case _:
                return None
        upto = bisect.bisect_right(self._starts.get(key, ()), span.start + _TOLERANCE)
        around = [
            cause
            for cause in self._found.get(key, ())[max(0, upto - _NEAR) : upto]
            if span.end <= cause.end + _TOLERANCE
        ]
        for cause in sorted(around, key=lambda cause: cause.end - cause.start):
            if not _is_below(cause.span, span.span, above):
                return cause.span
        return None


def _is_below(span: bytes, other: bytes, above: Mapping[bytes, bytes]) -> bool:
    """Whether a span is another, or somewhere below it."""
    seen: set[bytes] = set()
    while span and span not in seen:
        if span == other:
            return True
        seen.add(span)
        span = above.get(span, b"")
    return False


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
