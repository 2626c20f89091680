"""What becomes of a counter, rule by rule (see `totals`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bedstone.control.monitoring.reading import Matcher
from bedstone.control.monitoring.series_batch import Retention
from bedstone.control.monitoring.series_store import SeriesStore
from bedstone.telemetry.frame_builder import FrameBuilder
from bedstone.telemetry.frames import Series

BEGIN = 1_800_000_000


class Scene:
    """A store with one node, told second by second."""

    def __init__(self, path: Path, *, cap: int = 1000) -> None:
        self.store = SeriesStore(path, cap=cap, clock=lambda: float(BEGIN))
        self.store.open()
        self.builders = {"n": FrameBuilder()}
        self.second = BEGIN

    def tell(
        self,
        values: dict[str, float],
        life: str = "1",
        *,
        node: str = "n",
        source: str = "envoy",
        missing: tuple[str, ...] = (),
        late: bool = False,
    ) -> None:
        """One second: the counters of one source, and which sources did not answer."""
        self.second += 1
        series = {Series(it, (), "counter", source): value for it, value in values.items()}
        lives = {source: life} if source not in missing else {}
        builder = self.builders.setdefault(node, FrameBuilder())
        if late:
            self.store.finish(self.second, {node: "late"})
        frame = builder.build(self.second, series, lives, dict.fromkeys(missing, "late"))
        if not self.store.ingest(node, frame):
            lost = dict.fromkeys(missing, "late")
            frame = builder.build(self.second, series, lives, lost, full=True)
            assert self.store.ingest(node, frame)
        self.store.finish(self.second, {})

    def row(self, name: str = "x_total") -> list[float | None]:
        """Its values, from the first second on; None where there is none."""
        found = self.store.select([Matcher("__name__", "=", name)], BEGIN + 1, self.store.last(), 1)
        return [None if np.isnan(it) else it for it in found.values[0].tolist()]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "metrics.sqlite")


def test_what_was_counted_before_the_node_was_known_is_no_increase(scene: Scene) -> None:
    scene.tell({"x_total": 1000})
    scene.tell({"x_total": 1005})
    assert scene.row() == [1000, 1005]


def test_a_counter_that_appears_in_a_known_source_began_at_zero(scene: Scene) -> None:
    scene.tell({"other_total": 1})
    scene.tell({"other_total": 1})
    scene.tell({"other_total": 1, "x_total": 7})
    assert scene.row() == [None, 0, 7]


def test_a_counter_of_a_new_source_of_a_known_node_began_at_zero(scene: Scene) -> None:
    scene.tell({"other_total": 1})
    scene.tell({"x_total": 7}, source="instance/shop/web-1")
    assert scene.row() == [0, 7]


def test_a_source_that_was_missing_from_the_first_frame_on_may_have_counted_before(
    scene: Scene,
) -> None:
    scene.tell({"other_total": 1}, missing=("late",))
    scene.tell({"x_total": 1000}, source="late")
    scene.tell({"x_total": 1001, "y_total": 3}, source="late")
    assert scene.row() == [None, 1000, 1001]
    assert scene.row("y_total") == [None, 0, 3]


def test_a_source_that_began_anew_goes_on_from_what_it_stood_at(scene: Scene) -> None:
    scene.tell({"x_total": 5})
    scene.tell({"x_total": 8})
    scene.tell({"x_total": 8}, "2")
    scene.tell({"x_total": 9}, "2")
    assert scene.row() == [5, 8, 16, 17]


def test_a_value_that_fell_was_set_to_zero(scene: Scene) -> None:
    for value in (5, 8, 2, 3):
        scene.tell({"x_total": value})
    assert scene.row() == [5, 8, 10, 11]


def test_a_counter_that_was_gone_comes_again_from_zero_and_shows_where_it_stood(
    scene: Scene,
) -> None:
    scene.tell({"x_total": 5, "other_total": 1})
    scene.tell({"other_total": 1})
    scene.tell({"other_total": 1})
    scene.tell({"x_total": 6, "other_total": 1})
    assert scene.row() == [5, None, 5, 11]


def test_a_source_that_did_not_answer_has_a_gap_and_loses_nothing(scene: Scene) -> None:
    scene.tell({"x_total": 5})
    scene.tell({}, missing=("envoy",))
    scene.tell({"x_total": 9})
    assert scene.row() == [5, None, 9]
    assert scene.store.incomplete(BEGIN + 1, BEGIN + 3) == {BEGIN + 2: {"n/envoy": "late"}}


def test_an_agent_that_began_anew_loses_nothing(scene: Scene) -> None:
    scene.tell({"x_total": 5})
    scene.builders["n"] = FrameBuilder()
    scene.tell({"x_total": 9, "y_total": 4})
    assert scene.row() == [5, 9]
    assert scene.row("y_total") == [0, 4]


def test_what_an_agent_that_began_anew_does_not_name_is_gone(scene: Scene) -> None:
    scene.tell({"x_total": 5, "other_total": 1})
    scene.builders["n"] = FrameBuilder()
    scene.tell({"other_total": 1})
    scene.tell({"x_total": 9, "other_total": 1})
    assert scene.row() == [5, 5, 14]


def test_a_frame_that_comes_too_late_counts_in_the_next_second(scene: Scene) -> None:
    scene.tell({"x_total": 5})
    scene.tell({"x_total": 7, "y_total": 2}, late=True)
    scene.tell({"x_total": 8, "y_total": 3})
    assert scene.row() == [5, None, 8]
    assert scene.row("y_total") == [None, 0, 3]
    assert scene.store.incomplete(BEGIN + 1, BEGIN + 3) == {BEGIN + 2: {"n": "late"}}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_counter_that_is_no_count_has_no_value(scene: Scene, value: float) -> None:
    for it in (5, value, 6):
        scene.tell({"x_total": it})
    assert scene.row() == [5, None, 6]


def test_a_series_has_one_source_at_a_time(scene: Scene) -> None:
    scene.tell({"x_total": 5})
    scene.tell({"x_total": 5})
    second = Series("x_total", (), "counter", "envoy")
    frame = FrameBuilder().build(BEGIN + 3, {second: 100.0}, {"envoy": "1"}, {})
    assert scene.store.ingest("m", frame)
    scene.tell({"x_total": 6})
    assert scene.row() == [5, 5, 6]
    assert scene.store.stats().dropped == {("x_total", "duplicate"): 1}


def test_a_missed_frame_is_asked_for(scene: Scene) -> None:
    scene.tell({"x_total": 5})
    scene.builders["n"].build(BEGIN, {}, {"envoy": "1"}, {})
    scene.tell({"x_total": 6})
    assert scene.row() == [5, 6]


def test_rows_of_series_that_are_gone_are_used_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "metrics.sqlite")
    for number in range(1500):
        scene.tell({f"n{number // 50}_total": float(number)})
        if number % 10 == 0:
            scene.store.flush()
    assert scene.store.stats().known == 30
    assert scene.store.stats().series < 14
    scene.store.close()
    scene.store = SeriesStore(tmp_path / "metrics.sqlite", clock=lambda: BEGIN + 1500.0)
    scene.store.open()
    scene.builders["n"] = FrameBuilder()
    scene.tell({"n0_total": 5.0})
    # It stood at 49 when it went, and began again.
    last = scene.store.last()
    row = scene.store.select([Matcher("__name__", "=", "n0_total")], last - 1, last, 1).values[0]
    assert row.tolist() == [49.0, 54.0]
    scene.store.close()


def test_a_node_that_went_away_frees_its_rows_and_goes_on_when_it_comes_back(scene: Scene) -> None:
    scene.tell({"other_total": 1}, node="m", source="other")
    scene.tell({"x_total": 5})
    for _ in range(900):
        scene.tell({"other_total": 1}, node="m", source="other")
        if scene.second % 10 == 0:
            scene.store.flush()
    assert scene.store.stats().series == 1
    scene.tell({"x_total": 7})
    last = scene.store.last()
    row = scene.store.select([Matcher("__name__", "=", "x_total")], BEGIN + 1, last, 1).values[0]
    assert row[~np.isnan(row)].tolist() == [5, 7]
    scene.store.close()


def test_a_source_that_was_forgotten_goes_on_as_it_was(scene: Scene) -> None:
    scene.tell({"x_total": 5})
    scene.tell({})
    scene.store._totals.prune(BEGIN + 100)
    assert scene.store._totals.sources == [None]
    scene.tell({"x_total": 2})
    scene.builders["n"] = FrameBuilder()  # tells the source's life again
    scene.tell({"x_total": 3})
    assert scene.row() == [5, 5, 7, 8]


def test_a_series_that_nobody_has_seen_for_the_longest_retention_is_forgotten(
    tmp_path: Path,
) -> None:
    path = tmp_path / "metrics.sqlite"
    scene = Scene(path)
    scene.store.close()
    scene.store = SeriesStore(path, retention=Retention({1: 300, 10: 300, 60: 300}))
    scene.store.open()
    scene.tell({"x_total": 5, "other_total": 1})
    for number in range(1500):
        scene.tell({"other_total": float(number)})
        if number % 10 == 0:
            scene.store.flush()
    assert scene.store.stats().known == 1
    scene.store.close()
    scene.store.open()
    assert scene.store.stats().known == 1
    scene.builders["n"] = FrameBuilder()
    scene.tell({"x_total": 2, "other_total": 2000.0})
    last = scene.store.last()
    row = scene.store.select([Matcher("__name__", "=", "x_total")], last - 1, last, 1).values[0]
    assert row.tolist() == [0.0, 2.0]
    scene.store.close()


def test_what_is_not_on_disk_yet_is_said(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "metrics.sqlite")
    assert scene.store.stats().unwritten == 0
    scene.tell({"x_total": 5})
    scene.store.flush()
    scene.tell({"x_total": 5})
    scene.tell({"x_total": 5})
    assert scene.store.stats().unwritten == 2
    scene.store.flush()
    assert scene.store.stats().unwritten == 0
    scene.store.close()


def test_a_clock_that_was_set_back_after_the_start_costs_no_second(tmp_path: Path) -> None:
    path = tmp_path / "metrics.sqlite"
    scene = Scene(path)
    for value in range(30):
        scene.tell({"x_total": float(value)})
    scene.store.close()
    scene.store = SeriesStore(path, clock=lambda: BEGIN + 10_000.0)
    scene.store.open()
    scene.builders["n"] = FrameBuilder()
    for value in range(30, 300):
        scene.tell({"x_total": float(value)})
    assert scene.row() == list(range(300))
    scene.store.close()
    scene.store.open()
    assert scene.row() == list(range(300))
    minutes = scene.store.select([Matcher("__name__", "=", "x_total")], BEGIN + 60, BEGIN + 300, 60)
    assert minutes.values[0].tolist() == [59, 119, 179, 239, 299]
    scene.store.close()


def held(scene: Scene, prefix: str) -> int:
    found = scene.store.series([Matcher("__name__", "=~", f"{prefix}.*")], BEGIN, scene.second)
    return len(found)


def test_an_application_that_floods_leaves_room_to_others_and_to_what_we_count(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path / "metrics.sqlite", cap=100)

    def tell(name: str, count: int, source: str, node: str) -> None:
        values = {f"{name}{number}_total": 1.0 for number in range(count)}
        scene.tell(values, source=source, node=node)

    tell("flood", 90, "application/a/default/w/i1", "n1")
    assert held(scene, "flood") == 50
    tell("more", 5, "application/a/default/other/i2", "n2")
    assert held(scene, "more") == 0, "it is the same app"
    tell("other", 90, "application/b/default/w/i1", "n3")
    assert held(scene, "other") == 30
    tell("ours", 20, "envoy", "n4")
    assert held(scene, "ours") == 20
    assert scene.store.stats().dropped["flood60_total", "share"] == 1
    scene.store.close()


def test_what_an_application_may_not_say_is_not_asked_for_every_second(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "metrics.sqlite", cap=100)
    source = "application/a/default/w/i1"
    series = {Series(f"f{number}", (), "gauge", source): 1.0 for number in range(80)}
    builder = FrameBuilder()
    for second in range(BEGIN + 1, BEGIN + 5):
        assert scene.store.ingest("n", builder.build(second, series, {source: "1"}, {}))
        scene.store.finish(second, {})
    scene.store.close()
