"""Which traces are kept, in virtual time."""

from __future__ import annotations

from bedstone.control.monitoring.traces.sampler import Decided, Limits, Policy, TailSampler
from bedstone.testing.spans import span, trace_id

NONE = Limits(rest=0.0, burst=0.0)


def sampler_of_none(limits: Limits = NONE, slow: float = 0.5) -> TailSampler:
    """Of traces that are neither slow nor failed it keeps none."""
    sampler = TailSampler(limits)
    sampler.policies = {"bank": Policy(slow, 0.0)}
    return sampler


def kept(found: list[Decided]) -> dict[bytes, str]:
    return {one.trace: one.kept for one in found}


def test_an_error_is_kept_as_soon_as_its_trace_is_settled() -> None:
    sampler = sampler_of_none()
    assert sampler.offer([span(1, 1), span(1, 2, 1, error=True)], now=10.0) == []
    assert sampler.due(10.5) == []
    (one,) = sampler.due(11.0)
    assert (one.kept, len(one.spans), one.late) == ("error", 2, False)
    assert sampler.held == 0


def test_a_trace_waits_for_an_error_that_comes_later() -> None:
    sampler = sampler_of_none()
    sampler.offer([span(1, 1)], now=0.0)
    assert sampler.due(5.9) == []
    sampler.offer([span(1, 2, 1, error=True)], now=5.9)
    assert kept(sampler.due(7.0)) == {trace_id(1): "error"}


def test_what_is_neither_slow_nor_failed_is_let_go_when_it_is_quiet() -> None:
    sampler = sampler_of_none()
    sampler.offer([span(1)], now=0.0)
    assert sampler.due(6.0) == []
    assert (sampler.held, sampler.sampled_away) == (0, 1)
    assert sampler.offer([span(1, 2, 1)], now=7.0) == []
    assert sampler.held == 0, "late spans of a trace that is gone are not held"


def test_an_error_that_comes_after_the_decision_is_kept_with_what_follows() -> None:
    sampler = sampler_of_none()
    sampler.offer([span(1)], now=0.0)
    sampler.due(6.0)
    sampler.offer([span(1, 2, 1, error=True), span(1, 3, 2)], now=7.0)
    (one,) = sampler.due(8.0)
    assert (one.kept, len(one.spans)) == ("error", 2)


def test_late_spans_join_a_kept_trace_and_an_error_among_them_says_so() -> None:
    sampler = TailSampler()
    sampler.offer([span(1)], now=0.0)
    assert kept(sampler.due(1.0)) == {trace_id(1): "sampled"}
    (late,) = sampler.offer([span(1, 2, 1), span(1, 3, 1)], now=20.0)
    assert (late.late, late.kept, len(late.spans)) == (True, "sampled", 2)
    (failed,) = sampler.offer([span(1, 4, 1, error=True)], now=21.0)
    assert failed.kept == "error"
    (after,) = sampler.offer([span(1, 5, 1)], now=22.0)
    assert after.kept == "error"


def test_of_the_rest_so_many_are_kept_a_second_whatever_comes() -> None:
    sampler = sampler_of_none(Limits(rest=2.0, burst=4.0))
    count = 0
    for second in range(100):
        spans = [span(second * 50 + i + 1) for i in range(50)]
        count += len(sampler.offer(spans, now=float(second)))
        count += len(sampler.due(float(second)))
    for second in range(100, 110):
        count += len(sampler.due(float(second)))
    assert 190 <= count <= 226
    assert sampler.held == 0


def test_where_there_are_many_a_share_of_the_rest_is_kept_the_same_wherever_it_is_asked() -> None:
    chosen: list[set[bytes]] = []
    for _ in range(2):
        sampler = TailSampler(NONE)
        sampler.policies = {"bank": Policy(share=0.25)}
        sampler.offer([span(number << 45) for number in range(1, 2001)], now=0.0)
        chosen.append(set(kept(sampler.due(6.0))))
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 511, "a quarter of ids that are spread evenly"


def test_slow_is_from_the_threshold_or_beyond_nearly_all_of_its_name() -> None:
    sampler = sampler_of_none(slow=1.0)
    sampler.offer([span(1, seconds=1.0)], now=0.0)
    assert kept(sampler.due(6.0)) == {trace_id(1): "slow"}
    for number in range(2, 300):
        sampler.offer([span(number, name="GET /quick", seconds=0.002)], now=10.0)
    assert sampler.due(20.0) == []
    sampler.offer([span(1000, name="GET /quick", seconds=0.1)], now=30.0)
    sampler.offer([span(1001, name="GET /other", seconds=0.1)], now=30.0)
    assert kept(sampler.due(36.0)) == {trace_id(1000): "slow"}, "0.1 s is slow for /quick alone"


def test_an_open_web_socket_is_not_slow() -> None:
    sampler = sampler_of_none()
    sampler.offer([span(1, seconds=600, status=101)], now=0.0)
    assert sampler.due(6.0) == []


def test_a_trace_that_goes_on_is_decided_all_the_same_and_joined_later() -> None:
    sampler = sampler_of_none()
    decided: list[Decided] = []
    for second in range(65):
        decided += sampler.offer([span(1, second + 1, error=second == 0)], now=float(second))
        decided += sampler.due(float(second) + 0.5)
    assert [one.late for one in decided] == [False, True, True, True, True]
    assert sum(len(one.spans) for one in decided) == 65


def test_without_room_the_oldest_is_decided_early_and_no_error_is_lost() -> None:
    sampler = sampler_of_none(Limits(rest=0.0, burst=0.0, traces=10, spans=1000))
    found: list[Decided] = []
    for number in range(1, 101):
        found += sampler.offer([span(number, error=number % 10 == 0)], now=0.0)
    assert sampler.held == 10
    found += sampler.due(1.0)
    assert kept(found) == {trace_id(n): "error" for n in range(10, 101, 10)}


def test_a_trace_without_end_takes_bounded_room_and_keeps_its_errors() -> None:
    sampler = TailSampler(Limits(longest_trace=100))
    sampler.offer([span(1, n + 1, 999, error=n > 490) for n in range(500)], now=0.0)
    assert sampler.held == 109
    assert sampler.dropped == 391
    (one,) = sampler.due(1.0)
    assert sum(part.error for part in one.spans) == 9


def test_a_trace_that_never_ends_is_bounded_also_in_what_comes_late() -> None:
    sampler = TailSampler(Limits(longest_trace=10))
    told = 0
    for second in range(100):
        decided = sampler.offer([span(1, second * 5 + n + 2, 1) for n in range(5)], float(second))
        decided += sampler.due(second + 0.9)
        told += sum(len(one.spans) for one in decided)
        assert sampler.held <= 10
    told += sum(len(one.spans) for one in sampler.due(1000.0))
    assert (told, sampler.dropped) == (10, 490)


def test_a_long_trace_keeps_its_first_span_which_comes_last_and_so_many_errors() -> None:
    sampler = TailSampler(Limits(longest_trace=10))
    sampler.offer([span(1, n + 2, 1) for n in range(50)], now=0.0)
    sampler.due(1.0)
    (late,) = sampler.offer([span(1, 99, 1), span(1, 1)], now=2.0)
    assert [one.span for one in late.spans] == [span(1, 1).span]
    errors = [span(1, n + 100, 1, error=True) for n in range(50)]
    (late,) = sampler.offer(errors, now=3.0)
    assert (len(late.spans), late.kept) == (9, "error")
    assert sampler.offer(errors, now=4.0) == []
