"""Alerts when something fails: receivers that are down, hang or refuse, a store that is away."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bedstone.control.monitoring.alerts.groups import Due, Target
from bedstone.errors import ConflictError, Error, UnavailableError, UnknownOutcomeError
from bedstone.model.alert_records import GROUPS, AlertGroupRecord, ToldAlert
from bedstone.model.monitoring_spec import ReceiverSpec
from bedstone.server.alert_routes import lines
from bedstone.server.alert_sending import Senders
from bedstone.store import open_store
from bedstone.testing.alerts import START, AlertWorld

TEXT = """\
app: shop
workloads: {web: {command: [x], replicas: 0}}
alerts:
  slow: {when: latency > 1}
  other: {when: other > 1}
receivers:
  people: {webhook: "http://127.0.0.1:1/", group_wait: 1s}
  others: {webhook: "http://127.0.0.1:1/", group_wait: 1s}
"""
WEB = (("workload", "web"),)


def in_world(body: Callable[[AlertWorld], Awaitable[None]], url: str = "memory://") -> None:
    async def main() -> None:
        async with open_store(url) as store:
            world = AlertWorld(store, TEXT)
            try:
                await body(world)
            finally:
                await world.close()

    asyncio.run(main())


def test_a_receiver_that_is_down_is_tried_again_until_it_takes_it() -> None:
    async def body(world: AlertWorld) -> None:
        world.evaluator.say("latency > 1", {WEB: 2.0})
        world.receivers.failing["people"] = UnavailableError("no connection to the receiver")
        async with world.running() as alerting:
            await world.seconds(20)
            tried = [at - START for at, name in world.receivers.tried if name == "people"]
            assert tried == [2, 3, 5, 9, 17]
            assert world.receivers.of("others") == [(["slow workload=web"], [])]
            (line,) = [line for line in lines(alerting) if line.state == "firing"]
            failed = [attempt.message for attempt in line.notified if not attempt.ok]
            assert failed == ["no connection to the receiver"] * 5
            told = [e for e in await alerting.kept.history("", "", 99) if e.what == "failed"]
            assert len(told) == 1, "the first failure of a row"
        world.receivers.failing.clear()
        async with world.running():
            # The wait after a failure survives as well: nothing is tried at once by each restart.
            await world.seconds(5)
            assert world.receivers.of() == []
            await world.seconds(15)
            assert world.receivers.of() == [(["slow workload=web"], [])]

    in_world(body)


def test_what_may_have_been_told_is_told_to_be_over_also_after_a_restart() -> None:
    async def body(world: AlertWorld) -> None:
        world.evaluator.say("latency > 1", {WEB: 2.0})
        world.receivers.failing["people"] = UnknownOutcomeError("it did not answer in time")
        world.receivers.failing["others"] = UnavailableError("no connection to the receiver")
        async with world.running() as alerting:
            await world.seconds(4)
            await alerting.kept.written()
            assert world.receivers.of() == world.receivers.of("others") == []
        world.receivers.failing.clear()
        world.evaluator.say("latency > 1", None)
        async with world.running():
            await world.seconds(20)
            assert world.receivers.of() == [([], ["slow workload=web"])]
            assert world.receivers.of("others") == [], "it knows of nothing"

    in_world(body)


def test_a_server_that_dies_while_it_tells_has_the_end_told_by_the_next() -> None:
    async def body(world: AlertWorld) -> None:
        world.evaluator.say("latency > 1", {WEB: 2.0})
        world.receivers.hanging["people"] = asyncio.Event()
        world.settle = lambda: asyncio.sleep(0.05)  # type: ignore[method-assign]
        async with world.running() as alerting:
            await world.seconds(4)
            await alerting.kept.written()
            assert {name for _, name in world.receivers.tried} == {"log", "others", "people"}
            assert world.receivers.of() == []
        del world.settle
        world.receivers.hanging.clear()
        world.evaluator.say("latency > 1", None)
        async with world.running():
            await world.seconds(4)
            assert world.receivers.of() == [([], ["slow workload=web"])]

    in_world(body)


def test_nobody_is_told_before_it_is_written_that_he_may_have_been() -> None:
    async def body(world: AlertWorld) -> None:
        world.evaluator.say("latency > 1", {WEB: 2.0})
        before: list[list[str]] = []
        send = world.receivers.send

        async def sent(due: Due, now: float) -> None:
            if due.target.name == "people":
                (found,) = [
                    record
                    for record in await world.alerting.kept.load(AlertGroupRecord, GROUPS)
                    if record.receiver == "people"
                ]
                before.append([alert.labels["rule"] for alert in found.maybe])
            await send(due, now)

        world.receivers.send = sent  # type: ignore[method-assign]
        async with world.running():
            await world.seconds(4)
        assert before == [["slow"]]

    in_world(body)


def test_a_receiver_that_hangs_delays_no_other_and_no_rule() -> None:
    async def body(world: AlertWorld) -> None:
        hangs = world.receivers.hanging["people"] = asyncio.Event()
        world.evaluator.say("latency > 1", {WEB: 2.0})
        async with world.running() as alerting:
            for _ in range(5):
                world.now = world.reader.last() + 1
                world.reader.finish(int(world.now))
                await asyncio.sleep(0.05)
            assert alerting.second == world.reader.last()
            assert world.receivers.of("others") == [(["slow workload=web"], [])]
            assert world.receivers.of() == []
            hangs.set()
            await world.settle()
            assert world.receivers.of() == [(["slow workload=web"], [])]

    in_world(body)


def test_one_bad_rule_delays_no_other() -> None:
    async def body(world: AlertWorld) -> None:
        stuck = threading.Event()

        def hangs(_: int) -> dict[tuple[tuple[str, str], ...], float]:
            assert stuck.wait(30)
            return {}

        world.evaluator.say("latency > 1", hangs)
        async with world.running() as alerting:
            try:
                for _ in range(4):
                    world.now = world.reader.last() + 1
                    world.reader.finish(int(world.now))
                    world.evaluator.say("other > 1", {WEB: 2.0})
                    await asyncio.sleep(0.05)
                assert world.states("other") == ["firing workload=web"]
                asked = [at for expression, at in world.evaluator.asked if "latency" in expression]
                assert len(asked) == 1
                assert alerting.second == world.reader.last()
            finally:
                stuck.set()

    async def patient(world: AlertWorld) -> None:
        # `running` settles first, which a rule that hangs would not let it do.
        world.settle = lambda: asyncio.sleep(0.02)  # type: ignore[method-assign]
        await body(world)

    in_world(patient)


class _Away:
    """A store whose writes fail while it is away."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.error: Error | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, operations: Any) -> int:
        """Write, or fail as the test says; `UnknownOutcomeError` is written all the same."""
        if isinstance(self.error, UnknownOutcomeError):
            await self._store.commit(operations)
        if self.error:
            raise self.error
        revision: int = await self._store.commit(operations)
        return revision


@pytest.mark.parametrize(
    "error",
    [UnavailableError("away"), UnknownOutcomeError("lost"), ConflictError("another was first")],
)
def test_a_store_that_is_away_loses_no_alert_and_keeps_nobody_from_being_told(
    error: Error, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    async def main() -> None:
        async with open_store("memory://") as store:
            away = _Away(store)
            world = AlertWorld(away, TEXT)
            try:
                async with world.running() as alerting:
                    world.settle = lambda: asyncio.sleep(0.05)  # type: ignore[method-assign]
                    away.error = error
                    world.evaluator.say("latency > 1", {WEB: 2.0})
                    await world.seconds(3)
                    assert world.receivers.of() == [(["slow workload=web"], [])]
                    away.error = None
                    await alerting.kept.written()
                    said = [line.message for line in caplog.records if "written" in line.message]
                    assert said == ["alerts not written", "alerts written again"]
                del world.settle
                async with world.running() as alerting:
                    await world.seconds(3)
                    assert world.states("slow") == ["firing workload=web"]
                    assert len(world.receivers.of()) == 1, "told before, and that was written later"
                    events = [e.what for e in await alerting.kept.history("shop", "slow", 9)]
                    assert sorted(events) == ["firing", "notified", "notified"]
            finally:
                await world.close()

    asyncio.run(main())


def test_a_record_that_cannot_be_read_is_passed_over() -> None:
    async def body(world: AlertWorld) -> None:
        from bedstone.store import Put

        await world.store.commit([Put("alerts/shop/slow/0", b"{"), Put("silences/x", b"[]")])
        world.evaluator.say("latency > 1", {WEB: 2.0})
        async with world.running():
            await world.seconds(2)
            assert world.states("slow") == ["firing workload=web"]

    in_world(body)


class _Hook(BaseHTTPRequestHandler):
    """Answers as its server's `say` says, and keeps what it got."""

    def do_POST(self) -> None:
        """One notification."""
        server: Any = self.server
        body = self.rfile.read(int(self.headers["content-length"]))
        server.got.append((dict(self.headers), json.loads(body)))
        status = server.say()
        self.send_response(status)
        if status == 302:
            self.send_header("location", "http://127.0.0.1:1/elsewhere")
        self.send_header("content-length", "4")
        self.end_headers()
        self.wfile.write(b"said")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def webhook(say: Callable[[], int]) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Hook)
    server.got, server.say = [], say
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def due(url: str, **fields: Any) -> Due:
    spec = ReceiverSpec.model_validate({"webhook": url, **fields})
    alert = ToldAlert(labels={"rule": "slow"}, started=1.0)
    record = AlertGroupRecord(app="shop", receiver="people")
    return Due(Target("shop", "people", spec, frozenset()), record, (alert,), ())


async def sent(one: Due, timeout: float = 5.0) -> None:
    async with Senders(timeout) as senders:
        await senders.send(one, 1.0)


def test_a_webhook_gets_the_body_the_headers_and_the_signature() -> None:
    with webhook(lambda: 204) as server:
        url = f"http://127.0.0.1:{server.server_port}/hook"
        asyncio.run(sent(due(url, headers={"x-key": "k"}, secret="hush")))
        ((headers, body),) = server.got
        assert headers["x-key"] == "k"
        assert headers["x-bedstone-signature"].startswith("t=1,v1=")
        assert body["alerts"][0]["labels"]["alertname"] == "slow"


@pytest.mark.parametrize(
    ("status", "message"), [(500, "answered 500: said"), (302, "answered 302: said")]
)
def test_an_answer_that_is_no_success_is_a_failure_and_no_redirect_is_followed(
    status: int, message: str
) -> None:
    with webhook(lambda: status) as server:
        with pytest.raises(UnavailableError, match=message):
            asyncio.run(sent(due(f"http://127.0.0.1:{server.server_port}/?token=hush")))
        assert len(server.got) == 1


def test_a_receiver_that_hangs_is_left_after_a_time() -> None:
    over = threading.Event()

    def hang() -> int:
        over.wait(10)
        return 200

    with webhook(hang) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        try:
            with pytest.raises(UnknownOutcomeError, match="did not answer in time"):
                asyncio.run(sent(due(url), timeout=0.1))
        finally:
            over.set()


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/?token=hush", "http://hush.invalid:x/"])
def test_a_failure_names_neither_the_url_nor_a_token(url: str) -> None:
    with pytest.raises(Error) as caught:
        asyncio.run(sent(due(url)))
    assert "hush" not in str(caught.value)
