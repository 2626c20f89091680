"""What one caller may hold open, and what nobody may who has not said who they are."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from bedstone.console.signins import VISITOR, Visitor
from bedstone.server.api import AT_ONCE, _Gate
from bedstone.server.auth import PeerProtocol
from bedstone.server.console import listen
from bedstone.server.daemon import _Uvicorn, settings
from bedstone.store import open_store


def test_a_session_has_so_many_requests_open_and_no_more() -> None:
    release = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await release.wait()
        await PlainTextResponse("done")(scope, receive, send)

    def visitor(who: str) -> Visitor:
        return Visitor("1", who, "reader", "", 0.0, asyncio.Event())

    async def main() -> None:
        async with open_store("memory://") as store:
            gate = _Gate(slow, store)

            def client(who: str) -> httpx.AsyncClient:
                async def as_visitor(scope: Scope, receive: Receive, send: Send) -> None:
                    await gate({**scope, VISITOR: visitor(who)}, receive, send)

                transport = httpx.ASGITransport(app=as_visitor)
                return httpx.AsyncClient(transport=transport, base_url="http://api")

            async with client("console:ann") as ann, client("console:bob") as bob:
                held = [asyncio.create_task(ann.get("/v1/ticks")) for _ in range(AT_ONCE)]
                await asyncio.sleep(0.1)
                refused = await ann.get("/v1/status")
                assert refused.status_code == 503
                assert "requests open" in refused.json()["message"]
                other = asyncio.create_task(bob.get("/v1/status"))
                await asyncio.sleep(0.05)
                assert not other.done(), "another caller is let in"
                release.set()
                for one in (*held, other):
                    assert (await one).status_code == 200
                assert (await ann.get("/v1/status")).status_code == 200
            assert not gate._open

    asyncio.run(main())


async def _hello(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[int]:
    with listen("127.0.0.1", 0) as listener:
        server = _Uvicorn(settings(_hello))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


async def _closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(3):
            return await reader.read(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_connections_beyond_the_most_are_closed_and_those_before_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PeerProtocol, "MOST", 8)

    async def main() -> None:
        async with served() as port:
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
            await asyncio.sleep(0.1)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await _closed(reader)
            writer.close()
            first, second = held[0]
            second.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await first.readline()).startswith(b"HTTP/1.1 200")
            for _, writer in held:
                writer.close()

    asyncio.run(main())


def test_a_connection_that_asks_for_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeerProtocol, "PATIENCE", 0.2)

    async def main() -> None:
        async with served() as port:
            silent, trickling = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            trickling[1].write(b"GET / HTTP/1.1\r\nhost")
            assert await _closed(silent[0])
            assert await _closed(trickling[0])
            for _, writer in (silent, trickling):
                writer.close()

    asyncio.run(main())


def test_the_kernel_s_word_is_still_taken_on_a_unix_socket() -> None:
    """What is served over a Unix socket knows the user at the other end."""
    left, right = socket.socketpair(socket.AF_UNIX)
    seen: list[object] = []

    async def who(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["client"])
        await PlainTextResponse("hello")(scope, receive, send)

    async def main() -> None:
        config = settings(who)
        config.load()
        server = _Uvicorn(config)
        await asyncio.get_running_loop().connect_accepted_socket(
            lambda: PeerProtocol(config=config, server_state=server.server_state, app_state={}),
            right,
        )
        reader, writer = await asyncio.open_connection(sock=left)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()

    asyncio.run(main())
    assert str(seen[0]).startswith("('local:")
