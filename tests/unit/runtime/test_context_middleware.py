"""One request through the middleware, its two ends played by the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from bedstone.runtime import RequestContext, current
from bedstone.runtime.asgi import Application, ContextMiddleware

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Client:
    """The server's side of ASGI; `leave` is a client that hangs up."""

    def __init__(self, app: Application, method: str = "GET", **headers: str) -> None:
        self.app = ContextMiddleware(app)
        self.sent: list[Any] = []
        self.gone = asyncio.Event()
        self.answered = asyncio.Event()
        self.asked = False
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": "/",
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        }

    async def receive(self) -> dict[str, Any]:
        if not self.asked:
            self.asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.answered.set()

    async def run(self) -> None:
        await self.app(self.scope, self.receive, self.send)

    @property
    def status(self) -> int | None:
        found = [m["status"] for m in self.sent if m["type"] == "http.response.start"]
        return found[0] if found else None


def _app(endpoint: Callable[..., Any]) -> Application:
    return Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])])


def _run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def _hang(_request: Request) -> PlainTextResponse:
    await asyncio.sleep(30)
    return PlainTextResponse("late")


def test_a_handler_past_its_deadline_is_cancelled_and_answered_for() -> None:
    cancelled: list[str] = []

    async def endpoint(request: Request) -> PlainTextResponse:
        try:
            return await _hang(request)
        except asyncio.CancelledError:
            cancelled.append("yes")
            raise

    async def test() -> None:
        client = Client(_app(endpoint), x_envoy_expected_rq_timeout_ms="50")
        await asyncio.wait_for(client.run(), 20)
        assert client.status == 504
        headers = dict(client.sent[0]["headers"])
        assert headers[b"x-bedstone-outcome"] == b"unknown"
        assert len(client.sent[1]["body"]) == int(headers[b"content-length"])

    _run(test)
    assert cancelled == ["yes"]


def test_a_handler_in_a_thread_cannot_delay_the_answer() -> None:
    release = threading.Event()

    def endpoint(_request: Request) -> PlainTextResponse:
        release.wait(30)
        return PlainTextResponse("late")

    async def test() -> None:
        client = Client(_app(endpoint), "POST", x_envoy_expected_rq_timeout_ms="50")
        running = asyncio.ensure_future(client.run())
        try:
            async with asyncio.timeout(20):
                await client.answered.wait()
        finally:
            release.set()
        await running
        assert client.status == 504
        assert len(client.sent) == 2

    _run(test)


def test_a_handler_that_ignores_its_cancellation_gets_no_word_in() -> None:
    async def endpoint(_request: Request) -> PlainTextResponse:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            return PlainTextResponse("still here")
        raise AssertionError("not cancelled")

    async def test() -> None:
        client = Client(_app(endpoint), x_envoy_expected_rq_timeout_ms="50")
        await client.run()
        assert client.status == 504
        assert len(client.sent) == 2
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    _run(test)


def test_an_error_after_the_deadline_is_not_the_servers() -> None:
    async def endpoint(_request: Request) -> PlainTextResponse:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            raise ValueError("while cleaning up") from None
        raise AssertionError("not cancelled")

    async def test() -> None:
        client = Client(_app(endpoint), x_envoy_expected_rq_timeout_ms="50")
        await client.run()
        assert client.status == 504

    _run(test)


def test_an_answer_that_has_begun_is_cut_off_not_finished() -> None:
    async def endpoint(_request: Request) -> StreamingResponse:
        async def parts() -> Any:
            yield b"first"
            await asyncio.sleep(30)

        return StreamingResponse(parts())

    async def test() -> None:
        client = Client(_app(endpoint), x_envoy_expected_rq_timeout_ms="100")
        await client.run()
        assert client.status == 200
        assert [m for m in client.sent if not m.get("more_body", True)] == []

    _run(test)


@pytest.mark.parametrize(("method", "cancelled"), [("GET", True), ("POST", False)])
def test_only_work_that_changes_nothing_ends_with_its_client(
    method: str, *, cancelled: bool
) -> None:
    done: list[str] = []

    async def endpoint(_request: Request) -> PlainTextResponse:
        await asyncio.sleep(0.2)
        done.append("yes")
        return PlainTextResponse("done")

    async def test() -> None:
        client = Client(_app(endpoint), method)
        running = asyncio.ensure_future(client.run())
        await asyncio.sleep(0.05)
        client.gone.set()
        await running

    _run(test)
    assert done == ([] if cancelled else ["yes"])


def test_a_cancellation_from_outside_goes_on() -> None:
    async def test() -> None:
        client = Client(_app(_hang), x_envoy_expected_rq_timeout_ms="5000")
        running = asyncio.ensure_future(client.run())
        await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert client.sent == []

    _run(test)


def test_an_error_of_the_application_is_left_to_the_server() -> None:
    async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
        raise ValueError("broken")

    async def test() -> None:
        with pytest.raises(ValueError, match="broken"):
            await Client(broken).run()
        assert current() == RequestContext()

    _run(test)


@pytest.mark.parametrize("threaded", [True, False])
def test_handlers_see_the_context(*, threaded: bool) -> None:
    seen: list[RequestContext] = []

    async def coroutine(_request: Request) -> PlainTextResponse:
        seen.append(current())
        return PlainTextResponse("ok")

    def function(_request: Request) -> PlainTextResponse:
        seen.append(current())
        return PlainTextResponse("ok")

    async def test() -> None:
        client = Client(
            _app(function if threaded else coroutine),
            traceparent=TRACEPARENT,
            x_bedstone_transaction="t1",
            x_bedstone_shard_key="ann",
            x_bedstone_caller="spiffe://d/bank/web",
        )
        await client.run()
        assert client.status == 200
        assert current() == RequestContext()

    _run(test)
    assert seen[0].trace is not None
    assert seen[0].trace.traceparent == TRACEPARENT
    assert (seen[0].transaction, seen[0].shard_key) == ("t1", "ann")
    assert seen[0].caller == "spiffe://d/bank/web"


def test_a_request_without_a_trace_begins_one() -> None:
    seen: list[str | None] = []

    async def endpoint(_request: Request) -> PlainTextResponse:
        seen.append(current().trace_id)
        return PlainTextResponse("ok")

    async def test() -> None:
        await Client(_app(endpoint)).run()
        await Client(_app(endpoint), traceparent="rubbish").run()

    _run(test)
    assert len({len(identifier or "") for identifier in seen} | {32}) == 1
    assert seen[0] != seen[1]


def test_a_handler_can_ask_whether_the_client_is_there() -> None:
    answers: list[bool] = []

    async def endpoint(request: Request) -> PlainTextResponse:
        await request.body()
        answers.append(await request.is_disconnected())
        return PlainTextResponse("ok")

    async def test() -> None:
        client = Client(_app(endpoint))
        await client.run()
        assert client.status == 200

    _run(test)
    assert answers == [False]


def test_a_websocket_has_context_but_no_deadline() -> None:
    seen: list[RequestContext] = []

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append(current())

    async def test() -> None:
        client = Client(app, x_envoy_expected_rq_timeout_ms="50", x_bedstone_shard_key="ann")
        client.scope["type"] = "websocket"
        await client.run()

    _run(test)
    assert seen[0].shard_key == "ann"
    assert seen[0].deadline is None
