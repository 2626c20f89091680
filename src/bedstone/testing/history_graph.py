"""The dependency graph of a history, and its cycles: each kind with a shortest witness.

Rules:
- A cycle lies within one strongly connected component; elsewhere nothing is searched, so that a
  clean history of many transactions is checked at once.
- Pure; names of transactions only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias


class Edge(StrEnum):
    """How one transaction comes before another."""

    WW = "ww"
    WR = "wr"
    RW = "rw"


@dataclass(frozen=True, slots=True)
class Step:
    """One edge of a witness."""

    source: str
    edge: Edge
    target: str
    register: str


Graph: TypeAlias = dict[str, dict[str, dict[Edge, str]]]
"""From one transaction to another: the kinds of edges, each with a register that shows it."""


def cycles(whole: Graph) -> Iterable[tuple[str, tuple[Step, ...]]]:
    """One cycle for each kind that there is, by the anomaly's name."""
    graph = _knots(whole)
    for name, allowed, must in (
        ("G0", {Edge.WW}, Edge.WW),
        ("G1c", {Edge.WW, Edge.WR}, Edge.WR),
    ):
        for step in _edges(graph, {must}):
            if (back := _path(graph, step.target, step.source, allowed)) is not None:
                yield name, (step, *back)
                break
    single: tuple[Step, ...] | None = None
    several: tuple[Step, ...] | None = None
    for step in _edges(graph, {Edge.RW}):
        if single is not None and several is not None:
            break
        back = _path(graph, step.target, step.source, {Edge.WW, Edge.WR})
        if back is not None:
            single = single or (step, *back)
            continue
        back = _path(graph, step.target, step.source, set(Edge))
        if back is not None and several is None:
            several = (step, *back)
    if single is not None:
        yield "G-single", single
    if several is not None:
        yield "G2-item", several


def _knots(graph: Graph) -> Graph:
    """The graph without the edges that lead from one strongly connected component to another."""
    component = _components(graph)
    return {
        source: {
            target: edges
            for target, edges in targets.items()
            if component[source] == component[target]
        }
        for source, targets in graph.items()
    }


def _components(graph: Graph) -> dict[str, str]:
    """Each transaction's component, by one of its members (Kosaraju)."""
    backwards: dict[str, list[str]] = {name: [] for name in graph}
    for source, targets in graph.items():
        for target in targets:
            backwards[target].append(source)
    component: dict[str, str] = {}
    for root in reversed(_finished(graph)):
        if root in component:
            continue
        component[root] = root
        stack = [root]
        while stack:
            for source in backwards[stack.pop()]:
                if source not in component:
                    component[source] = root
                    stack.append(source)
    return component


def _finished(graph: Graph) -> list[str]:
    """Depth first: all, in the order in which they were left."""
    left: list[str] = []
    known: set[str] = set()
    for root in graph:
        if root in known:
            continue
        known.add(root)
        stack = [(root, iter(graph[root]))]
        while stack:
            here, targets = stack[-1]
            target = next((name for name in targets if name not in known), None)
            if target is None:
                left.append(here)
                stack.pop()
            else:
                known.add(target)
                stack.append((target, iter(graph[target])))
    return left


def _edges(graph: Graph, kinds: set[Edge]) -> Iterable[Step]:
    for source, targets in graph.items():
        for target, edges in targets.items():
            for edge, register in edges.items():
                if edge in kinds:
                    yield Step(source, edge, target, register)


def _path(graph: Graph, start: str, end: str, allowed: set[Edge]) -> tuple[Step, ...] | None:
    """A shortest way by allowed edges; those without RW are preferred where there are several."""
    came: dict[str, Step] = {}
    queue = deque([start])
    while queue:
        here = queue.popleft()
        for target, edges in graph[here].items():
            kind = next((edge for edge in Edge if edge in edges and edge in allowed), None)
            if kind is None or target in came or target == start:
                continue
            came[target] = Step(here, kind, target, edges[kind])
            if target == end:
                way = [came[end]]
                while way[0].source != start:
                    way.insert(0, came[way[0].source])
                return tuple(way)
            queue.append(target)
    return None
