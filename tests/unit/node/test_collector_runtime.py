"""What a proxy is told through its administration, and again when it was started again."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from bedstone.node.collector.runtime import ProxyRuntime, share


class Admin:
    """A proxy's administration: keeps what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []
        self.status = 200

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0]
        method, target, _ = line.split()
        assert (method, urlsplit(target).path) == ("POST", "/runtime_modify")
        assert "+" not in target, "the proxy takes a plus for a plus"
        self.told.append(dict(parse_qsl(urlsplit(target).query, keep_blank_values=True)))
        body = f"HTTP/1.1 {self.status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        writer.write(body.encode())
        await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def admin(path: Path) -> AsyncIterator[Admin]:
    made = Admin()
    server = await asyncio.start_unix_server(made.serve, str(path))
    try:
        yield made
    finally:
        server.close()
        path.unlink(missing_ok=True)


def test_it_is_told_what_changed_and_all_after_it_was_started_again() -> None:
    async def scene() -> None:
        with tempfile.TemporaryDirectory(prefix="bs-") as folder:
            path = Path(folder) / "admin.sock"
            life: int | None = None
            runtime = ProxyRuntime(path, lambda: life)
            runtime.set("a", "1")
            assert not await runtime.tell(), "there is no proxy yet"
            life = 7
            assert not await runtime.tell(), "and it does not answer yet"
            async with admin(path) as proxy:
                assert await runtime.tell()
                runtime.set("b", share(0.05))
                runtime.set("a", "1")
                assert await runtime.tell()
                assert await runtime.tell(), "nothing is new"
                runtime.set("a", None)
                assert await runtime.tell()
                assert proxy.told == [
                    {"a": "1"},
                    {"b": "5"},
                    {"a": ""},
                ]
                life = 8
                assert await runtime.tell()
                assert proxy.told[3:] == [{"b": share(0.05)}], "it had forgotten"
                proxy.status = 400
                runtime.set("c", "x")
                assert not await runtime.tell()
                proxy.status = 200
                assert await runtime.tell(), "what was refused is tried again"

    asyncio.run(scene())


def test_a_share_is_within_what_a_proxy_can_tell() -> None:
    """Whole percents; nothing at all only for nothing."""
    shares = {-1.0: "0", 0.0: "0", 0.0001: "1", 0.01: "1", 0.05: "5", 0.051: "6", 1.0: "100"}
    assert {value: share(value) for value in shares} == shares
    assert share(7.0) == "100"
