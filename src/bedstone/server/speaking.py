"""Of what a node may say series: of itself, and of the instances that are placed on it. Pure."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from bedstone.telemetry.frames import Frame, Series

_log = logging.getLogger(__name__)
_PATH = ("app", "cell", "workload", "instance")

Placed = Callable[[str], str | None]
"""The node of an instance by its path; None if there is no such instance (any more)."""


def admitted(node: str, frame: Frame, placed: Placed) -> Frame:
    """A node's frame without the series of others.

    What is left out is not known to the store; so neither are the values that come for it later.
    """
    others = [number for number, series in frame.new.items() if not _own(node, series, placed)]
    if not others:
        return frame
    _log.warning(
        "series of others refused",
        extra={"node": node, "metric": frame.new[others[0]].name, "series": len(others)},
    )
    new = {number: series for number, series in frame.new.items() if number not in set(others)}
    return dataclasses.replace(frame, new=new)


def _own(node: str, series: Series, placed: Placed) -> bool:
    labels = dict(series.labels)
    if labels.get("node") != node:
        return False
    if "instance" not in labels:
        return True
    # One that is gone may still be told of by whoever had it.
    return placed("/".join(labels.get(name, "") for name in _PATH)) in (node, None)
