"""The tail sampler and the assembly of traces, whatever comes in whichever order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bedstone.control.monitoring.traces.sampler import Decided, Limits, Policy, TailSampler
from bedstone.control.monitoring.traces.spans import Span, decode, encode
from bedstone.control.monitoring.traces.trace import root, summary, whole
from bedstone.testing.spans import span

ORIGINS = ("proxy", "application", "access-log")
spans = st.builds(
    span,
    st.integers(1, 12),
    st.integers(1, 20),
    st.integers(0, 20),
    service=st.sampled_from(["gateway", "web", "risk"]),
    instance=st.sampled_from(["", "i1", "i2"]),
    origin=st.sampled_from(ORIGINS),
    kind=st.integers(0, 5),
    start=st.floats(0, 5),
    seconds=st.floats(0, 2),
    error=st.booleans(),
    said=st.fixed_dictionaries(
        {
            "side": st.sampled_from(["", "gateway", "outbound", "inbound"]),
            "caller": st.sampled_from(["gateway", "web"]),
            "callee": st.sampled_from(["web", "risk"]),
        }
    ),
)
steps = st.lists(st.tuples(st.lists(spans, max_size=8), st.floats(0, 4)), max_size=15)


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(1, 8), st.integers(4, 60))
def test_no_error_is_lost_in_any_order_and_however_little_room_there_is(
    given_steps: list[tuple[list[Span], float]], traces: int, room: int
) -> None:
    sampler = TailSampler(Limits(rest=0.5, burst=1.0, traces=traces, spans=room))
    sampler.policies = {"bank": Policy(slow=1.0, share=0.0)}
    told: list[Decided] = []
    now = 0.0
    for offered, pause in given_steps:
        told += sampler.offer(offered, now)
        now += pause
        told += sampler.due(now)
        assert sampler.held <= room
    told += sampler.due(now + 100.0)
    assert sampler.held == 0
    kept = {(one.trace, part.span) for one in told for part in one.spans if part.error}
    sent = {(part.trace, part.span) for offered, _ in given_steps for part in offered if part.error}
    assert kept == sent
    assert all(one.spans for one in told)
    assert all(part.trace == one.trace for one in told for part in one.spans)


@settings(max_examples=100, deadline=None)
@given(st.lists(spans, min_size=1, max_size=12))
def test_a_trace_comes_out_the_same_in_whichever_order_it_came_in(found: list[Span]) -> None:
    trace = found[0].trace
    of_one = list({(s.span, s.whose.origin): s for s in found if s.trace == trace}.values())
    one, other = whole(of_one), whole(reversed(of_one))
    assert {s.span for s in one} == {s.span for s in of_one}
    assert len(one) == len({s.span for s in one})
    assert sorted(s.span for s in one) == sorted(s.span for s in other)
    assert all(s.parent != s.span or s in of_one for s in one), "none is below itself by our doing"
    above = {s.span: s.parent for s in one}
    for placed in (s for s in one if s not in of_one):
        seen = [placed.span]
        while (parent := above.get(seen[-1])) and parent not in seen:
            seen.append(parent)
        assert parent != placed.span, "nor below itself by way of others"
    assert list(decode(encode(one))) != []
    said = summary(one, "sampled")
    assert said.spans == len(one)
    assert said.seconds >= 0
    assert root(one) in one


@settings(max_examples=100, deadline=None)
@given(st.lists(spans, max_size=12))
def test_spans_are_read_as_they_were_written(found: list[Span]) -> None:
    read = sorted(decode(encode(found)), key=repr)
    assert read == sorted(found, key=repr)
