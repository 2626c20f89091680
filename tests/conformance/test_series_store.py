"""The store of series keeps to what readers of series promise: from memory, and from the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from bedstone.control.monitoring.reading import Reader
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.frames import Series
from bedstone.testing.series import CHECKS, START, Subject, run_check


class StoreWriter:
    """Writes as a node's collector does: what is put in a second is what there is."""

    def __init__(self, store: SeriesStore) -> None:
        self.store = store
        self.builder = FrameBuilder()
        self.values: dict[Series, float] = {}

    def put(
        self,
        name: str,
        labels: Mapping[str, str],
        kind: Literal["counter", "gauge"],
        second: int,
        value: float,
    ) -> None:
        self.values[Series(name, tuple(sorted(labels.items())), kind, "it")] = value

    def finish(self, second: int, missing: Mapping[str, str] | None = None) -> None:
        frame = self.builder.build(second, self.values, {"it": "1"}, {})
        assert self.store.ingest("writer", frame)
        self.values = {}
        self.store.finish(second, missing or {})


class Reopened:
    """A store that is closed after each second, and opened again from its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open(START)

    def open(self, second: int) -> None:
        self.store = SeriesStore(self.path, clock=lambda: second)
        self.store.open()
        self.writer = StoreWriter(self.store)

    def put(
        self,
        name: str,
        labels: Mapping[str, str],
        kind: Literal["counter", "gauge"],
        second: int,
        value: float,
    ) -> None:
        self.writer.put(name, labels, kind, second, value)

    def finish(self, second: int, missing: Mapping[str, str] | None = None) -> None:
        self.writer.finish(second, missing)
        self.store.close()
        self.open(second + 1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@pytest.mark.parametrize("check", CHECKS)
def test_from_memory(check: str, tmp_path: Path) -> None:
    with SeriesStore(tmp_path / "metrics.sqlite", clock=lambda: START) as store:
        run_check(check, Subject(StoreWriter(store), store))


@pytest.mark.parametrize("check", CHECKS)
def test_from_the_file(check: str, tmp_path: Path) -> None:
    it = Reopened(tmp_path / "metrics.sqlite")
    try:
        run_check(check, Subject(it, cast("Reader", it)))
    finally:
        it.store.close()
