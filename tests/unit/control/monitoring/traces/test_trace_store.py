"""Kept traces on disk: what is found again, how long, and in which room."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bedstone.control.monitoring.traces.sampler import Decided
from bedstone.control.monitoring.traces.spans import Span
from bedstone.control.monitoring.traces.store import Query, TraceStore
from bedstone.control.monitoring.traces.trace import Kept
from bedstone.errors import InvalidError, NotFoundError
from bedstone.testing.spans import BEGIN, SECOND, span, trace_id

NOW = BEGIN / SECOND


def decided(number: int, *spans: Span, kept: Kept = "sampled") -> Decided:
    return Decided(trace_id(number), list(spans) or [span(number)], kept, late=False)


def found(store: TraceStore, **conditions: object) -> list[int]:
    query = Query(**conditions)  # type: ignore[arg-type]
    return [int(item.trace, 16) for item in store.search(query).items]


def test_traces_are_found_by_what_is_asked_newest_first(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "telemetry" / "traces.sqlite")
    store.write(
        [
            decided(1, span(1, name="GET /", start=1.0, seconds=0.1)),
            decided(
                2,
                span(2, 1, name="POST /transfers", service="gateway", start=2.0, seconds=0.3),
                span(2, 2, 1, service="risk", start=2.1, error=True),
                kept="error",
            ),
            decided(3, span(3, name="GET /50%_off", start=3.0, seconds=0.2)),
        ],
        NOW,
    )
    assert found(store) == [3, 2, 1]
    assert found(store, app="bank", limit=2) == [3, 2]
    assert found(store, app="shop") == []
    assert found(store, service="risk") == [2]
    assert found(store, service="ris") == []
    assert found(store, name="post") == [2]
    assert found(store, name="%_off") == [3]
    assert found(store, errors=True) == [2]
    assert found(store, shortest=0.15, longest=0.25) == [3]
    assert found(store, start=NOW + 2, end=NOW + 3) == [2]
    page = store.search(Query(limit=2))
    assert page.next == NOW + 2
    assert found(store, end=page.next) == [1]
    assert store.search(Query(limit=3)).next is None
    store.close()


def test_a_whole_trace_is_given_with_spans_nested_by_start(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    store.write([decided(7, span(7, 2, 1, start=0.1), span(7, 1, seconds=0.5))], NOW)
    detail = store.get(trace_id(7).hex())
    assert [(one.span[-1], one.parent[-1:]) for one in detail.spans] == [("1", ""), ("2", "1")]
    assert detail.summary == store.search(Query()).items[0]
    with pytest.raises(NotFoundError, match="not kept"):
        store.get(trace_id(8).hex())
    assert store.get(trace_id(7).hex().upper()) == detail
    for wrong in ("", "xy", "ab", "é" * 32, "0" * 7, "0" * 33, " " * 8):
        with pytest.raises(InvalidError, match="32 hexadecimal digits"):
            store.get(wrong)
    store.close()


def test_a_trace_is_found_by_the_beginning_of_its_id_if_no_other_does(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    for trace, name in (("4bf92f3577" + "00" * 11, "first"), ("4bf92f35" + "ff" * 12, "second")):
        one = Decided(bytes.fromhex(trace), [span(1, name=name)], "sampled", late=False)
        store.write([one], NOW)
    assert store.get("4bf92f357").summary.name == "first"
    assert store.get("4BF92F35f").summary.name == "second"
    with pytest.raises(InvalidError, match="more than one trace"):
        store.get("4bf92f35")
    with pytest.raises(NotFoundError, match="4bf92f36"):
        store.get("4bf92f36")
    store.close()


def test_late_spans_join_their_trace_and_an_error_weighs_more(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "traces.sqlite")
    store.write([decided(1, span(1, 1, seconds=0.1))], NOW)
    late = decided(1, span(1, 2, 1, start=0.05, seconds=1.0, error=True), kept="error")
    (told,) = store.write([late], NOW)
    assert (told.kept, told.spans, told.errors, told.seconds) == ("error", 2, 1, 1.05)
    store.write([decided(1, span(1, 3, 1))], NOW)
    (one,) = store.search(Query()).items
    assert (one.kept, one.spans) == ("error", 3)
    store.close()


def test_it_is_there_again_after_it_was_closed_and_for_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "telemetry" / "traces.sqlite"
    store = TraceStore(path)
    store.write([decided(1)], NOW)
    size = store.bytes
    assert size > 0
    store.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    store = TraceStore(path)
    assert (found(store), store.bytes) == ([1], size)
    store.close()


def test_the_oldest_go_when_there_are_too_many_or_they_are_too_old(tmp_path: Path) -> None:
    store = TraceStore(tmp_path / "a.sqlite", size=2_000)
    for number in range(1, 51):
        store.write([decided(number, span(number, start=float(number)))], NOW)
    assert store.bytes <= 2_000
    left = found(store)
    assert left == list(range(50, 50 - len(left), -1))
    assert len(left) > 3
    store.close()
    store = TraceStore(tmp_path / "b.sqlite", age=10.0)
    store.write([decided(1, span(1)), decided(2, span(2, start=8.0))], NOW)
    store.write([], NOW + 12.0)
    assert found(store) == [2]
    store.close()


def test_a_file_that_may_be_smaller_than_before_gives_its_room_back(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    store = TraceStore(path)
    for number in range(1, 400):
        store.write([decided(number)], NOW)
    store.close()
    before = path.stat().st_size
    store = TraceStore(path, size=2_000)
    for number in range(400, 402):
        store.write([decided(number)], NOW)
    store.close()
    assert path.stat().st_size < before / 2
