"""An idle stream is kept open, however often its client asks whether the server lives."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from bedstone.server.daemon import GRPC_OPTIONS

PINGING = (
    ("grpc.keepalive_time_ms", 1_100),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
)


async def silent(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


def test_pings_on_an_idle_stream_do_not_end_it() -> None:
    """A proxy pings every few seconds; gRPC's default is to hang up on the fourth."""

    async def main() -> None:
        server = grpc.aio.server(options=GRPC_OPTIONS)
        handlers: dict[str, Any] = {"Silent": grpc.stream_stream_rpc_method_handler(silent)}
        handler = grpc.method_handlers_generic_handler("test", handlers)
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=PINGING) as channel:
                call: Any = channel.stream_stream("/test/Silent")()
                await call.write(b"first")
                assert await call.read() == b"first"
                await asyncio.sleep(8)
                await call.write(b"second")
                assert await call.read() == b"second"
        finally:
            await server.stop(0)

    asyncio.run(main())
