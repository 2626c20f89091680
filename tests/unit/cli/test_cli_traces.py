"""`bedstone trace`, against a fake server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from bedstone.cli.traces import waterfall
from bedstone.errors import NotFoundError
from bedstone.model.traces import Span, TraceDetail, TraceList, TraceSummary
from bedstone.testing.api import Answer, FakeApi, problem

Command = Callable[..., Any]
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SUMMARY = TraceSummary(
    trace=TRACE,
    app="bank",
    name="POST /transfers",
    services=("accounts", "gateway", "web"),
    start=1_800_000_000.0,
    seconds=0.1,
    spans=3,
    errors=1,
    status=503,
    kept="error",
)


def span(number: int, parent: int, start: float, seconds: float, **fields: Any) -> Span:
    usual: dict[str, Any] = {"name": f"span{number}", "origin": "proxy", "service": "web"}
    return Span(
        span=f"{number:016x}",
        parent=f"{parent:016x}" if parent else "",
        app="bank",
        start=1_800_000_000.0 + start,
        seconds=seconds,
        **(usual | fields),
    )


DETAIL = TraceDetail(
    summary=SUMMARY,
    spans=(
        span(1, 0, 0.0, 0.1, service="gateway", attributes={"http.response.status_code": 503}),
        span(3, 2, 0.05, 0.05, error=True, message="connect", origin="access-log"),
        span(2, 1, 0.0, 0.1),
    ),
)


def test_ls_asks_for_what_fits_and_shows_it_in_one_line(server: FakeApi, command: Command) -> None:
    server.answers["GET /v1/traces"] = Answer(TraceList(items=(SUMMARY,)))
    ended = command(
        *("trace", "ls", "--errors", "--service", "web", "--name", "post"),
        *("--slower", "50ms", "--limit", "7"),
    )
    assert ended.status == 0
    line = rf"{TRACE} +POST /transfers +100ms +503 +3 +error +accounts gateway web"
    assert re.search(line, ended.out)
    query = server.asked[-1].query
    assert query == {
        "app": "bank",
        "service": "web",
        "name": "post",
        "errors": "true",
        "min": "0.050000",
        "limit": "7",
    }
    parsed = json.loads(command("trace", "ls", "-o", "json").out)
    assert TraceList.model_validate(parsed).items == (SUMMARY,)


def test_ls_says_when_none_fits_and_what_is_no_duration(server: FakeApi, command: Command) -> None:
    server.answers["GET /v1/traces"] = Answer(TraceList())
    assert "no trace fits" in command("trace", "ls").err
    assert command("trace", "ls", "--slower", "fast").status == 2


def test_show_nests_spans_and_says_what_failed(server: FakeApi, command: Command) -> None:
    server.answers[f"GET /v1/traces/{TRACE}"] = Answer(DETAIL)
    out = command("trace", "show", TRACE).out
    first, *rows = out.splitlines()
    assert first.startswith("POST /transfers  503  100ms")
    assert re.search(r"█{24}  100ms +gateway  span1 +503", rows[0])
    assert re.search(r"  span2$", rows[1])
    assert re.search(r"·{12}█{12}  50.00ms +web +span3 +error connect", rows[2])
    assert [row.index("span") for row in rows] == sorted({row.index("span") for row in rows})


def test_show_of_a_trace_that_is_not_kept_says_what_is(server: FakeApi, command: Command) -> None:
    error = NotFoundError("the trace x is not kept", hint="errors are")
    server.answers["GET /v1/traces/x"] = problem(error)
    ended = command("trace", "show", "x")
    assert ended.status != 0
    assert "not kept" in ended.err


def test_what_a_span_says_cannot_control_the_terminal_nor_hang_it(
    server: FakeApi, command: Command
) -> None:
    evil = (
        span(1, 2, 0.0, 0.1, name="\x1b[2J\x07", service="\x1b]0;owned\x07"),
        span(2, 1, 0.0, 0.1, name="a circle"),
        span(3, 3, 0.0, 0.1, name="below itself", error=True, message="\x1b[2J"),
    )
    server.answers[f"GET /v1/traces/{TRACE}"] = Answer(DETAIL.model_copy(update={"spans": evil}))
    out = command("trace", "show", TRACE).out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 4


def test_a_trace_may_be_deeper_than_calls_may_be() -> None:
    deep = tuple(span(n, n - 1, n / 1e5, 0.1) for n in range(1, 5001))
    assert len(list(waterfall(deep))) == 5000


def test_sampling_is_a_share_or_left_to_the_rate(server: FakeApi, command: Command) -> None:
    server.answers["PUT /v1/sampling"] = Answer({"share": None})
    for given, share in (("5%", 0.05), ("0", 0.0), ("0.25", 0.25), ("auto", None)):
        ended = command("trace", "sampling", given)
        words = "as their rate allows" if share is None else f"{share:.0%} of them"
        assert ended.out == f"requests that are recorded: {words}, and all that fail or are slow\n"
        assert server.asked[-1].body == {"share": share}
    for wrong in ("150%", "-1", "much"):
        assert command("trace", "sampling", "--", wrong).status == 2
