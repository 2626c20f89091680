"""Log lines of any library are understood, and none is an error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedstone.errors import InvalidError
from bedstone.telemetry.lines import LEVELS, Filter, checked_level, level_of, structured

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.mark.parametrize(
    ("library", "line"),
    [
        (
            "ours",
            {
                "time": 1700000000.5,
                "level": "warning",
                "event": "slow",
                "trace_id": TRACE,
                "span_id": "1" * 16,
            },
        ),
        (
            "structlog",
            {
                "timestamp": "2023-11-14T22:13:20.5Z",
                "level": "warn",
                "event": "slow",
                "trace_id": TRACE,
                "span_id": "1" * 16,
            },
        ),
        (
            "pino",
            {
                "level": 40,
                "time": 1700000000500,
                "msg": "slow",
                "traceId": TRACE,
                "spanId": "1" * 16,
            },
        ),
        (
            "zap",
            {
                "level": "WARN",
                "ts": 1700000000.5,
                "msg": "slow",
                "trace_id": TRACE,
                "span_id": "1" * 16,
            },
        ),
        (
            "otlp",
            {
                "severity_text": "WARN",
                "timestamp": 1700000000500000000,
                "body": "slow",
                "trace_id": TRACE.upper(),
                "span_id": "1" * 16,
            },
        ),
        (
            "google",
            {
                "severity": "WARNING",
                "time": "2023-11-14T23:13:20.5+01:00",
                "message": "slow",
                "traceId": TRACE,
                "spanId": "1" * 16,
            },
        ),
    ],
)
def test_a_line_of_a_known_library(library: str, line: dict[str, object]) -> None:
    found = structured(json.dumps(line))
    assert (found.text, found.level, found.time) == ("slow", "warning", 1700000000.5), library
    assert (found.trace, found.span) == (TRACE, "1" * 16)
    assert found.rest == {}


def test_what_is_not_shown_is_kept() -> None:
    found = structured('{"msg": "paid", "event": "payment", "amount": 5, "level": "loud"}')
    assert found.text == "paid"
    assert found.level == ""
    assert found.rest == {"event": "payment", "amount": 5}


@pytest.mark.parametrize(
    "line",
    ["", "plain", "{not json}", "[1]", '{"a": 1', "{" * 10_000 + "}", '{"msg": null}', "{}"],
)
def test_any_other_line_is_its_own_text(line: str) -> None:
    found = structured(line)
    assert (found.text, found.level, found.time, found.trace) == (line, "", None, "")


@given(
    st.one_of(
        st.text(),
        st.dictionaries(
            st.sampled_from(["time", "level", "msg", "trace_id", "severity", "x"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                lambda inner: st.lists(inner, max_size=2),
                max_leaves=3,
            ),
        ).map(json.dumps),
    )
)
def test_no_line_is_an_error(line: str) -> None:
    found = structured(line)
    assert found.level in {*LEVELS, ""}
    assert found.time is None or 0 < found.time <= 1e11
    json.dumps(found.rest)
    Filter(trace="a", level="info", text="b").takes(line)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("WARN", "warning"),
        ("fatal", "critical"),
        (10, "trace"),
        (30, "info"),
        (60, "critical"),
        (1, "trace"),
        (9, "info"),
        (17, "error"),
        (24, "critical"),
        ("50", "error"),
        (0, ""),
        (True, ""),
        (None, ""),
        ("loud", ""),
        ([], ""),
    ],
)
def test_levels_have_six_names(written: object, name: str) -> None:
    assert level_of(written) == name


def test_a_level_that_is_asked_for_must_be_one() -> None:
    assert checked_level("WARN") == "warning"
    with pytest.raises(InvalidError, match="loud"):
        checked_level("loud")


def test_a_filter_takes_what_fulfils_all_of_it() -> None:
    error = json.dumps({"level": "error", "msg": "Card refused", "trace_id": TRACE})
    plain = f"refused in {TRACE.upper()}"
    assert not Filter()
    assert Filter().takes("anything")
    assert Filter(trace=TRACE).takes(error)
    assert Filter(trace=TRACE).takes(plain)
    assert not Filter(trace="0" * 32).takes(error)
    assert Filter(text="card REFUSED").takes(error)
    assert Filter(level="warning").takes(error)
    assert not Filter(level="critical").takes(error)
    assert not Filter(level="debug").takes(plain), "a line without a level is of none"
    assert not Filter(trace=TRACE, text="accepted").takes(error)
