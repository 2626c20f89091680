"""A real NATS server under the supervisor."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from bedstone.engines.nats import NatsEngine, nats_program
from bedstone.errors import DeniedError, UnavailableError
from bedstone.testing.processes import supervised
from bedstone.transactions.broker import Message
from bedstone.transactions.broker_nats import NatsBroker


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def engine(folder: Path, port: int) -> NatsEngine:
    return NatsEngine(folder / "nats", port, "shop", "secret-word", folder / "nats.log")


def test_it_keeps_messages_asks_for_the_password_and_tells_it_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        nats = engine(tmp_path, free_port())
        spec = nats.prepare()
        assert "secret-word" not in repr(nats) + str(spec.argv) + str(spec.env)
        assert (nats.folder / "nats.conf").stat().st_mode & 0o777 == 0o600
        async with supervised(tmp_path, spec):
            await nats.wait_ready()
            async with NatsBroker(nats.url) as broker:
                await broker.declare("S", "s")
                await broker.publish(Message("s", "1", b"kept"))
            wrong = NatsBroker(nats.url.replace("secret-word", "guess"))
            with pytest.raises((DeniedError, UnavailableError)) as caught:
                await wrong.publish(Message("s", "2", b""))
            assert "guess" not in str(caught.value)
        again = tmp_path / "again"
        again.mkdir()
        async with supervised(again, nats.prepare()):
            await nats.wait_ready()
            async with NatsBroker(nats.url) as broker:
                (delivery,) = await (await broker.subscribe("s", "c")).take(10, 1.0)
                assert delivery.message == Message("s", "1", b"kept")

    asyncio.run(test())


def test_a_server_that_does_not_come_up_is_unavailable(tmp_path: Path) -> None:
    nats = engine(tmp_path, free_port())
    with pytest.raises(UnavailableError, match="not ready after"):
        asyncio.run(nats.wait_ready(0.1))


def test_a_missing_wheel_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedstone.engines.nats._WHEEL", "no-such-wheel")
    with pytest.raises(UnavailableError) as caught:
        nats_program()
    assert caught.value.hint == "pip install no-such-wheel"
