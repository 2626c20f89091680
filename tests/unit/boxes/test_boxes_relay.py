"""The relay passes bytes both ways, resets where nobody listens, reaches what is named."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from bedstone.boxes.relay import Answer, Relay, parse_head

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def listening() -> socket.socket:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen(256)
    return made


@asynccontextmanager
async def relayed(serve: Serve | None, *rules: str) -> AsyncIterator[tuple[int, int, int]]:
    """The numbers of a published port, of the proxy, and of what `serve` listens on."""
    published, proxy = listening(), listening()
    ports = published.getsockname()[1], proxy.getsockname()[1]
    made = listening()
    box = made.getsockname()[1]
    if serve is None:
        made.close()
    server = await asyncio.start_server(serve, sock=made) if serve is not None else None
    config = {
        "box": "127.0.0.1",
        "ports": [[published.detach(), box]],
        "proxy": proxy.detach(),
        "egress": [rule.replace("PORT", str(box)) for rule in rules],
        "newline": "\n",
    }
    ended = asyncio.Event()
    with ThreadPoolExecutor(1) as inside:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(Relay(config, inside).run(ended))
            yield (*ports, box)
            ended.set()
    if server is not None:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with all that came, once its end came."""
    data = await reader.read()
    writer.write(data)
    writer.close()


async def asked(port: int, request: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.replace("\n", "\r\n").encode())
    answer = await reader.read()
    writer.close()
    return answer


def test_an_end_is_passed_on_and_what_comes_after_it_returns() -> None:
    async def work() -> None:
        async with relayed(echo) as (port, _, _):

            async def one(number: int) -> None:
                data = bytes([number % 256]) * (number * 1000)
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(data)
                writer.write_eof()
                assert await reader.read() == data
                writer.close()

            await asyncio.gather(*(one(number) for number in range(1, 200)))

    asyncio.run(work())


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bedstone.boxes.relay.MOST", 2)

    async def work() -> None:
        async with relayed(echo) as (port, _, _):
            first = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            await asyncio.sleep(0.1)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            for reader, writer in first:
                writer.write(b"x")
                writer.write_eof()
                assert await reader.read() == b"x"
                writer.close()

    asyncio.run(work())


def test_where_nobody_listens_the_connection_is_reset() -> None:
    async def work() -> None:
        async with relayed(None) as (port, _, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    asyncio.run(work())


def test_a_reset_is_passed_on() -> None:
    async def slam(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def work() -> None:
        async with relayed(slam) as (port, _, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    asyncio.run(work())


def test_who_does_not_read_is_waited_for() -> None:
    going = asyncio.Event()
    seen: list[int] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await going.wait()
        seen.append(len(await reader.read()))
        writer.close()

    async def work() -> None:
        async with relayed(slow) as (port, _, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sent, waited = 0, False
            while not waited and sent < 1 << 28:
                writer.write(bytes(1 << 20))
                sent += 1 << 20
                try:
                    await asyncio.wait_for(writer.drain(), 0.5)
                except TimeoutError:
                    waited = True
            assert waited
            going.set()
            writer.write_eof()
            await reader.read()
            writer.close()
            assert seen == [sent]

    asyncio.run(work())


def test_the_proxy_tunnels_and_forwards_what_is_named() -> None:
    async def work() -> None:
        async with relayed(echo, "127.0.0.1:PORT") as (_, proxy, box):
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
            writer.write(f"CONNECT 127.0.0.1:{box} HTTP/1.1\r\nHost: x\r\n\r\nearly ".encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"late")
            writer.write_eof()
            assert await reader.read() == b"early late"
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
            writer.write(
                f"POST http://127.0.0.1:{box}?q HTTP/1.1\r\nHost: evil\r\nX: 1\r\n"
                "Proxy-Authorization: secret\r\nConnection: keep-alive\r\n\r\nbody".encode()
            )
            writer.write_eof()
            assert (
                await reader.read()
                == (
                    f"POST /?q HTTP/1.1\r\nX: 1\r\nHost: 127.0.0.1:{box}\r\n"
                    "Connection: close\r\n\r\nbody"
                ).encode()
            )
            writer.close()

    asyncio.run(work())


def test_what_is_not_named_is_refused_with_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    async def work() -> None:
        async with relayed(echo, "*:PORT", "*") as (_, proxy, box):
            for host in ("127.0.0.1", "localhost", "2130706433", "127.1"):
                answer = await asked(proxy, f"CONNECT {host}:{box} HTTP/1.1\n\n")
                assert answer.startswith(b"HTTP/1.1 403 "), answer
                assert answer.endswith(b" is not public, or this machine's own\n")
            answer = await asked(proxy, f"GET http://[::ffff:127.0.0.1]:{box}/ HTTP/1.1\n\n")
            assert b" 403 " in answer
            for _ in range(3):
                answer = await asked(proxy, "CONNECT a.example:25 HTTP/1.1\n\n")
                assert b"a.example:25 is not allowed" in answer

    asyncio.run(work())
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 6
    assert all("; it is 127.0.0.1:" in line for line in told[:4])
    assert told[-1].endswith("a.example:25 is not allowed; --egress a.example:25 would allow it")


def test_what_does_not_answer_is_a_bad_gateway() -> None:
    async def work() -> None:
        async with relayed(None, "127.0.0.1:PORT", "no.invalid") as (_, proxy, box):
            assert b" 502 " in await asked(proxy, f"CONNECT 127.0.0.1:{box} HTTP/1.1\n\n")
            assert b" 502 " in await asked(proxy, "CONNECT no.invalid:443 HTTP/1.1\n\n")
            assert b" 431 " in await asked(proxy, "GET http://a/ HTTP/1.1\nX: " + "x" * 600_000)

    asyncio.run(work())


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1",
        "GET http:// HTTP/1.1",
        "GET https://a/ HTTP/1.1",
        "GET http://u@a/ HTTP/1.1",
        "GET http://a:0/ HTTP/1.1",
        "GET http://a/ HTTP/2.0",
        "GET  http://a/ HTTP/1.1",
        "CONNECT a HTTP/1.1",
        "CONNECT a:b HTTP/1.1",
        "CONNECT a/b:1 HTTP/1.1",
        "GET http://a/x\nHost:b\nX: HTTP/1.1",
        "GET http://a/x\ry HTTP/1.1",
        "GET http://a/x\ty HTTP/1.1",
        "CONNECT a\0b:1 HTTP/1.1",
        "GET http://a/ HTTP/1.1\r\n folded",
        "GET http://a/ HTTP/1.1\r\nname : x",
        "GET http://a/ HTTP/1.1\r\nx: 1\ny: 2",
        "\x16\x03\x01",
    ],
)
def test_what_is_no_request_for_a_proxy(head: str) -> None:
    with pytest.raises(Answer) as caught:
        parse_head(f"{head}\r\n\r\n".encode("latin-1"))
    assert caught.value.status == 400
