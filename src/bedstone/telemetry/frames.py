"""Frames: what a node's collector says of one second, and their encoding.

A frame carries only what changed since the frame before it, so its size follows the change.

Rules:
- A frame of sequence 0 replaces everything that was known of the node. Any other follows the frame
  with the sequence before it; a receiver that has missed one asks for a frame of sequence 0.
- A counter's value is what its source counted since the source itself began (its *incarnation*).
  When the incarnation of a source changes, its counters began anew at zero.
- A source that did not answer in time is named in `missing`: the second is incomplete. Its values
  are simply not there, and come with the next second that it answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Labels = tuple[tuple[str, str], ...]
"""Label pairs, sorted by name, without the metric's name."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a node.

    Args:
        name: the metric's (`…_bucket`, `…_sum`, `…_count` for a histogram's).
        labels: its labels.
        kind: what its values mean.
        source: what counts it and begins anew as one: `envoy`, `node`, `instance/APP/CELL/…`.
    """

    name: str
    labels: Labels
    kind: Literal["counter", "gauge"]
    source: str


@dataclass(frozen=True, slots=True)
class Frame:
    """What a node says of one second.

    Args:
        second: since the epoch; the values are as of its end.
        sequence: 0 for a complete frame, else one more than the frame before.
        new: series seen for the first time, by a number of the sender's that is never used again.
        gone: numbers of series that exist no more.
        incarnations: for each source that is new or began anew, what tells its lives apart.
        values: by number, those that changed.
        missing: for each source that did not answer, why.
    """

    second: int
    sequence: int
    new: Mapping[int, Series] = field(default_factory=dict)
    gone: tuple[int, ...] = ()
    incarnations: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
