from __future__ import annotations

import string
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedstone.errors import InvalidError
from bedstone.runtime import (
    RequestContext,
    Trace,
    current,
    deadline,
    extract,
    inject,
    shard_key,
    with_transaction,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"

tokens = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=256)
states = st.text(string.ascii_lowercase + string.digits + "=,@-", max_size=512)
traces = st.builds(
    Trace,
    st.integers(1, 2**128 - 1).map(lambda n: f"{n:032x}"),
    st.integers(1, 2**64 - 1).map(lambda n: f"{n:016x}"),
    st.booleans(),
    states,
)
contexts = st.builds(
    RequestContext,
    trace=st.none() | traces,
    deadline=st.none() | st.integers(1, 10**9).map(lambda ms: 50.0 + ms / 1000),
    transaction=st.none() | tokens,
    shard_key=st.none() | tokens,
)


@given(context=contexts)
def test_what_is_injected_is_extracted(context: RequestContext) -> None:
    found = extract(inject(context, now=50.0), now=50.0)
    assert found.trace == context.trace
    assert (found.transaction, found.shard_key) == (context.transaction, context.shard_key)
    if context.deadline is None:
        assert found.deadline is None
    else:
        assert found.deadline == pytest.approx(context.deadline, abs=0.0011)


header_names = st.sampled_from(
    [
        "traceparent",
        "TraceState",
        "x-envoy-expected-rq-timeout-ms",
        "X-Envoy-Upstream-Rq-Timeout-Ms",
        "x-bedstone-transaction",
        "x-bedstone-shard-key",
        "x-bedstone-caller",
    ]
)


@given(headers=st.lists(st.tuples(header_names, st.text(max_size=80))))
def test_no_header_breaks_a_request(headers: list[tuple[str, str]]) -> None:
    context = extract(headers, now=1.0)
    assert extract(inject(context, now=1.0), now=1.0).trace == context.trace


@given(headers=st.lists(st.tuples(header_names, st.text(max_size=40)), max_size=4), left=tokens)
def test_a_deadline_is_always_in_the_future(headers: list[tuple[str, str]], left: str) -> None:
    context = extract([*headers, ("x-envoy-expected-rq-timeout-ms", left)], now=1.0)
    assert context.deadline is None or context.deadline > 1.0


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0g",
    ],
)
def test_a_malformed_traceparent_restarts_the_trace(traceparent: str) -> None:
    assert extract({"traceparent": traceparent, "tracestate": "a=b"}).trace is None


def test_a_later_version_of_traceparent_is_read_as_far_as_it_is_known() -> None:
    """W3C Trace Context §3.2.4."""
    assert extract({"traceparent": f"cc-{TRACE}-{SPAN}-09-what"}).trace == Trace(TRACE, SPAN)


def test_a_header_given_twice_is_ignored() -> None:
    assert extract([("x-bedstone-transaction", "a"), ("X-Bedstone-Transaction", "b")]) == (
        RequestContext()
    )


def test_the_proxy_knows_better_than_the_caller_how_much_time_is_left() -> None:
    both = {"x-envoy-expected-rq-timeout-ms": "200", "x-envoy-upstream-rq-timeout-ms": "900"}
    assert extract(both, now=10.0).deadline == pytest.approx(10.2)
    assert extract({"x-envoy-upstream-rq-timeout-ms": "900"}, now=10.0).deadline == (
        pytest.approx(10.9)
    )


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "1e3", "٣", "", "9" * 13])
def test_a_time_out_that_is_no_number_of_milliseconds_is_none(value: str) -> None:
    assert extract({"x-envoy-expected-rq-timeout-ms": value}).deadline is None


def test_no_time_left_is_never_sent_as_no_time_out() -> None:
    sent = inject(RequestContext(deadline=5.0), now=9.0)
    assert sent == {"x-envoy-upstream-rq-timeout-ms": "1"}


def test_the_caller_is_read_and_never_sent() -> None:
    context = extract({"x-bedstone-caller": "spiffe://d.internal/bank/web"})
    assert context.caller == "spiffe://d.internal/bank/web"
    assert inject(context) == {}
    assert extract({"x-bedstone-caller": "web"}).caller is None


def test_nested_deadlines_only_shrink() -> None:
    with deadline(0.5) as outer:
        with deadline(60) as longer:
            assert longer.deadline == outer.deadline
        with deadline(0.1) as shorter:
            assert 0 < (shorter.remaining() or 0) <= 0.1
        assert current() is outer
    assert current() == RequestContext()
    assert current().remaining() is None


def test_remaining_ends_at_zero() -> None:
    assert RequestContext(deadline=time.monotonic() - 1).remaining() == 0.0


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_deadline_must_lie_ahead(seconds: float) -> None:
    with pytest.raises(InvalidError), deadline(seconds):
        pytest.fail("entered")


@pytest.mark.parametrize("value", ["", "a b", "käse", "a\nb", "x" * 257])
def test_what_no_header_can_carry_is_refused(value: str) -> None:
    with pytest.raises(InvalidError), shard_key(value):
        pytest.fail("entered")
    with pytest.raises(InvalidError), with_transaction(value):
        pytest.fail("entered")


def test_setters_nest_and_undo() -> None:
    with with_transaction("t1"), shard_key("ann") as context:
        assert (context.transaction, context.shard_key) == ("t1", "ann")
        assert inject(context) == {"x-bedstone-transaction": "t1", "x-bedstone-shard-key": "ann"}
    assert current() == RequestContext()


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import bedstone.runtime, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    heavy = {"opentelemetry", "wrapt", "httpx", "grpc", "pydantic", "uvicorn", "asyncio"}
    assert heavy.isdisjoint(loaded)
    ours = {name.split(".")[1] for name in loaded if name.startswith("bedstone.")}
    assert ours == {"errors", "runtime", "telemetry"}
