"""Totals: what each node's frames add up to, with the resets of counters taken out.

A counter stands at `offset + raw`: what it counted in earlier lives of its source, and in this one.

What becomes of a counter's value:

1. Its source's incarnation changed, its value fell, or it was gone and has come again: it began at
   zero. What it stood at goes into the offset.
2. It is new, in a source that was read before (in whatever life), or that is new in a node that
   was: it began at zero. What it counted since is an increase.
3. It is new, and so is the node; or its source was never read since the node is known; or its
   source's series did not all fit: nobody knows what it stood at before. Its value is where it is
   counted from, and no increase.

A counter that began (1, if it was gone, and 2) is given what it stood at, a 0 if it is new, at the
second before its first value: so the increase over any span of complete seconds is what was counted
in them, exactly.

A node's frames are taken when their second is finished, in their order. A frame that comes too late
for its second changes what is known, and not what was stored.

The state outlives the process (`dump` and `restore`): whoever comes back with the same incarnations
has lost nothing, since its counters went on. Series whose node has not come back are *detached*:
they are not gone until their source answers without them.

Not safe for threads: the store's lock guards it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bedstone.control.monitoring.catalogue import Catalogue, Entry
from bedstone.control.monitoring.rows import Rows
from bedstone.control.monitoring.sealing import Columns
from bedstone.control.monitoring.shares import Shares
from bedstone.telemetry.frame_builder import follows
from bedstone.telemetry.frames import Frame, Series

_log = logging.getLogger(__name__)

QUEUE: Final = 16
"""Frames of one node that wait for their second."""
HELD: Final = 10
"""Seconds after which a series that had no value may be counted by another source."""
_NAMED: Final = 1000  # metrics whose refusals are counted apart
_ROOM: Final = 0.9
"""Refused series are asked for again once so much of the cap is in use."""


@dataclass(slots=True)
class Source:
    """What counts series and begins anew as one.

    Attributes:
        number: where it stands in the list of sources.
        incarnation: of its life; None if it was never read, empty if nobody said it.
        refused: some of its series did not fit.
        detached: ids of live series that it has not confirmed since its node came back.
        seen: the second in which it last was in a frame.
    """

    number: int
    node: str
    name: str
    incarnation: str | None = None
    refused: bool = False
    detached: set[int] = field(default_factory=set)
    seen: int = 0


@dataclass(slots=True)
class Node:
    """What is known of a node.

    Attributes:
        number: of the node, for as long as the process lives.
        sources: its sources, by name.
        known: a frame of it was taken, at any time.
        tail: the sequence of the last frame that came; -1 if a complete one is needed.
        queue: frames that wait for their second.
        rows: the row of each of its numbers; -1 for a series that was refused.
        second: of the last frame taken.
        missing: of the last frame taken.
        refused: some of its series were.
    """

    name: str
    number: int
    sources: dict[str, Source] = field(default_factory=dict)
    known: bool = False
    tail: int = -1
    queue: list[Frame] = field(default_factory=list)
    rows: dict[int, int] = field(default_factory=dict)
    second: int = 0
    missing: Mapping[str, str] = field(default_factory=dict)
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """One second.

    Attributes:
        values: by row, NaN where there is none.
        begun: rows of counters that began.
        carries: what each of them stood at before.
        missing: nodes, and sources as `NODE/SOURCE`, that did not answer, with why.
    """

    values: NDArray[np.float64]
    begun: NDArray[np.int64]
    carries: NDArray[np.float64]
    missing: dict[str, str]


class Totals:
    """The state of all nodes' series.

    Args:
        catalogue: where new series are entered.
        cap: at most so many series have a row.
    """

    def __init__(self, catalogue: Catalogue, cap: int) -> None:
        self.rows = Rows()
        self.sources: list[Source | None] = []
        self.dropped: Counter[tuple[str, str]] = Counter()
        """How many series were refused, by metric and reason (see `bedstone.telemetry.names`)."""
        self.unwritten: list[Entry] = []
        """Entries without a row that have changed; whoever writes them takes them away."""
        self._catalogue = catalogue
        self._cap = cap
        self._nodes: dict[str, Node] = {}
        self._owners = np.empty(0, np.int64)  # the number of each source's node
        self._shares = Shares(cap)
        self._last = 0

    def put(self, name: str, frame: Frame) -> bool:
        """Take a node's frame; False if one before it is missing, or asked for again."""
        node = self._node(name)
        if len(node.queue) >= QUEUE:
            node.queue, node.tail = [], -1
        room = node.refused and self.rows.count < self._cap * _ROOM
        if not follows(node.tail, frame) or (room and frame.sequence):
            node.tail = -1
            return False
        node.queue.append(frame)
        node.tail = frame.sequence
        return True

    def finish(self, second: int, missing: Mapping[str, str]) -> Finished:
        """What is known of a second; it is later than the one before."""
        for node in self._nodes.values():
            while node.queue and node.queue[0].second <= second:
                self._apply(node, node.queue.pop(0))
        gaps = dict(missing)
        answered = np.zeros(len(self.sources), np.bool_)
        for node in self._nodes.values():
            if node.second != second or node.name in missing:
                continue
            gaps |= {f"{node.name}/{name}": why for name, why in node.missing.items()}
            for source in node.sources.values():
                answered[source.number] = source.name not in node.missing
        rows, size = self.rows, len(self.rows)
        shown = rows.live[:size] & rows.has[:size]
        shown[shown] = answered[rows.source[:size][shown]]
        values = np.full(size, np.nan)
        values[shown] = rows.offset[:size][shown] + rows.raw[:size][shown]
        begun = np.flatnonzero(shown & ~np.isnan(rows.carry[:size]))
        carries = rows.carry[begun]
        rows.carry[begun] = np.nan
        new = np.flatnonzero(shown & (rows.first[:size] == 0))
        rows.first[new] = second
        rows.first[begun] = np.where(rows.first[begun] == second, second - 1, rows.first[begun])
        rows.last[:size][shown] = second
        self._last = second
        return Finished(values, begun, carries, gaps)

    def _node(self, name: str) -> Node:
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = Node(name, len(self._nodes))
        return node

    def _apply(self, node: Node, frame: Frame) -> None:
        if frame.sequence == 0:
            self._detach(node)
        if frame.new:
            self._shares.count(self.rows, self.sources)
        unknown = self._note_sources(node, frame)
        for number in frame.gone:
            row = node.rows.pop(number, -1)
            if (
                row >= 0
                and self.rows.live[row]
                and self._owners[self.rows.source[row]] == node.number
            ):
                self._end_row(row)
        for number, series in frame.new.items():
            source = self._source(node, series.source, unknown)
            row = self._find_row(node, source, series, baseline=source.number in unknown)
            node.rows[number] = row
        self._take_values(node, frame.values)
        for source in node.sources.values():
            if source.name not in frame.missing:
                if source.incarnation is None:
                    source.incarnation = ""
                for number in source.detached:
                    self._end(self._catalogue[number])
                source.detached.clear()
        node.known = True
        node.second, node.missing = frame.second, frame.missing

    def _note_sources(self, node: Node, frame: Frame) -> set[int]:
        """Take the incarnations; the numbers of those of which nobody knows what was before."""
        unknown: set[int] = set()
        for name in frame.missing:
            if not node.known:
                self._source(node, name, set())
        for source in node.sources.values():
            if source.incarnation is None or source.refused:
                unknown.add(source.number)
            if frame.sequence == 0 and source.name not in frame.missing:
                source.refused = False
        for name, incarnation in frame.incarnations.items():
            source = self._source(node, name, unknown)
            if source.incarnation and source.incarnation != incarnation:
                self._begin_anew(source)
                unknown.discard(source.number)
            source.incarnation = incarnation
            source.seen = frame.second
        return unknown

    def _source(self, node: Node, name: str, unknown: set[int]) -> Source:
        source = node.sources.get(name)
        if source is None:
            source = self._add_source(node, name)
            if node.known:
                source.incarnation = ""
            else:
                unknown.add(source.number)
        return source

    def _add_source(self, node: Node, name: str) -> Source:
        free = next((at for at, it in enumerate(self.sources) if it is None), len(self.sources))
        source = node.sources[name] = Source(free, node.name, name)
        if free == len(self.sources):
            self.sources.append(source)
            self._owners = np.append(self._owners, node.number)
        else:
            self.sources[free] = source
            self._owners[free] = node.number
        return source

    def _begin_anew(self, source: Source) -> None:
        rows, size = self.rows, len(self.rows)
        here = np.flatnonzero(
            rows.live[:size] & rows.counter[:size] & (rows.source[:size] == source.number)
        )
        rows.offset[here] += rows.raw[here]
        rows.raw[here] = 0.0
        for number in source.detached:
            entry = self._catalogue[number]
            if entry.row < 0 and entry.kind == "counter":
                entry.offset, entry.raw = entry.offset + entry.raw, 0.0
                self.unwritten.append(entry)
        source.refused = False

    def _detach(self, node: Node) -> None:
        rows, size = self.rows, len(self.rows)
        for source in node.sources.values():
            here = np.flatnonzero(rows.live[:size] & (rows.source[:size] == source.number))
            rows.has[here] = False
            source.detached.update(rows.ids[here].tolist())
        node.rows = {}
        node.refused = False

    def _find_row(self, node: Node, source: Source, series: Series, *, baseline: bool) -> int:
        """The row of a series that a source says is new to its number; -1 if it is refused."""
        rows = self.rows
        entry = self._catalogue.find(series.name, series.labels)
        if entry is not None and entry.kind != series.kind:
            return self._refuse(node, series, "kind")
        if (entry is None or entry.row < 0) and (reason := self._no_room(source)):
            return self._refuse(node, series, reason)
        if entry is None:
            return self._add_row(source, series, baseline=baseline)
        row = entry.row if entry.row >= 0 else self.attach(entry)
        if rows.live[row]:
            if rows.source[row] == source.number:
                source.detached.discard(entry.id)
                return row
            if self._is_held(row, entry, node):
                return self._refuse(node, series, "duplicate")
            self._take_away(row, entry)
        if rows.counter[row] and baseline:
            rows.baseline[row] = True
        elif rows.counter[row] and np.isnan(rows.carry[row]):
            rows.carry[row] = rows.offset[row]
        rows.source[row], rows.live[row] = source.number, True
        return row

    def _no_room(self, source: Source) -> str:
        """Why a source's series gets no row; empty if it does."""
        if self.rows.count >= self._cap:
            source.refused = True
            return "series"
        if not self._shares.take(source.name):
            source.refused = True
            return "share"
        return ""

    def _add_row(self, source: Source, series: Series, *, baseline: bool) -> int:
        row = self.attach(self._catalogue.add(series.name, series.labels, series.kind))
        # It stands at its value (rule 3), or began at 0 (rule 2).
        if self.rows.counter[row] and not baseline:
            self.rows.carry[row] = 0.0
        self.rows.source[row], self.rows.live[row] = source.number, True
        return row

    def _is_held(self, row: int, entry: Entry, node: Node) -> bool:
        """Whether another source than the one that says a series counts it."""
        rows = self.rows
        holder = self.sources[rows.source[row]]
        if holder is None or (entry.id in holder.detached and holder.node == node.name):
            return False
        return rows.last[row] == 0 or bool(rows.last[row] > self._last - HELD)

    def _take_away(self, row: int, entry: Entry) -> None:
        holder = self.sources[self.rows.source[row]]
        if holder is not None:
            holder.detached.discard(entry.id)
            numbers = self._nodes[holder.node].rows
            for number in [number for number, it in numbers.items() if it == row]:
                numbers[number] = -1
        self._end_row(row)

    def _refuse(self, node: Node, series: Series, reason: str) -> int:
        # What an application brings about by itself is not asked for again each second.
        node.refused |= reason in {"series", "duplicate"}
        name = series.name
        if (name, reason) not in self.dropped:
            if len(self.dropped) >= _NAMED:
                name = "others"
            else:
                _log.warning(
                    "series refused", extra={"metric": name, "reason": reason, "node": node.name}
                )
        self.dropped[name, reason] += 1
        return -1

    def _take_values(self, node: Node, values: Mapping[int, float]) -> None:
        rows = self.rows
        get = node.rows.get
        here = np.fromiter((get(number, -1) for number in values), np.int64, len(values))
        new = np.fromiter(values.values(), np.float64, len(values))
        wanted = np.flatnonzero(here >= 0)
        if wanted.size:
            at = here[wanted]
            wanted = wanted[rows.live[at] & (self._owners[rows.source[at]] == node.number)]
        here, new = here[wanted], new[wanted]
        counter = rows.counter[here]
        # A counter that is no number, or below zero, says nothing; neither does a gauge of NaN.
        usable = np.where(counter, np.isfinite(new) & (new >= 0), ~np.isnan(new))
        rows.has[here] = usable
        here, new, counter = here[usable], new[usable], counter[usable]
        base = counter & rows.baseline[here]
        rows.offset[here[base]] -= new[base]
        rows.raw[here[base]] = new[base]
        rows.baseline[here[base]] = False
        fell = counter & (new < rows.raw[here])
        rows.offset[here[fell]] += rows.raw[here[fell]]
        rows.raw[here] = new

    def _end(self, entry: Entry) -> None:
        if entry.row >= 0:
            self._end_row(entry.row)
        elif entry.live:
            entry.live = False
            if entry.kind == "counter":
                entry.offset, entry.raw = entry.offset + entry.raw, 0.0
            self.unwritten.append(entry)

    def _end_row(self, row: int) -> None:
        rows = self.rows
        rows.live[row] = rows.has[row] = False
        if rows.counter[row]:
            rows.offset[row] += rows.raw[row]
        rows.raw[row] = 0.0

    def columns(self, rows: NDArray[np.int64]) -> Columns:
        """What sealing has to know of rows."""
        it = self.rows
        return Columns(it.ids, it.metric, it.source, it.first, it.counter)[rows]

    def attach(self, entry: Entry) -> int:
        """Give an entry a row."""
        rows = self.rows
        row = rows.take(entry.id, metric=entry.metric, counter=entry.kind == "counter")
        rows.offset[row], rows.raw[row] = entry.offset, entry.raw
        rows.source[row], rows.live[row] = entry.source, entry.live
        rows.first[row], rows.last[row] = entry.first, entry.last
        entry.row = row
        return row

    def park(self, before: int) -> None:
        """Take the rows from the series without a value since a second; the entries keep the rest.

        Only of series that are gone or detached: of others, a number of their node's stands for it.
        A node that has not answered since then is to say everything again.
        """
        for node in self._nodes.values():
            if node.rows and node.second < before:
                self._detach(node)
                node.queue, node.tail = [], -1
        rows, size = self.rows, len(self.rows)
        idle = np.flatnonzero(
            (rows.ids[:size] >= 0)
            & (rows.last[:size] < before)
            & np.isnan(rows.carry[:size])
            & ~rows.baseline[:size]
            & ~rows.has[:size]
        )
        for row in idle.tolist():
            entry = self._catalogue[int(rows.ids[row])]
            source = self.sources[rows.source[row]]
            if rows.live[row] and (source is None or entry.id not in source.detached):
                continue
            entry.first, entry.last = int(rows.first[row]), int(rows.last[row])
            entry.offset, entry.raw = float(rows.offset[row]), float(rows.raw[row])
            entry.source, entry.live = int(rows.source[row]), bool(rows.live[row])
            entry.row = -1
            rows.release(row)
            self.unwritten.append(entry)

    def forget(self, entries: list[Entry]) -> None:
        """Let go of entries that are about to be forgotten; they have no row."""
        for entry in entries:
            if entry.live and (source := self.sources[entry.source]) is not None:
                source.detached.discard(entry.id)

    def prune(self, before: int) -> None:
        """Forget the sources that count nothing, and have not begun since a second.

        If one comes back, its series began at zero all the same (rule 2 as well as rule 1).
        """
        rows, size = self.rows, len(self.rows)
        used = set(np.unique(rows.source[:size][rows.live[:size]]).tolist())
        for number, source in enumerate(self.sources):
            if (
                source is not None
                and number not in used
                and source.incarnation is not None
                and source.seen < before
                and not source.refused
                and not source.detached
            ):
                del self._nodes[source.node].sources[source.name]
                self.sources[number] = None

    def dump(self) -> dict[str, Any]:
        """What to keep of the nodes and sources, as JSON; the rows are kept beside it."""
        return {
            "nodes": [node.name for node in self._nodes.values() if node.known],
            "sources": [
                source and [source.node, source.name, source.incarnation, source.refused]
                for source in self.sources
            ],
        }

    def restore(self, state: Mapping[str, Any], last: int) -> None:
        """Go on from what was kept; the rows and the entries are there already."""
        self._last = last
        for name in state["nodes"]:
            self._node(name).known = True
        self._owners = np.zeros(len(state["sources"]), np.int64)
        for number, kept in enumerate(state["sources"]):
            if kept is None:
                self.sources.append(None)
                continue
            name, source, incarnation, refused = kept
            node = self._node(name)
            node.sources[source] = Source(number, name, source, incarnation, refused, seen=last)
            self.sources.append(node.sources[source])
            self._owners[number] = node.number
        rows = self.rows
        rows.has[:] = False
        for entry in self._catalogue:
            row = entry.row
            live = rows.live[row] if row >= 0 else entry.live
            holder = self.sources[rows.source[row] if row >= 0 else entry.source] if live else None
            if holder is not None:
                holder.detached.add(entry.id)
