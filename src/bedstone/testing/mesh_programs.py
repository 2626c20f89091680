"""Programs behind instances of a small real mesh, who calls them, and how a scene is run.

The programs are small HTTP servers in the test's own process; each says what it received.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx

from bedstone.model.resources import InstanceStatus
from bedstone.model.spec import AppSpec, WorkloadSpec
from bedstone.testing.mesh import HOST, MeshRig, mesh_rig

Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


async def echo(head: str, writer: asyncio.StreamWriter) -> None:
    """Answer with the request's head as JSON."""
    line, *fields = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
    answer(writer, json.dumps({"line": line, "headers": headers}))


def answer(writer: asyncio.StreamWriter, body: str, status: str = "200 OK", more: str = "") -> None:
    """Answer a request with a text."""
    writer.write(
        f"HTTP/1.1 {status}\r\ncontent-length: {len(body.encode())}\r\n{more}\r\n{body}".encode()
    )


async def _shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    )
    while data := await reader.read(100):
        writer.write(data.upper())


@contextlib.asynccontextmanager
async def program(handler: Handler = echo, host: str = HOST) -> AsyncIterator[int]:
    """A program that listens on the yielded port; a WebSocket gets its words back in capitals."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        errors = (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError)
        with contextlib.suppress(*errors):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                for line in head.lower().split("\r\n"):
                    if line.startswith("content-length: "):
                        await reader.readexactly(int(line.partition(": ")[2]))
                if "upgrade: websocket" in head.lower():
                    await _shout(reader, writer)
                    break
                await handler(head, writer)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, host, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


def workload(*uses: str, timeout: float | None = None) -> WorkloadSpec:
    """A workload that uses others."""
    return WorkloadSpec(command=("unused",), uses=uses, timeout=timeout)


def bank(**more: object) -> AppSpec:
    """An app whose web uses risk, and nobody uses other."""
    workloads = {"web": workload("risk"), "risk": workload(), "other": workload()}
    return AppSpec.model_validate({"app": "bank", "workloads": workloads, **more})


def client(status: InstanceStatus, credential: str = "") -> httpx.AsyncClient:
    """An HTTP client that goes through an instance's proxy."""
    assert status.plumbing is not None
    user = f"{credential}@" if credential else ""
    proxy = f"http://{user}{HOST}:{status.plumbing.outbound.port}"
    return httpx.AsyncClient(proxy=proxy, timeout=30, trust_env=False)


def run(scenario: Callable[[MeshRig], Awaitable[None]], *, leds_threshold: int = 1000) -> None:
    """Run a scene on a rig of its own; the proxy's last words are shown where it fails."""

    async def main() -> None:
        async with mesh_rig(leds_threshold=leds_threshold) as rig:
            try:
                await scenario(rig)
            except BaseException as error:
                error.add_note((rig.directory / "envoy.log").read_text()[-2000:])
                raise

    asyncio.run(main())


DISGUISED = {
    "x_bedstone_caller",
    "x-bedstone_caller",
    "x_bedstone-caller",
    "x_envoy_internal",
    "x_forwarded_client_cert",
}
"""To a WSGI program the same as `x-bedstone-caller` and its like."""
