"""What every message broker promises: the one in memory, and a real NATS server."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bedstone.engines.nats import NatsEngine
from bedstone.errors import Error, InvalidError, NotFoundError
from bedstone.testing.domain import free_port
from bedstone.testing.messages import MemoryBroker
from bedstone.transactions.broker import Broker, Message, open_broker
from bedstone.transactions.broker_nats import NatsBroker


@contextmanager
def nats_server(folder: Path) -> Iterator[str]:
    nats = NatsEngine(folder / "nats", free_port(), "test", "word", folder / "nats.log")
    spec = nats.prepare()
    with nats.log.open("ab") as log, subprocess.Popen(spec.argv, stdout=log, stderr=log) as process:
        try:
            asyncio.run(nats.wait_ready())
            yield nats.url
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with nats_server(tmp_path_factory.mktemp("nats")) as url:
        yield url


async def memory(_: str) -> Broker:
    return MemoryBroker()


async def nats(url: str) -> Broker:
    broker = NatsBroker(url)
    await broker.declare("T", "t.>")
    return broker


Opening = Callable[[str], Coroutine[Any, Any, Broker]]


@pytest.fixture(params=[memory, nats])
def opening(request: pytest.FixtureRequest) -> Opening:
    found: Opening = request.param
    return found


def run(opening: Opening, url: str, test: Callable[[Broker], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            broker = await opening(url)
            try:
                await test(broker)
            finally:
                await broker.close()

    asyncio.run(main())


def test_a_message_arrives_whole_and_once_acknowledged_never_again(
    opening: Opening, nats_url: str
) -> None:
    message = Message("t.whole", "id/1", b"\x00\xff", {"ce-id": "id/1", "Other": "x y"})

    async def test(broker: Broker) -> None:
        await broker.publish(message)
        await broker.publish(message)  # within the window: dropped
        subscription = await broker.subscribe("t.whole", "whole")
        (delivery,) = await subscription.take(10, 0.2)
        assert (delivery.message, delivery.attempt) == (message, 1)
        assert await subscription.floor() < delivery.sequence
        await delivery.ack()
        assert await subscription.floor() >= delivery.sequence
        assert await subscription.take(10, 0.1) == ()
        again = await broker.subscribe("t.whole", "whole")
        assert await again.take(10, 0.1) == ()

    run(opening, nats_url, test)


def test_what_is_refused_comes_again_and_is_counted(opening: Opening, nats_url: str) -> None:
    async def test(broker: Broker) -> None:
        await broker.publish(Message("t.again", "again", b""))
        subscription = await broker.subscribe("t.again", "again")
        for attempt in (1, 2, 3):
            (delivery,) = await subscription.take(1, 2.0)
            assert delivery.attempt == attempt
            await delivery.nak(0.0)

    run(opening, nats_url, test)


def test_each_durable_consumer_gets_every_message_in_order(opening: Opening, nats_url: str) -> None:
    async def test(broker: Broker) -> None:
        for number in range(5):
            await broker.publish(Message("t.order", f"order-{number}", b""))
        for durable in ("one", "two"):
            subscription = await broker.subscribe("t.order", durable)
            found = await subscription.take(5, 1.0)
            assert [it.message.id for it in found] == [f"order-{n}" for n in range(5)]

    run(opening, nats_url, test)


def test_a_subject_without_stream_is_an_error_that_says_so(nats_url: str) -> None:
    async def test() -> None:
        broker = open_broker(nats_url)
        with pytest.raises(Error) as caught:
            await broker.publish(Message("nobody", "1", b""))
        assert "declare" in str(caught.value.hint)
        with pytest.raises(NotFoundError):
            await broker.subscribe("nobody", "c")
        await broker.close()

    asyncio.run(test())


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(InvalidError, match="no message-broker driver"):
        open_broker("carrier-pigeon://roof")
